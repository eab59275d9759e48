"""Files from outside: regular, bounded, and JSON that is JSON."""

import os

import pytest

from recvis_jax import errors, reading


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    for name, what in {
        "pipe": "a named pipe",
        "zero": "a device",
        ".": "a folder",
        "loop": "symbolic",
        "no": "No such",
    }.items():
        with pytest.raises(errors.BadRequest, match=what):
            reading.read_bytes(tmp_path / name, "record bytes")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "file").write_bytes(b"x")
    assert reading.read_bytes(tmp_path / "link", "record bytes") == b"x"


def test_size_is_looked_at_first(tmp_path, monkeypatch):
    path = tmp_path / "large"
    with path.open("wb") as f:
        f.truncate(2**40)  # sparse
    with pytest.raises(errors.BadRequest, match="1,099,511,627,776 bytes; at most 67,108,864"):
        reading.read_bytes(path, "record bytes")
    monkeypatch.setitem(reading.LIMITS, "record bytes", 10)
    with pytest.raises(errors.BadRequest, match="larger than the limit of 10 bytes"):
        reading.read_bytes(reading.Path("/proc/self/maps"), "record bytes")  # says that it has none


@pytest.mark.parametrize(
    "text, says",
    [
        ('{"a": NaN}', "NaN"), ('{"a": 1e999}', "too large"), ('{"a": 1, "a": 2}', "'a' occurs twice"),
        ("{", "Expecting"),
        ("[" * 100_000, "recursion"), ("[]", "not an object"), ("", "Expecting"), (b"\xff\xfe", "utf-8"), ("3", "int"),
    ],
)  # fmt: skip
def test_json_that_is_none_names_the_file(text, says, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(errors.BadRequest, match=says) as e:
        reading.read_json(path, "of a run")
    assert str(path) in str(e.value) and len(str(e.value)) < 400


def test_text_without_byte_order_mark(tmp_path):
    path = tmp_path / "names"
    path.write_bytes(b"\xef\xbb\xbfK\xc3\xa4fer\n")
    assert reading.read_text(path) == "Käfer\n"
    path.write_bytes(b"ok\xff")
    with pytest.raises(errors.BadRequest, match="byte 2 is 0xff"):
        reading.read_text(path)


def test_what_is_printed_cannot_move_the_cursor():
    assert errors.printable("a\x1b[2Jb\r\n\u202ec") == r"a\x1b[2Jb\r\n\u202ec"
    assert errors.printable(os.fsdecode(b"caf\xe9.jpg")) == "caf\ufffd.jpg"
    assert errors.printable("日本語 ñ") == "日本語 ñ"
