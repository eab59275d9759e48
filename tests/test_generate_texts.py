"""The program that translates: from a run of texts to lines and a figure of what was attended to."""

import shutil

import cv2
import numpy as np
import programs
import pytest

import recvis_jax as rv
from recvis_jax import trees

SECTIONS = dict(
    seed=0, batch_size=16, steps=2, keep_checkpoints=2, checkpoint_every=1,
    data=dict(name="libreoffice_de", mock=40, train="train", val="", test="test", text=dict(tokens=280, most=40)),
    model=dict(name="transformer_base", width=16, heads=2, encoder_depth=1, decoder_depth=1, hidden=16),
    task=dict(name="translate"), optim=dict(name="adam", lr=1e-3),
)  # fmt: skip


@pytest.fixture(scope="module")
def run(program, tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    done = program(
        "train", programs.write_config(folder / "c.py", SECTIONS), f"--workdir={folder / 'run'}", "--report=false"
    )
    assert done.code == 0, done.err
    assert "texts in 280 tokens (bpe)" in done.out
    return folder / "run"


def test_texts_are_translated(run, program, tmp_path):
    (tmp_path / "lines").write_text("bade\nfi go\n")
    flags = (
        f"--workdir={run}",
        f"--texts={tmp_path / 'lines'}",
        "--attention=cross:0",
        f"--out={tmp_path}",
        "--beams=2",
    )
    done = program("generate", "ma 漢", *flags)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "note: training had none of these characters: 漢"
    assert len(lines) == 5 and lines[4].startswith("attention: ")
    assert cv2.imread(str(tmp_path / "attention.png")) is not None
    again = program("generate", "bade", f"--workdir={run}", "--beams=2", "--checkpoint=last")
    assert again.out.splitlines() == [lines[2]]
    assert program("generate", "bade", f"--workdir={run}", "--checkpoint=average").code == 0


@pytest.mark.full
def test_long_texts_are_counted_and_cut_or_left_out(run, program):
    texts = ("bade", "bade " * 40)
    for way, words in (("cut", "cut"), ("drop", "left out")):
        done = program("generate", *texts, f"--workdir={run}", f"--too_long={way}", "--beams=1")
        first, _, last = lines = done.out.splitlines()
        assert len(lines) == 3 and first == f"note: 1 of 2 texts have more tokens than those of training: {words}"
        assert way == "cut" or last == ""


@pytest.mark.full
def test_a_resumed_run_ends_with_the_same_parameters(run, program, tmp_path):
    """Dropout and the order of the texts depend on the step alone."""
    again = tmp_path / "again"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints/last/2")
    done = program("train", programs.write_config(tmp_path / "c.py", SECTIONS), f"--workdir={again}", "--report=false")
    assert done.code == 0 and "step 1" in done.out, done
    first, second = (trees.flatten(rv.open(str(folder), checkpoint="last").params) for folder in (run, again))
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


REFUSED = {
    "no text": ((), "name the texts"),
    "empty": ((" ",), "text 1 is empty"),
    "too long": (("bade " * 40,), "tokens; the model was trained on at most 40"),
    "no layer": (("bade", "--attention=cross:7"), "there is no layer 7 of the cross attention; it has 0 to 0"),
    "no kind": (("bade", "--attention=self"), "unknown attention 'self'"),
    "no number": (("bade", "--attention=cross:x"), "is no KIND, KIND:LAYER or KIND:LAYER:HEAD"),
    "no file": (("--texts=/nowhere",), "/nowhere cannot be read"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what, run, program):
    given, words = REFUSED[what]
    done = program("generate", f"--workdir={run}", *given)
    assert done.code == 2 and words in done.err and len(done.err.splitlines()) == 1, done


def test_other_programs_say_what_they_are_of(run, program):
    for name, flags in (("features", ("--layers=features", "--split=test")), ("look", (f"--weights={run}",))):
        place = () if name == "look" else (f"--workdir={run}",)
        done = program(name, *place, *flags)
        assert done.code == 2 and "the run is of texts" in done.err and len(done.err.splitlines()) == 1, done


def test_another_vocabulary_is_refused(run, program, tmp_path):
    data = SECTIONS["data"] | dict(text=dict(tokens=290, most=40))
    flag = programs.write_config(tmp_path / "c.py", SECTIONS | dict(data=data))
    done = program("train", flag, f"--workdir={tmp_path / 'new'}", f"--config.init_from={run}")
    assert done.code == 2 and "has another vocabulary; use it with" in done.err, done
    done = program("train", flag, f"--workdir={run}")
    assert done.code == 2 and len(done.err.splitlines()) == 1, done
