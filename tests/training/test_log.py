"""What a run leaves behind: records that survive crashes, and folders that are taken up again only by their own run."""

import concurrent.futures
import json
import math
import re
import struct
import sys

import numpy as np
import pexpect
import pytest

from recvis_jax import errors
from recvis_jax.training import log


def write(folder, steps, resumed_at=0, evaluated=0, values=lambda step: {"loss": 1 / step}):
    writer = log.Log(folder, 100, resumed_at, evaluated)
    for step in steps:
        writer.record(step, "train", values(step))
        if step % 20 == 0:
            writer.record(step, "val", {"accuracy": step / 100})
    writer.close()


def listed(folder):
    return [(r["step"], r["split"]) for r in log.read_records(folder / "metrics.jsonl")]


def test_later_records_of_a_life_cut_short_are_dropped(tmp_path):
    write(tmp_path, [10, 20, 30, 40])
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write('{"step": 50, "split": "tr')  # cut short by a crash
    assert len(listed(tmp_path)) == 6
    log.Log(tmp_path, 100, resumed_at=30, evaluated=20).close()
    assert listed(tmp_path) == [(10, "train"), (20, "train"), (20, "val"), (30, "train")]
    # Saved at 20 before the evaluation that is due there: it will be made, and recorded, again.
    log.Log(tmp_path, 100, resumed_at=20, evaluated=0).close()
    assert listed(tmp_path) == [(10, "train"), (20, "train")]


def test_numbers_are_read_back_to_the_bit(tmp_path):
    values = {"loss": 0.1 + 0.2, "tiny": 5e-324, "third": 1 / 3}
    write(tmp_path, [1], values=lambda step: values)
    (record,) = log.read_records(tmp_path / "metrics.jsonl")
    assert record == {"step": 1, "split": "train", **values}


