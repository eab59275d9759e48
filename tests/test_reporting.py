"""The page of a run: written by training and by the program alike, with or without data, of one run or of several."""

import json
import shutil
import time

import jax.numpy as jnp
import numpy as np
import programs
import pytest
import small

from recvis_jax import environment, errors, evidence, reporting
from recvis_jax.evaluation import metrics, outcomes
from recvis_jax.vis import run_page


@pytest.fixture(scope="module")
def run(program, tmp_path_factory):
    """A run that `train` has written a page of; and what it printed."""
    root = tmp_path_factory.mktemp("report")
    flag = programs.write_config(root / "config.py", small.sections())
    done = program("train", flag, f"--workdir={root / 'run'}", "--report")
    assert done.code == 0, done.err
    return root / "run", done.out


def copied(run, folder):
    return shutil.copytree(run, folder, ignore=shutil.ignore_patterns("tensorboard", "report.html"))


def report(program, *flags, code=0):
    done = program("report", *flags)
    assert done.code == code and "Traceback" not in done.err, done
    assert code == 0 or len(done.err.splitlines()) == 1, done.err
    return done.out + done.err


def test_training_writes_the_page_and_says_where(run):
    folder, text = run
    page = (folder / "report.html").read_text()
    assert f"report: {folder / 'report.html'}" in text
    summary = json.loads((folder / "summary.json").read_text())
    for value in (summary["best"]["val"]["accuracy"], summary["best"]["test"]["accuracy"]):
        assert f"{100 * value:.2f} ±" in page
    for part in ("Curves", "Confusions, 144 validation examples", "Worst", "Most confident and wrong", "Random", "mlp"):
        assert part in page, part
    assert page.count("<img") >= 24 and "recvis_jax.train" in page


@pytest.mark.full
def test_the_program_writes_the_same_bytes_every_time(run, program):
    folder, _ = run
    first = (folder / "report.html").read_bytes()
    for name in ("a.html", "b.html"):
        text = report(program, folder, f"--out={folder / name}", "--examples=1000")  # as training does
        assert str(folder / name) in text and (folder / name).read_bytes() == first
        (folder / name).unlink()


@pytest.mark.full
def test_predictions_are_those_of_the_evaluation(run):
    """Counts of the page's matrix against the accuracy that training measured, and probabilities against numpy."""
    folder, _ = run
    records = evidence.read(folder)
    seen = reporting._look(records, "best", None, 10_000, lambda *_: None)
    split = seen.splits["val"]
    assert split.outcomes.accuracy == pytest.approx(records.summary["best"]["val"]["accuracy"])
    scores = np.array([[2.0, 1.0, 0.5]] * 2 + [[np.nan, 0, 0]], np.float32)
    found = outcomes.of_scores(jnp.array(scores), jnp.array([0, 2, 1]))
    p = np.exp(scores[0]) / np.exp(scores[0]).sum()
    np.testing.assert_allclose(found["p_true"], [p[0], p[2], 0], rtol=1e-6)
    np.testing.assert_allclose(found["p_predicted"], [p[0], p[0], 0], rtol=1e-6)
    assert found["predicted"].tolist()[:2] == [0, 0] and int(found["predicted"][2]) != 1
    metric = metrics.accuracy()
    batch = {"label": np.array([0, 2, 1]), "mask": np.ones(3, bool)}
    measured = metrics.accumulate({"a": metric}, [{"a": metric.update({"logits": scores}, batch)}])
    assert measured["accuracy"] == np.mean(np.array(found["predicted"]) == batch["label"])


