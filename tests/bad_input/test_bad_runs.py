"""Folders of runs of which something is damaged, missing, or another thing: what looks at them, and what goes on."""

import functools
import itertools
import json
import shutil
import sys
from unittest import mock

import harness
import jax
import numpy as np
import programs
import pytest
import small
from harness import Case

from recvis_jax import trained
from recvis_jax.training import checkpoint, log

SEED = 2


@pytest.fixture(scope="module")
def run(program, tmp_path_factory):
    """The folder of a short run, never changed."""
    folder = tmp_path_factory.mktemp("trained")
    flag = programs.write_config(folder / "config.py", small.sections(steps=20, eval_every=10, checkpoint_every=10))
    done = program("train", flag, f"--workdir={folder}/run")
    assert done.code == 0, done.err
    return folder / "run"


def copied(run, folder):
    """A copy without what no case looks at."""
    return shutil.copytree(run, folder / "run", ignore=shutil.ignore_patterns("tensorboard", "*.png"))


def look(folder):
    """As `evaluate`, `predict`, `features` and `probe` open a run."""
    return trained.of_run(folder, trained.read_config(folder), "last")


# --- config.json and data.json ---


def not_json(data):
    try:
        json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return True
    return False


def json_files(data):
    """What may have become of a JSON file: what is wrong -> bytes."""
    rng = np.random.default_rng(SEED)
    yield from ((f"cut to {what}", part) for what, part in harness.cuts(data, 8).items() if not_json(part))
    bad = ((w, d) for w, d in harness.flips(data, rng) if not_json(d))
    yield from ((f"{w} flipped", d) for w, d in itertools.islice(bad, 8))
    yield from {
        "zeros": bytes(len(data)), "zeros at the end": data[:-60] + bytes(60), "a list": b"[]", "null": b"null",
        "a number": b"1", "a text": b'"x"', "twice": data + data, "Windows text": data.decode().encode("utf-16"),
        "no UTF-8": data[:-3] + b"\xff\xfe" + data[-3:], "NaN": data[: data.rindex(b"}")] + b', "x": NaN}', "deep": b"[" * 100_000,
        "a huge number": data[: data.rindex(b"}")] + b', "x": 1e999}', "a pickle": b"\x80\x04K\x01.", "a conflict":
        b"<<<<<<< HEAD\n" + data + b"=======\n" + data + b">>>>>>> x\n", "a name twice": data[: data.rindex(b"}")] + b", " + data[data.index(b'"') :],
    }.items()  # fmt: skip


def values(data, keys, wrong):
    """The same object with one key of another value, or gone."""
    for key, value in itertools.product(keys, wrong):
        new = json.loads(data)
        *parents, last = key.split(".")
        node = functools.reduce(lambda n, k: n[k], parents, new)
        if value == "GONE":
            del node[last]
        elif type(node[last]) is type(value) and not isinstance(value, (dict, list)):
            continue
        else:
            node[last] = value
        yield f"{key} is {str(value)[:20]!r}", json.dumps(new).encode(), (key, last, key.partition(".")[0])


