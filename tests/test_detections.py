"""A small detector's and a small segmenter's whole way: train, evaluate, predict on pictures of another size."""

import json
import re

import cv2
import numpy as np
import PIL.Image
import programs
import pytest

import recvis_jax as rv
from recvis_jax import reporting, worst_objects
from recvis_jax.data import coco, sources
from recvis_jax.errors import BadRequest

BACKBONE = dict(name="resnet18", norm="group", norm_groups=2, width=4, blocks=(1, 1))
SECTIONS = dict(
    seed=0, steps=4, batch_size=8, eval_batch_size=8, eval_every=4, checkpoint_every=4, log_every=2,
    data=dict(
        name="fashion_scenes", mock=16, train="train[:50%]", val="train[50%:]", test="test", most_objects=4,
        statistics=((0.3,), (0.25,)), augment="flip",
    ),
    optim=dict(name="adam", lr=1e-3),
)  # fmt: skip
SMALL = dict(queries=5, width=8, heads=2, encoder_depth=1, decoder_depth=1, hidden=8)
RUNS = {
    "detect": (dict(name="detr_tiny", backbone=BACKBONE, **SMALL), ("image", "boxes", "labels", "size", "frame")),
    "segment": (dict(name="fcn_r50", num_classes=11, backbone=BACKBONE, norm="none"), ("image", "masks", "labels")),
}


@pytest.fixture(scope="module", params=RUNS)
def run(request, program, tmp_path_factory):
    """(name of the task, folder of a finished run)."""
    folder, (model, fields) = tmp_path_factory.mktemp(request.param), RUNS[request.param]
    sections = SECTIONS | {"model": model, "task": dict(name=request.param)}
    sections["data"] = SECTIONS["data"] | {"fields": fields}
    got = program("train", programs.write_config(folder / "config.py", sections), f"--workdir={folder / 'run'}")
    assert got.code == 0, got.err
    return request.param, folder / "run"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two pictures, neither of the run's size."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, shape in (("wide", (60, 120)), ("high", (130, 90))):
        pixels = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
        assert cv2.imwrite(str(folder / f"{name}.png"), pixels)
    return folder


def test_evaluate_prints_the_table(run, program):
    task, folder = run
    got = program("evaluate", f"--workdir={folder}", "--checkpoint=last", *(["--metrics=voc_ap"] * (task == "detect")))
    assert got.code == 0, got.err
    names = ["AP", "AP50", "AP_small", "AR_100", "voc_AP"] if task == "detect" else ["mIoU", "pixel_accuracy"]
    for name in names:
        assert re.search(rf"^  {name}: \d\.\d{{4}}$", got.out, re.MULTILINE), got.out
    assert "next: python -m recvis_jax.predict --weights=" in got.out


def test_the_report_shows_the_worst_pictures(run):
    task, folder = run
    page = reporting.of_runs([folder], checkpoint="last")
    assert ("Objects, worst first" in page) == (task == "detect")


def test_mistakes_are_those_of_matched_boxes():
    box = np.array([[0.0, 0, 4, 4]])
    for found, labels, share in (
        (box, [0], 0), (box, [1], 1), (box + 9, [0], 1), (box.repeat(2, 0), [0, 0], 1 / 3), (box[:0], [], 1),
    ):  # fmt: skip
        got = worst_objects.mistakes(found, np.array(labels, int), box, np.array([0]))
        assert got == pytest.approx(share)
    assert worst_objects.mistakes(box[:0], np.zeros(0, int), box[:0], np.zeros(0, int)) == 0


def test_predict_draws_and_writes(run, program, pictures):
    task, folder = run
    flags = (f"--weights={folder}@last", "--threshold=0.02", str(pictures)) if task == "detect" else ()
    got = program("predict", *(flags or (f"--weights={folder}@last", str(pictures))))
    assert got.code == 0, got.err
    out = folder / "predictions"
    sizes = {"wide": (120, 60), "high": (90, 130)}
    for name, (w, h) in sizes.items():
        drawn = PIL.Image.open(out / f"{name}.png")
        scale = 400 // max(w, h)
        assert drawn.mode == "RGB" and drawn.size == (scale * w, scale * h)
    if task == "segment":
        shares = [float(x) for x in re.findall(r"^ +([\d.]+)%  ", got.out, re.MULTILINE)]
        assert sum(shares) == pytest.approx(200, abs=0.1)
        return
    found = json.loads((out / "detections.json").read_text())
    again = coco.read(out / "detections.json", out)
    assert again.classes == sources.open_split("fashion_scenes", "train", mock=2).class_names
    assert len(found["images"]) == 2 and {p.size for p in again.pictures} == {(60, 120), (130, 90)}
    assert found["annotations"], "all of at least 1 %"
    for a in found["annotations"]:
        picture = found["images"][a["image_id"] - 1]
        x, y, w, h = a["bbox"]
        assert min(x, y) >= 0 and x + w <= picture["width"] + 1e-3 and y + h <= picture["height"] + 1e-3
        assert 0.01 <= a["score"] <= 1
    assert len(re.findall(r"^ +[\d.]+%  \d  x ", got.out, re.MULTILINE)) == sum(
        a["score"] >= 0.02 for a in found["annotations"]
    )


def test_the_library_finds_the_same(run):
    task, folder = run
    model = rv.open(folder, "last")
    images = np.random.default_rng(1).integers(0, 255, (3, 96, 96, 1)).astype(np.uint8)
    shapes = {k: v.shape for k, v in model.detect(images).items()}
    of_boxes = {"boxes": (3, 5, 4), "labels": (3, 5), "scores": (3, 5)}
    assert shapes == (of_boxes if task == "detect" else {"map": (3, 96, 96)})
    with pytest.raises(BadRequest, match="not classes of images: see `detect`"):
        model.predict(images)
