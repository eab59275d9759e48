"""How programs start and print: the settings of XLA and of the allocator on CPUs, and names from outside."""

import io

import programs
import pytest

from recvis_jax import cli

SMOKE = ("-m", "recvis_jax.train", f"{programs.DIGITS}:smoke")


@pytest.mark.full
@pytest.mark.parametrize("given, there", [({}, True), ({"GLIBC_TUNABLES": ""}, False)])
def test_the_allocator_is_set_unless_the_user_did(given, there, tmp_path):
    text = programs.run(
        *SMOKE, "--debug", f"--workdir={tmp_path / 'it is a run'}", JAX_PLATFORMS="cpu", XLA_FLAGS="", **given
    )
    assert ("glibc.malloc.hugetlb=1" in text) == there
    assert "XLA_FLAGS=" in text
    assert "finished (done)" in text


@pytest.mark.full
def test_a_program_that_calls_ours_is_not_begun_again(tmp_path):
    caller = tmp_path / "caller.py"
    caller.write_text(
        "import runpy, sys\nprint('begun')\n"
        f"sys.argv = ['train', '{programs.DIGITS}:smoke', '--workdir={tmp_path / 'run'}']\n"
        "runpy.run_module('recvis_jax.train', run_name='__main__', alter_sys=True)\n"
    )
    text = programs.run(caller, JAX_PLATFORMS="cpu", XLA_FLAGS="")
    assert text.count("begun") == 1 and "finished (done)" in text
    assert "XLA_FLAGS" not in text and "GLIBC_TUNABLES" not in text  # without --debug


@pytest.mark.full
def test_names_cannot_move_the_cursor():
    """What a program prints is printable in every line, on terminals of any encoding."""
    raw = io.BytesIO()
    stream = cli._Plain(io.TextIOWrapper(raw, encoding="ascii"))
    print("a\x1b]0;title\x07 \u202egnp\r \u00e4", "b\tc", sep="\n", file=stream, flush=True)
    assert raw.getvalue() == rb"a\x1b]0;title\x07 \u202egnp\r \xe4" + b"\nb\tc\n"
    assert stream.encoding == "ascii" and not stream.isatty()