def scalars(folder):
    """All scalars of all event files in the order of writing: length, its checksum, the event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    out = []
    for path in sorted((folder / "tensorboard").iterdir(), key=lambda p: p.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            out += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return out


def test_tensorboard_shows_the_same_records(tmp_path):
    write(tmp_path, [10, 20, 30])
    write(tmp_path, [20, 30, 40], resumed_at=10)
    shown = {(step, tag): value for step, tag, value in scalars(tmp_path)}
    kept = {}
    for record in log.read_records(tmp_path / "metrics.jsonl"):
        split, step = record.pop("split"), record.pop("step")
        kept |= {(step, f"{split}/{name}"): pytest.approx(value, rel=1e-6) for name, value in record.items()}
    assert shown == kept and len(kept) == 6


DAMAGED = (b"", b"   ", b"{", b"\xff\xfe\n"[:2], b"[1]", b"null", b'{"step": "3", "split": "train"}', b'{"step": 3}')


@pytest.mark.parametrize("line", DAMAGED)
def test_a_damaged_line_costs_no_other(line, tmp_path, capsys):
    write(tmp_path, [10, 20, 30, 40])
    path = tmp_path / "metrics.jsonl"
    before = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*before[:2], line + b"\n", *before[2:]]))
    whole = [(10, "train"), (20, "train"), (20, "val"), (30, "train"), (40, "train"), (40, "val")]
    assert listed(tmp_path) == whole
    log.Log(tmp_path, 100, resumed_at=40, evaluated=40).close()
    assert path.read_bytes() == b"".join(before), "and the others stay as they are, to the byte"
    log.Log(tmp_path, 100, resumed_at=30, evaluated=20).close()
    assert listed(tmp_path) == whole[:4]
    aside = tmp_path / "metrics.jsonl.damaged"
    if line.strip():
        assert aside.read_bytes() == line + b"\n" and f"they are now in {aside}" in capsys.readouterr().out
    else:
        assert not aside.exists()


def test_numbers_that_are_not_finite_are_null(tmp_path):
    write(tmp_path, [10], values=lambda _: {"loss": float("nan"), "accuracy": float("inf"), "seen": 1})
    path = tmp_path / "metrics.jsonl"
    assert json.loads(path.read_text(), parse_constant=pytest.fail)["loss"] is None
    (record,) = log.read_records(path)
    assert math.isnan(record["loss"]) and math.isnan(record["accuracy"]) and record["seen"] == 1
    path.write_text('{"step": 10, "split": "train", "loss": NaN}\n')  # of an earlier version
    log.Log(tmp_path, 100, resumed_at=10).close()
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {"step": 10, "split": "train", "loss": None}
    log.write_json(tmp_path / "x.json", {"a": [np.float32("nan"), np.arange(2), (1, float("-inf"))], 3: None})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, [0, 1], [1, None]], "3": None}


def test_changes_of_a_file_by_many_are_all_kept(tmp_path):
    path = tmp_path / "summary.json"

    def add(i):
        log.update_json(path, lambda found: found.update({str(i): i}))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(40)))
    assert json.loads(path.read_text()) == {str(i): i for i in range(40)} and list(tmp_path.iterdir()) == [path]
    path.write_text("{")
    with pytest.raises(errors.BadRequest, match=r"summary\.json is not valid JSON"):
        log.update_json(path, lambda found: None)
    assert path.read_text() == "{"


def full(*_):
    raise OSError(28, "No space left on device")


def test_files_are_replaced_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    log.write_atomically(path, "old")
    monkeypatch.setattr(log.os, "fsync", full)
    with pytest.raises(errors.Failure, match=r"cannot write .*/summary\.json: No space left on device"):
        log.write_atomically(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_record_that_cannot_be_written_is_a_failure(tmp_path):
    writer = log.Log(tmp_path, 100)
    writer.record(1, "train", {"loss": 1.0})
    writer._file.close()
    writer._file = Full()
    with pytest.raises(errors.Failure, match=r"cannot write .*/metrics\.jsonl: No space left .* the last checkpoint"):
        writer.record(2, "train", {"loss": 1.0})
    writer.close()
    assert listed(tmp_path) == [(1, "train")]


class Full:
    """A file on a full disk: what was buffered fails again when it is closed."""

    write = flush = close = staticmethod(full)


def test_progress_is_plain_lines_off_a_terminal(tmp_path, capsys):
    write(tmp_path, [10, 20], values=lambda step: {"loss": 0.5, "images_per_second": 12345.6, "seconds": 1.0})
    out, err = capsys.readouterr()
    assert out.splitlines()[0].startswith("step 10/100 train: loss 0.5, images_per_second 12,346, eta 0:0")
    assert out.splitlines()[2] == "step 20/100 val: accuracy 20.00 %"
    assert "\x1b" not in out + err and "\r" not in out + err


@pytest.mark.full
def test_the_progress_bar_shows_step_bar_and_time_left_first(tmp_path):
    """On a terminal of 80 columns; the metrics take what room there is."""
    program = """if True:
    import sys, time
    from pathlib import Path
    from recvis_jax.training import log
    writer = log.Log(Path(sys.argv[1]), 12_000)
    for step in (50, 100):
        time.sleep(0.1)
        writer.advance(step)
        values = {"accuracy": 0.5, "learning_rate": 0.01, "loss": 0.25, "images_per_second": 12345.6, "seconds": 1.0}
        writer.record(step, "train", values)
    writer._progress.refresh()
    writer.close()
    """
    child = pexpect.spawn(sys.executable, ["-c", program, str(tmp_path)], dimensions=(24, 80), encoding="utf-8")
    child.expect(pexpect.EOF, timeout=120)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", child.before)
    line = [line for line in re.split(r"[\r\n]+", plain) if "100/12000" in line][-1]
    assert re.match(r"step +100/12000 \S+ (\d+:\d\d:\d\d|-:--:--) left loss 0\.25, accuracy 50", line), line
    assert len(line.rstrip()) <= 80
