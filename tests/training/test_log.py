"""What a run leaves behind: records that survive crashes, and folders that are taken up again only by their own run."""

import json
import struct

import pytest

from recvis_jax import config, errors
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


def test_a_folder_belongs_to_one_config(tmp_path):
    one = {"seed": 0, "optim": {"lr": 0.1, "name": "sgd"}, "data": {"train": ["a", "b"]}}
    folder = log.open_workdir(tmp_path / "new/run", one, config.differences)
    assert json.loads((folder / "config.json").read_text()) == one
    same = {**one, "data": {"train": ("a", "b")}}  # tuples of kwargs are the lists of JSON
    assert log.open_workdir(folder, same, config.differences) == folder
    other = {"seed": 0, "optim": {"lr": 0.2, "name": "sgd"}, "data": {"train": ["a", "b"], "val": "c"}, "steps": 7}
    with pytest.raises(errors.BadRequest) as caught:
        log.open_workdir(folder, other, config.differences)
    assert "holds a run of another config" in str(caught.value)
    assert "Differing: data.val: None -> 'c'; optim.lr: 0.1 -> 0.2; steps: None -> 7" in str(caught.value)
    assert json.loads((folder / "config.json").read_text()) == one


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.BadRequest, match=r"cannot write to the workdir .*/file/run: Not a directory"):
        log.open_workdir(tmp_path / "file/run", {}, config.differences)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(errors.BadRequest, match=r"config.json is not valid JSON .*; is this the folder of a run\?"):
        log.open_workdir(tmp_path, {}, config.differences)


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
