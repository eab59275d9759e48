"""Sliding windows: their geometry and labels worked by hand, and sources of them."""

import math
from fractions import Fraction

import numpy as np
import pytest

from recvis_jax import errors
from recvis_jax.data import sources, transforms, windows

RNG = np.random.default_rng(0)


def test_grid_of_a_square_by_hand():
    """8x8, λ = 1 and 2: the whole, and three by three windows of side 4 at steps of 2."""
    found = windows.grid(8, 8, (1, 2))
    expected = [[0, 0, 8, 8]] + [[y, x, y + 4, x + 4] for y in (0, 2, 4) for x in (0, 2, 4)]
    np.testing.assert_array_equal(found, expected)


def test_grid_of_an_oblong_by_hand():
    """6x9, λ = 1: side 6, of which a step is at most 3: two windows; λ = 1.5: side 4 at 0, 2 by 0, 1, 3, 5 (of 5/3)."""
    found = windows.grid(6, 9, (1, 1.5))
    expected = [[0, 0, 6, 6], [0, 3, 6, 9]] + [[y, x, y + 4, x + 4] for y in (0, 2) for x in (0, 1, 3, 5)]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("overlap", [Fraction(0), Fraction(1, 2), Fraction(2, 3), Fraction(9, 10)])
@pytest.mark.parametrize("size", [(96, 96), (333, 500), (61, 40)])
def test_grids_cover_the_image_and_overlap(size, overlap):
    for scale in windows.SCALES:
        found = windows.grid(*size, (scale,), float(overlap))
        side = round(min(size) / scale)
        assert ((found[:, 2:] - found[:, :2]) == side).all(), "square, of one size"
        assert found.min() == 0 and (found[:, 2:].max(0) == size).all(), "from edge to edge"
        covered = np.zeros(size, bool)
        for y, x, bottom, right in found:
            covered[y:bottom, x:right] = True
        assert covered.all()
        for axis in (0, 1):
            steps = np.diff(np.unique(found[:, axis]))
            # One pixel is the smallest step there is.
            assert len(steps) == 0 or steps.max() <= max(1, (1 - overlap) * side)
            # No more windows than that needs.
            assert len(steps) == math.ceil((size[axis] - side) / Fraction(max(1, math.floor((1 - overlap) * side))))
    assert len(windows.grid(96, 96)) == 1 + 4 + 9 + 9 + 16 + 25 + 36 + 49 + 49


def assign(window, *boxes):
    """The label of one window among boxes of the classes 0, 1, ...; 9 is background."""
    found = windows.assign(np.array([window]), np.array(boxes, float).reshape(-1, 4), np.arange(len(boxes)), 9)
    assert found.shape == (1,)
    return found[0]


WINDOW = (0, 0, 10, 10)  # an area of 100


@pytest.mark.parametrize(
    "boxes, label, why",
    [
        ([], 9, "nothing"),
        ([(20, 20, 30, 30)], 9, "elsewhere"),
        ([(2, 2, 7, 7)], 0, "25 of 100"),
        ([(0, 0, 4, 5)], 0, "20 of 100 is enough"),
        ([(0, 0, 4, 4)], 9, "16 of 100 is too small"),
        ([(0, 4, 10, 14)], 0, "60 of the object's 100 is enough"),
        ([(0, 5, 10, 14)], 9, "50 of the object's 90 is not"),
        ([(-20, -20, 30, 30)], 9, "100 of the object's 2,500"),
        ([(2, 2, 7, 7), (20, 20, 30, 30)], 0, "the other is elsewhere"),
        ([(20, 20, 30, 30), (2, 2, 7, 7)], 1, "the other way about"),
        ([(2, 2, 7, 7), (7, 7, 9, 9)], windows.REJECTED, "a second one, though small"),
        ([(0, 0, 5, 5), (5, 5, 10, 10)], windows.REJECTED, "two alike"),
        ([(0, 0, 4, 4), (5, 5, 9, 9)], 9, "two, both too small"),
        ([(2, 2, 7, 7), (0, 10, 10, 20)], 0, "the other only touches"),
    ],
)
def test_labels_by_hand(boxes, label, why):
    assert assign(WINDOW, *boxes) == label, why


def test_labels_do_not_hang_on_rounding():
    """Boxes are kept as float32 fractions: 20 and 60 of 100 stay enough."""
    for side in range(11, 200):
        for box in ((0, 0, 4, 5), (0, 4, 10, 14)):
            if max(box) <= side:
                assert assign(WINDOW, np.float32(np.array(box) / side) * np.array(side)) == 0, side