def document_cases(run):
    config, data = ((run / name).read_bytes() for name in ("config.json", "data.json"))
    for name, content in (("config.json", config), ("data.json", data)):
        for what, bad in json_files(content):
            yield Case(f"{name}: {what}", functools.partial(_replaced, run, name, bad), (name,))
        for what, make in harness.irregular(name).items():
            if name == "config.json" or what not in ("a link to nothing", "a link to itself"):  # then there is none
                yield Case(f"{name} is {what}", functools.partial(_made, run, name, make), (name,))
    wrong = ("GONE", None, 3.5, [1], {"a": 1}, "x" * 100_000)
    sections = ("data", "model", "optim", "data.name", "data.statistics", "model.name", "model.hidden")
    for what, bad, names in values(config, sections, wrong):
        if what not in (
            "data.statistics is 'GONE'",
            "model.hidden is 'GONE'",
            "model.hidden is '[1]'",
            "data.name is 'GONE'",
        ):
            yield Case(
                f"config.json: {what}", functools.partial(_replaced, run, "config.json", bad), (*names, "config.json")
            )
    for key, value in (("statistics", "no such"), ("statistics", [[0.5, 0.5], [1.0, 1.0]]), ("statistics", [[0.5], ["a"]]),
                       ("statistics", []), ("buckets", {"words": [8]}), ("classes", [None]), ("fields", [1])):  # fmt: skip
        new = json.loads(config)
        bad = json.dumps({**new, "data": {**new["data"], key: value}}).encode()
        yield Case(f"config.json: data.{key}={value}", functools.partial(_replaced, run, "config.json", bad), (key,))
    keys = [*json.loads(data), *(f"splits.train.{k}" for k in json.loads(data)["splits"]["train"])]
    for what, bad, _ in values(data, keys, ("GONE", None, {"a": 1}, -7)):
        if what == "fields is 'GONE'":  # as in runs of before there were fields
            continue
        yield Case(f"data.json: {what}", functools.partial(_replaced, run, "data.json", bad), ("data.json",))
    for key, value in (("num_classes", 3), ("image_shape", [8, 8]), ("image_shape", [8, -8, 1]), ("image_shape", [0, 8, 1]),
                       ("image_shape", [10**9, 10**9, 3]), ("class_names", ["a"]), ("class_names", [1] * 10), ("splits", {}),
                       ("num_classes", 10**12), ("image_shape", [8, 8, 10**9]), ("splits", {"train": 1})):  # fmt: skip
        bad = json.dumps({**json.loads(data), key: value}).encode()
        yield Case(f"data.json: {key}={value}", functools.partial(_replaced, run, "data.json", bad), ("data.json", key))


def _replaced(run, name, data, folder):
    copy = copied(run, folder)
    (copy / name).write_bytes(data)
    look(copy)


def _made(run, name, make, folder):
    copy = copied(run, folder)
    make(copy)
    look(copy)


@pytest.mark.full
def test_damaged_documents(run, tmp_path):
    look(run)
    harness.hold(list(document_cases(run)), tmp_path)


# --- checkpoints ---


def arrays(state):
    return {jax.tree_util.keystr(k): np.asarray(x).tobytes() for k, x in jax.tree_util.tree_leaves_with_path(state)}


def damage(path, rng):
    """What may have become of a file of a checkpoint: what -> function that does it to the path."""
    size = path.stat().st_size

    def put(data):
        return lambda p: p.write_bytes(data)

    data = path.read_bytes()
    out = {"is gone": lambda p: p.unlink(), "is empty": put(b""), "is zeros": put(bytes(size))}
    out["is cut"] = put(data[: int(rng.uniform(0, 1) * size)])
    out |= {f"has {w} flipped": put(d) for w, d in itertools.islice(harness.flips(data, rng), 2)} if size else {}
    out["is noise"] = put(rng.bytes(max(size, 40)))
    for what in ("a pipe", "a folder"):
        make = harness.irregular(path.name)[what]
        out[f"is {what}"] = lambda p, make=make: make(p.parent)
    return out


def checkpoint_cases(run, template, which):
    """Each file of the newest checkpoint: it is named as damaged, or what is restored is what was saved."""
    step = programs.steps(run, which)[-1]
    rng = np.random.default_rng(SEED)
    good = {}
    for s in programs.steps(run, which):
        found = checkpoint.Checkpointer(run, template, read_only=True).restore(s)
        good[s] = arrays(found.state)

    def restore(name, harm, folder):
        copy = copied(run, folder)
        harm(copy / name)
        before = sorted(p.relative_to(copy) for p in copy.rglob("*"))
        said = []
        found = checkpoint.Checkpointer(copy, template, say=said.append, read_only=True).restore(which)
        assert arrays(found.state) == good[found.step], "another state than was saved"
        assert found.step == step or any(str(step) in line for line in said), "an older one without a word"
        assert sorted(p.relative_to(copy) for p in copy.rglob("*")) == before, "a reader changed the folder"

    files = sorted(p for p in (run / "checkpoints" / which / str(step)).rglob("*") if p.is_file())
    for i, path in enumerate(files):
        name = path.relative_to(run)
        harms = list(damage(path, rng).items())
        # The best are read as the last are: of each file two kinds of damage, others of the next file.
        for what, harm in harms if which == "last" else harms[i % 4 :: 4]:
            yield Case(
                f"{name} {what}",
                functools.partial(restore, name, harm),
                (f"{which}/{step}", f"step {step}", which),
                True,
            )