def test_without_data_the_rest_is_there(run, program, tmp_path):
    folder = copied(run[0], tmp_path / "run")
    for name in ("config.json", "data.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace('"digits"', '"gone"', 1))
    report(program, folder, f"--data_dir={tmp_path}")
    page = (folder / "report.html").read_text()
    assert "The data are not available" in page and "gone" in page
    assert "Curves" in page and "Throughput" in page and "Worst" not in page


def test_without_a_checkpoint_the_rest_is_there(run, program, tmp_path):
    folder = copied(run[0], tmp_path / "run")
    shutil.rmtree(folder / "checkpoints")
    (folder / "summary.json").unlink()
    report(program, folder)
    page = (folder / "report.html").read_text()
    assert "There is no model" in page and "Curves" in page
    assert "checkpoint" in report(program, folder, "--checkpoint=best", code=2)


@pytest.mark.full
def test_runs_side_by_side(run, program, tmp_path):
    other = copied(run[0], tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["optim"]["weight_decay"] = 0.125
    (other / "config.json").write_text(json.dumps(config))
    report(program, run[0], other, f"--out={tmp_path / 'two.html'}")
    page = (tmp_path / "two.html").read_text()
    part = page[page.index("What differs") : page.index("Loss, training")]
    assert "optim.weight_decay" in part and "0.125" in part and "0.0001" in part and "seed" not in part
    assert "2 runs" in page and page.count("Nothing stands out") + page.count('class="finding') >= 2


@pytest.mark.full
def test_a_run_that_diverges_has_a_page(program, tmp_path):
    sections = small.sections(task=dict(name="classify", loss="l2"), optim__lr=100.0, log_every=1)
    flag = programs.write_config(tmp_path / "config.py", sections)
    done = program("train", flag, f"--workdir={tmp_path / 'run'}", "--report")
    assert done.code == 1 and "report:" in done.out and "(The training diverged.)" in done.out
    page = (tmp_path / "run/report.html").read_text()
    assert "The training diverged." in page and "at step" in page


@pytest.mark.full
def test_no_page_where_none_is_wanted(program, tmp_path):
    flag = programs.write_config(tmp_path / "config.py", small.sections(steps=20))
    done = program("train", flag, f"--workdir={tmp_path / 'run'}", "--report=false")
    assert done.code == 0 and "report" not in done.out and not (tmp_path / "run/report.html").exists()


def test_records_of_any_content_make_a_page(run, tmp_path):
    folder = copied(run[0], tmp_path / "run")
    shutil.rmtree(folder / "checkpoints")
    huge, bad = "1" + 400 * "0", ("[1]", "x", '{"step": 1}', "")
    values = ("true", '"text"', "null", huge, "-1e308", "[1]", "1e-320")
    lines = [f'{{"step": {s}, "split": "{split}", "loss": {v}, "accuracy": {v}, "learning_rate": {v}, "seconds": {v}}}'
             for s in (5, -5, huge) for split in ("train", "val", "failure", "<b>") for v in values]  # fmt: skip
    (folder / "metrics.jsonl").write_text("\n".join([*bad, *lines]) + "\n")
    page = reporting.of_runs([folder])
    assert "diverged" in page and "<b>" not in page.replace('"><b>', "")


DAMAGED = {
    "config.json": b'{"data": ',
    "data.json": b'{"name": "x"}',
    "summary.json": b"[1, 2",
    "environment.json": b'{"lives": 3}',
}


@pytest.mark.every
@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_named(name, run, program, tmp_path):
    folder = copied(run[0], tmp_path / "run")
    (folder / name).write_bytes(DAMAGED[name])
    assert name in report(program, folder, code=2)
    assert not (folder / "report.html").exists()


def test_other_bad_requests(run, program, tmp_path):
    assert "no config.json" in report(program, tmp_path, code=2)
    assert "no run is given" in report(program, code=2)
    assert "given twice" in report(program, run[0], run[0], code=2)
    folder = copied(run[0], tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    summary["evaluations"] = {"test": {"best": {"confusion_matrix": [[1, 2], [3, "x"]]}}}
    (folder / "summary.json").write_text(json.dumps(summary))
    shutil.rmtree(folder / "checkpoints")
    assert "confusion matrix" in report(program, folder, code=2)
    del summary["evaluations"]
    summary["final"]["val"] = 3
    (folder / "summary.json").write_text(json.dumps(summary))
    assert "final.val" in report(program, folder, code=2)


@pytest.mark.full
def test_a_long_run_of_a_thousand_classes(tmp_path):
    """From its files alone: 100,000 records and a confusion matrix of a million numbers."""
    folder, k = tmp_path / "run", 1000
    folder.mkdir()
    rng = np.random.default_rng(0)
    steps = np.arange(1, 100_001) * 10
    splits = {"train": 1_280_000, "val": 50_000}
    held = {s: {"split": s, "examples": n, "digest": "x"} for s, n in splits.items()}
    info = dict(
        name="many", num_classes=k, class_names=[f"class of many words, number {i}" for i in range(k)],
        multi_label=False, image_shape=[224, 224, 3], eval_transform="", statistics="imagenet", splits=held,
    )  # fmt: skip
    sections = small.sections()
    (folder / "config.json").write_text(json.dumps(sections))
    (folder / "data.json").write_text(json.dumps(info))
    loss = 7 / (1 + steps / 1e5) + rng.uniform(0, 0.3, len(steps))
    rows = (
        {"step": int(s), "split": "val" if s % 1000 == 0 else "train", "loss": x, "accuracy": 1 - x / 8}
        for s, x in zip(steps, loss.round(4).tolist(), strict=True)
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = rng.integers(0, 3, (k, k)) + np.diag(rng.integers(0, 50, k))
    found = {"test": {"best": {"step": 10, "confusion_matrix": counts.tolist()}}}
    (folder / "summary.json").write_text(json.dumps({"evaluations": found}))
    began = time.process_time()
    page = reporting.of_runs([folder])
    assert time.process_time() - began < 30 and len(page.encode()) < run_page.LIMIT
    worst = int(np.argmin(np.diag(counts) / counts.sum(1)))
    table = page[page.index("1,000 classes") :]
    assert table.index(f"number {worst}<") < table.index(f"number {int(np.argmax(np.diag(counts)))}<")


def test_lives_are_noted(tmp_path):
    for _ in range(3):
        environment.note(tmp_path)
    first, *_, last = environment.read(tmp_path)
    assert last["jax"] and last["devices"].startswith("8 x") and first.keys() == last.keys()
    (tmp_path / environment.FILE).write_text("[]")
    with pytest.raises(errors.BadRequest):
        environment.read(tmp_path)
    environment.note(tmp_path)
    assert len(environment.read(tmp_path)) == 1