def scenes(count=6, classes=3, sizes=((24, 24),)):
    """A source of images of noise, each with one box of 12x12 in a corner, or none."""

    def read(indices):
        out = []
        for i in map(int, indices):
            rng = np.random.default_rng(i)
            h, w = sizes[i % len(sizes)]
            label = np.float32(np.eye(classes)[i % classes])
            box = np.float32([[0, 0, 12 / h, 12 / w]])
            objects = {"bbox": box, "label": np.array([i % classes])}
            out.append({"image": rng.integers(0, 256, (h, w, 1), np.uint8), "label": label, "objects": objects})
        return out

    shape = (*(sizes[0] if len(sizes) == 1 else (None, None)), 1)
    parts = (("train", 0, count),)
    return sources.Source("made up/train", count, read, shape, classes, tuple("abcdefgh"[:classes]), parts, True, "x")


def test_labelled_windows_are_what_they_say():
    source = scenes()
    found = windows.labelled(source, size=8, scales=(1, 2), background=1.0)
    grid = windows.grid(24, 24, (1, 2))
    # Of the whole image the box is 144 >= 0.2 * 576; the window at (0, 0) is the box, those at 6 hold half or less.
    expected = [np.where(np.arange(10) < 2, i % 3, 3) for i in range(6)]
    got = found.read(np.arange(found.length))
    np.testing.assert_array_equal([e["label"] for e in got], np.concatenate(expected))
    assert (found.num_classes, found.class_names, found.multi_label) == (4, ("a", "b", "c", "background"), False)
    assert found.image_shape == (8, 8, 1) and found.length == 60 and found.parts == source.parts
    resize = transforms.parse("resize((8, 8))").fn
    for i in (0, 1, 13, 59):
        y, x, bottom, right = grid[i % 10]
        part = source.read([i // 10])[0]["image"][y:bottom, x:right]
        np.testing.assert_array_equal(got[i]["image"], resize(RNG, {"image": part})["image"])
    order = RNG.permutation(60)
    for i, e in zip(order, found.read(order), strict=True):
        np.testing.assert_array_equal(e["image"], got[i]["image"])
        assert e["label"] == got[i]["label"]


def test_background_is_thinned_out_and_nothing_else():
    source = scenes(300)
    kept = {}
    for fraction, seed in ((0, 0), (0.1, 0), (0.1, 1), (1, 0)):
        found = windows.labelled(source, size=4, scales=(1, 2), background=fraction, seed=seed)
        label = np.array([e["label"] for e in found.read(np.arange(found.length))])
        assert np.bincount(label, minlength=4)[:3].tolist() == [200, 200, 200]
        kept[fraction, seed] = found, (label == 3).sum()
    assert [kept[k][1] for k in ((0, 0), (1, 0))] == [0, 2400]
    # Binomial of 2,400 at 0.1: four standard deviations are 59.
    assert abs(kept[0.1, 0][1] - 240) < 59 and abs(kept[0.1, 1][1] - 240) < 59
    digests = {found.digest for found, _ in kept.values()}
    assert len(digests) == 4
    again = windows.labelled(source, size=4, scales=(1, 2), background=0.1)
    assert again.digest == kept[0.1, 0][0].digest
    first = windows.labelled(source._replace(length=50), size=4, scales=(1, 2), background=0.1)
    a, b = ([e["label"] for e in s.read(np.arange(first.length))] for s in (first, again))
    assert a == b, "fewer images have the windows that they have among more"


def test_every_window_knows_its_image():
    source = scenes(5, sizes=((24, 24), (24, 48)))
    found = windows.every(source, size=6, scales=(1, 2))
    numbers = np.array([e["label"] for e in found.source.read(np.arange(found.source.length))])
    # Of 24x48, λ = 1: steps of 12 over 24 pixels, 3 windows; λ = 2: 3 by 7.
    np.testing.assert_array_equal(numbers, np.repeat(np.arange(5), [10, 24, 10, 24, 10]))
    np.testing.assert_array_equal(found.labels, np.eye(3)[[0, 1, 2, 0, 1]])
    assert found.source.image_shape == (6, 6, 1) and not found.source.multi_label


@pytest.mark.parametrize(
    "change, text",
    [
        (dict(scales=(0.5,)), "scales are"),
        (dict(scales=()), "scales are"),
        (dict(scales=(20,)), "side of 1 pixels"),
        (dict(overlap=1.0), "overlap is 1.0"),
        (dict(background=1.5), "background is 1.5"),
        (dict(size=0), "size is 0"),
    ],
)
def test_bad_requests(change, text):
    with pytest.raises(errors.BadRequest, match=text):
        windows.labelled(scenes(), **{"size": 8, **change})


def test_other_data_sets_have_no_windows():
    plain = scenes()._replace(multi_label=False)
    with pytest.raises(errors.BadRequest, match="several labels each"):
        windows.labelled(plain, size=8)
    with pytest.raises(errors.BadRequest, match="several labels each"):
        windows.every(plain, size=8)
    source = scenes()
    boxless = source._replace(read=lambda i: [{k: v for k, v in e.items() if k != "objects"} for e in source.read(i)])
    with pytest.raises(errors.BadRequest, match="objects/bbox"):
        windows.labelled(boxless, size=8)
    assert windows.every(boxless, size=8, scales=(1,)).source.length == 6