@pytest.mark.parametrize("which", ["best", "last"])
@pytest.mark.full
def test_damaged_checkpoints(run, which, tmp_path):
    template = trained.make_run(trained.read_config(run)).template
    harness.hold(list(checkpoint_cases(run, template, which)), tmp_path)


# --- records ---

LINES = {
    "blank": b"", "a space": b" ", "cut": b'{"step": 15, "split": "tr', "text": b"hello", "no UTF-8": b'{"step": 15, "split": "\xff"}',
    "zeros": bytes(40), "a number": b"15", "a list": b"[]", "null": b"null", "no step": b'{"split": "train", "loss": 1.0}',
    "no split": b'{"step": 15}', "a step of text": b'{"step": "15", "split": "train"}', "a step of nothing": b'{"step": null, "split": "val"}',
    "two in one": b'{"step": 15, "split": "val"}{"step": 15, "split": "val"}', "deep": b"[" * 50_000, "a megabyte": b"x" * 2**20,
    "an escape": b"\x1b[2J", "a step of 10^400": b'{"step": 1' + b"0" * 400 + b', "split": "val"}', "a step of a fraction": b'{"step": 1.5, "split": "val"}',
}  # fmt: skip


def open_log(folder):
    """As a run does that goes on; without TensorBoard's writer, which pickles what it hands to its own thread."""
    with mock.patch.dict(sys.modules, tensorboardX=None):
        log.Log(folder, 20, resumed_at=20, evaluated=20).close()


def record_cases(run):
    """Records beside a damaged line are never lost, whoever reads or goes on."""
    good = (run / "metrics.jsonl").read_bytes().splitlines()
    for (what, line), at in itertools.product(LINES.items(), (0, 2, len(good))):

        def go_on(folder, line=line, at=at):
            copy = copied(run, folder)
            path = copy / "metrics.jsonl"
            path.write_bytes(b"\n".join([*good[:at], line, *good[at:]]) + b"\n")
            log.read_records(path)
            open_log(copy)
            kept = path.read_bytes().splitlines()
            assert [x for x in kept if x in good] == good, "records were lost"

        yield Case(f"a line {at} that is {what}", go_on, ("metrics.jsonl",), True)
    for what, make in harness.irregular("metrics.jsonl").items():
        if what in ("a link to nothing", "a link to itself"):  # then there is none
            continue

        def read(folder, make=make):
            copy = copied(run, folder)
            make(copy)
            open_log(copy)

        yield Case(f"metrics.jsonl is {what}", read, ("metrics.jsonl",))


@pytest.mark.full
def test_damaged_records(run, tmp_path):
    harness.hold(list(record_cases(run)), tmp_path)


SUMMARIES = {
    "cut": b'{"final": {"step"', "empty": b"", "a list": b"[]", "no UTF-8": b'{"\xff": 1}', "NaN": b'{"x": NaN}', "deep": b"[" * 100_000,
}  # fmt: skip


@pytest.mark.full
def test_damaged_summaries(run, program, tmp_path):
    """`evaluate` adds to the summary of a run; a damaged one is named, and nothing of it is lost."""
    copy = copied(run, tmp_path)
    for what, data in SUMMARIES.items():
        (copy / "summary.json").write_bytes(data)
        got = program("evaluate", f"--workdir={copy}", "--split=val")
        lines = got.err.splitlines()
        assert "summary.json" in got.err + got.out and "Traceback" not in got.err + got.out, (what, got)
        assert got.code in (0, 1, 2) and len(lines) == (got.code != 0), (what, got)
        kept = [p.read_bytes() for p in copy.iterdir() if p.is_file() and "summary" in p.name]
        assert data in kept, what
    (copy / "summary.json").unlink()
    harness.irregular("summary.json")["a pipe"](copy)
    got = program("evaluate", f"--workdir={copy}", "--split=val")
    assert "summary.json" in got.err + got.out and "Traceback" not in got.err, got
