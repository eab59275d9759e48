"""Average precision of boxes against pycocotools, against numbers by hand, and under any batching."""

import contextlib
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recvis_jax.evaluation import coco_ap, metrics

CLASSES, IMAGES, MOST, FOUND = 3, 24, 6, 130


def drawn(seed=0):
    """Outputs and batches of made-up detections: near objects or anywhere, with equal scores, crowds and areas."""
    rng = np.random.default_rng(seed)
    there = np.arange(MOST) < rng.integers(0, MOST + 1, (IMAGES, 1))
    corner = rng.integers(0, 200, (IMAGES, MOST, 2))
    side = rng.choice([6, 12, 30, 50, 90, 130], (IMAGES, MOST, 2)) + rng.integers(0, 5, (IMAGES, MOST, 2))
    boxes = np.concatenate([corner, corner + side], -1).astype(np.float32)
    labels = rng.integers(0, CLASSES, (IMAGES, MOST))
    picked = rng.integers(0, MOST, (IMAGES, FOUND))
    found = np.take_along_axis(boxes, picked[..., None], 1) + rng.integers(-4, 5, (IMAGES, FOUND, 4))
    away = rng.random((IMAGES, FOUND, 1)) < 0.5
    corner = rng.integers(0, 250, (IMAGES, FOUND, 2))
    found = np.where(away, np.concatenate([corner, corner + rng.integers(5, 90, corner.shape)], -1), found)
    found[..., 2:] = np.maximum(found[..., 2:], found[..., :2] + 1)
    own = np.where(rng.random(picked.shape) < 0.8, np.take_along_axis(labels, picked, 1), 0)
    own[0] = 1  # more than a hundred of one class
    scores = np.where(rng.random(picked.shape) < 0.4, 0, rng.integers(1, 65, picked.shape) / 64)
    outputs = {"boxes": found.astype(np.float32), "labels": own, "scores": scores.astype(np.float32)}
    batch = {"boxes": boxes, "labels": np.where(there, labels, -1), "boxes_mask": there}
    batch |= {"crowd": there & (rng.random(there.shape) < 0.15), "mask": np.ones(IMAGES, bool)}
    batch["area"] = np.float32(side.prod(-1) * rng.choice([0.5, 0.75, 1], side.shape[:2]))
    return outputs, batch | {"difficult": rng.random(there.shape) < 0.2, "image_id": np.arange(IMAGES)}


def measured(metric, outputs, batch, size=IMAGES):
    """The values, of batches of that many images; the last one is padded with NaN."""

    def part(tree, first):
        def cut(x):
            x = x[first : first + size]
            fill = np.nan if x.dtype == np.float32 else 0
            return np.concatenate([x, np.full((size - len(x), *x.shape[1:]), fill, x.dtype)])

        return {k: jnp.asarray(cut(v)) for k, v in tree.items()}

    update = jax.jit(metric.update)
    states = ({"ap": update(part(outputs, i), part(batch, i))} for i in range(0, IMAGES, size))
    return metrics.accumulate({"ap": metric}, states)


def theirs(outputs, batch):
    """pycocotools' numbers, under our names."""
    pytest.importorskip("pycocotools", reason="the reference implementation, of the extra [dev]")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def bbox(box):
        return [float(v) for v in (*box[:2], *(box[2:] - box[:2]))]

    annotations, results = [], []
    for i in range(IMAGES):
        for n in np.flatnonzero(batch["boxes_mask"][i]):
            annotations.append(dict(
                id=len(annotations) + 1, image_id=i, category_id=int(batch["labels"][i, n]),
                bbox=bbox(batch["boxes"][i, n]), area=float(batch["area"][i, n]), iscrowd=int(batch["crowd"][i, n]),
            ))  # fmt: skip
        for n in np.flatnonzero(outputs["scores"][i] > 0):
            results.append(dict(
                image_id=i, category_id=int(outputs["labels"][i, n]), bbox=bbox(outputs["boxes"][i, n]),
                score=float(outputs["scores"][i, n]),
            ))  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dict(
            images=[{"id": i} for i in range(IMAGES)], annotations=annotations,
            categories=[{"id": k} for k in range(CLASSES)], info={},
        )  # fmt: skip
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(results), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    names = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_1", "AR_10", "AR_100", "AR_small",
             "AR_medium", "AR_large"]  # fmt: skip
    return dict(zip(names, judge.stats, strict=True)), judge.eval["precision"][:, :, :, 0, 2].mean((0, 1))


