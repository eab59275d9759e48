"""A user's own annotated pictures: from the folder to a run that is opened without them, with a toy of an objective."""

import shutil

import drawn
import numpy as np
import optax
import pytest
import toy_boxes

import recvis_jax as rv
from recvis_jax import build, describe, errors
from recvis_jax.data import data_info, fields, pipeline, sources, transforms
from recvis_jax.planning import sizes

SPEC = "resize_pad(64)"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(data, folder of the pictures, data_dir)."""
    base = tmp_path_factory.mktemp("own")
    folder = drawn.coco(base / "mine")
    data = rv.data.open(
        folder, data_dir=str(base / "data"), transform=SPEC, eval_transform=SPEC, augment="flip", visible=0.2,
        fields=("image", "boxes", "labels", "frame"),
    )  # fmt: skip
    return data, folder, base / "data"


@pytest.fixture(scope="module")
def run(made):
    model = toy_boxes.Boxes()
    return rv.fit(
        model, made[0], optax.adam(3e-3), steps=40, batch_size=8, task=toy_boxes.task(model), eval_every=20,
        progress=False,
    )  # fmt: skip


@pytest.mark.full
def test_a_toy_learns_where_the_objects_are(run, made):
    losses = [r["loss"] for r in run.history if r["split"] == "train"]
    assert losses[-1] < 0.6 * losses[0]
    found = run.evaluate("test")
    assert found["loss"] == pytest.approx(found["edges_loss"] + found["classes_loss"], rel=1e-6)
    assert run.features(made[0].val, "hidden").shape == (2, 64), "features of a split without labels"


@pytest.mark.full
def test_the_run_is_opened_without_its_data(run, made, tmp_path):
    data, folder, data_dir = made
    saved = run.save(tmp_path / "run")
    for place in (folder, data_dir):
        shutil.move(place, tmp_path / place.name)
    try:
        again = rv.open(saved, model=run.run.model, task=run.run.task)
        assert again.run.data.info.fields == data.info.fields and again.classes == drawn.CLASSES
        images = np.stack([e["image"][:40, :64] for e in [drawn.drawing(n)._asdict() for n in (0, 1)]])
        padded = np.pad(images, ((0, 0), (0, 24), (0, 0), (0, 0)))
        np.testing.assert_array_equal(again.features(padded, "hidden"), run.features(padded, "hidden"))
        with pytest.raises(errors.BadRequest, match="no data set 'mine'"):
            again.evaluate("test")
    finally:
        for place in (folder, data_dir):
            shutil.move(tmp_path / place.name, place)
    assert rv.open(saved, model=run.run.model, task=run.run.task).evaluate("test") == pytest.approx(
        run.evaluate("test")
    )
    recorded = data_info.read(saved)
    others = tuple(f for f in data.info.fields if f.name != "labels")
    with pytest.raises(errors.BadRequest, match="fields labels then, none now"):
        data_info.check(recorded, data.info._replace(fields=others), going_on=True)
    fuller = tuple(f._replace(most=9) if f.most else f for f in data.info.fields)
    data_info.check(
        recorded, data.info._replace(fields=fuller), going_on=True
    )  # to how many it is padded is no difference


def test_an_objective_of_labels_is_refused(made):
    with pytest.raises(
        errors.BadRequest, match="mine has no label of a whole example, only image, boxes, labels, frame"
    ):
        build.make_task(made[0], toy_boxes.Boxes())


def test_hosts_divide_batches_with_masks(made):
    source = sources.open_split("mine", "train", data_dir=str(made[2]))
    transform = transforms.parse("random_size_crop(30, 60)|flip|resize_pad(32)", source.fields).fn
    places = [pipeline.Placement((i, n), lambda b: b, None, None, None, None) for n in (1, 2) for i in range(n)]
    whole, *halves = (
        list(
            pipeline.train_batches(
                source, source, batch_size=4, seed=1, start=0, stop=4, placement=place, transform=transform, threads=2
            )
        )
        for place in places
    )
    for step, parts in zip(whole, zip(*halves, strict=True), strict=True):
        assert step["masks"].shape == (4, 3, 32, 32) and step["masks"].dtype == bool
        for name, value in step.items():
            np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), value, err_msg=name)


def test_mock_data_have_the_same_fields(made):
    source = sources.open_split("mine", "train", data_dir=str(made[2]), mock=6)
    real = sources.open_split("mine", "train", data_dir=str(made[2]))
    assert source.fields == real.fields and source.length == 6 and source.class_names == real.class_names
    for a, b in zip(source.read(range(6)), source.read(range(6)), strict=True):
        fields.stack([a], source.fields)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    scenes = sources.open_split("fashion_scenes", "train", mock=4, fields=("image", "boxes", "labels"), most_objects=4)
    assert pipeline.stack(scenes.read([0]), scenes, True)["boxes"].shape == (1, 4, 4)
    with pytest.raises(errors.BadRequest, match="fashion_mnist has no boxed objects"):
        sources.open_split("fashion_mnist", "train", mock=4, fields=("boxes",))


def test_describe_and_plan_know_what_the_data_hold(made):
    data = dict(name="mine", data_dir=str(made[2]), transform=SPEC, eval_transform=SPEC, val=None, test=None)
    assert sizes.examples_of(data)[0] == (8, "the data set itself, mine/train")
    found = describe.describe(toy_boxes.Boxes(), made[0].image_shape)
    assert found["parameters"] == 8 * 8 * 3 * 64 + 64 + 64 * 21 + 21