@pytest.mark.parametrize("seed", range(3))
def test_all_numbers_are_those_of_pycocotools(seed):
    outputs, batch = drawn(seed)
    got = measured(coco_ap.coco(CLASSES), outputs, batch)
    stats, per_class = theirs(outputs, batch)
    assert 0.05 < stats["AP"] < 0.9 and all(v >= 0 for v in stats.values())
    for name, value in stats.items():
        assert got[name] == pytest.approx(value, abs=1e-6), name
    np.testing.assert_allclose(got["AP_per_class"], per_class, atol=1e-6)


@pytest.mark.parametrize("metric", [coco_ap.coco(CLASSES), coco_ap.voc(CLASSES)], ids=["coco", "voc"])
def test_batches_and_padding_change_nothing(metric):
    outputs, batch = drawn()
    whole = measured(metric, outputs, batch)
    for size in (1, 7):
        for name, value in measured(metric, outputs, batch, size).items():
            np.testing.assert_array_equal(value, whole[name])


def one_image(found, scores, true, **kw):
    """Boxes of one class in one image."""
    n, d = len(true), len(found)
    outputs = {"boxes": np.float32([found]), "labels": np.zeros((1, d), int), "scores": np.float32([scores])}
    batch = {"boxes": np.float32([true]).reshape(1, n, 4), "labels": np.zeros((1, n), int)}
    batch |= {"boxes_mask": np.ones((1, n), bool), "mask": np.ones(1, bool), **kw}
    return outputs, batch


def values(metric, outputs, batch):
    state = jax.tree.map(np.asarray, metric.update(outputs, batch))
    return metric.compute(state)


def test_numbers_by_hand():
    """Two objects; the best detection is right, the second wrong, the third right with an overlap of 0.75."""
    true = [[0, 0, 40, 40], [100, 100, 140, 140]]
    outputs, batch = one_image([true[0], [200, 0, 240, 40], [100, 100, 130, 140]], [0.9, 0.8, 0.7], true)
    got = values(coco_ap.coco(1), outputs, batch)
    half = 51 / 101  # recalls 0, 0.01, ..., 0.5 at a precision of 1
    assert got["AP50"] == pytest.approx(half + 50 / 101 * 2 / 3)
    assert got["AP75"] == pytest.approx(half + 50 / 101 * 2 / 3)
    assert got["AP"] == pytest.approx(half + 0.6 * 50 / 101 * 2 / 3), "of ten overlaps the first six"
    assert got["AR_1"] == 0.5 and got["AR_100"] == pytest.approx(0.8)
    assert np.isnan(got["AP_small"]) and got["AP_medium"] == got["AP"] and np.isnan(got["AP_large"])
    voc = values(coco_ap.voc(1), outputs, batch)
    assert voc["voc_AP"] == pytest.approx(0.5 + 0.5 * 2 / 3)
    eleven = values(coco_ap.voc(1, "voc11"), outputs, batch)
    assert eleven["voc_AP"] == pytest.approx((6 + 5 * 2 / 3) / 11)


def test_second_detections_are_wrong_and_difficult_objects_do_not_count():
    true = [[0, 0, 40, 40], [100, 100, 140, 140]]
    outputs, batch = one_image([true[0], true[0], true[1]], [0.9, 0.8, 0.7], true)
    assert values(coco_ap.voc(1), outputs, batch)["voc_AP"] == pytest.approx(0.5 + 0.5 * 2 / 3)
    batch["difficult"] = np.array([[False, True]])
    assert values(coco_ap.voc(1), outputs, batch)["voc_AP"] == 1


def test_overlaps_are_measured_in_the_picture_as_it_was():
    """A picture of 40x80 in the upper half of an image of 32x32, and all boxes in pixels of the image."""
    outputs, batch = one_image([[0, 0, 16, 8]], [0.5], [[0, 0, 16, 8]])
    batch |= {"frame": np.float32([[0, 0, 32, 16]]), "size": np.int32([[40, 80]])}
    state = coco_ap.coco(1).update(outputs, batch)
    np.testing.assert_allclose(state["true"][0], [[0, 0, 40, 20]])
    np.testing.assert_allclose(state["area"][0], [800])


def test_no_objects_and_no_detections():
    outputs, batch = one_image([[0, 0, 4, 4]], [0.0], [[0, 0, 4, 4]])
    assert values(coco_ap.coco(2), outputs, batch)["AP"] == 0
    batch["boxes_mask"] = np.zeros((1, 1), bool)
    assert np.isnan(values(coco_ap.coco(2), outputs, batch)["AP"])
    assert np.isnan(values(coco_ap.voc(2), outputs, batch)["voc_AP"])
