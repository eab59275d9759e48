"""Device augmentations of single images: against Pillow, worked cases, and the distributions they promise."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import scipy.stats
from batches import KEY, box_of, make, run, unit

from recvis_jax.data import augment_images

# ---- geometry


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_pad_crop_is_a_window_of_the_padded_image(mode):
    batch = make(300, 5, 6, 1)
    padded = np.pad(unit(batch), ((0, 0), (2, 2), (2, 2), (0, 0)), mode=mode)
    windows = np.stack([padded[:, i : i + 5, j : j + 6] for i in range(5) for j in range(5)], axis=1)
    hits = (windows == run(f"pad_crop(2, '{mode}')", batch)["image"][:, None]).all(axis=(2, 3, 4))
    assert hits.any(axis=1).all()
    assert (hits.sum(axis=0) > 2).all()  # each of the 25 places about 12 times


def test_flip_mirrors_with_its_probability():
    batch = make(2000, 2, 3, 1)
    out, image = run("flip(0.3)", batch)["image"], unit(batch)
    mirrored = (out == image[:, :, ::-1]).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(np.where(mirrored[:, None, None, None], image[:, :, ::-1], image), out)
    assert abs(mirrored.mean() - 0.3) < 0.04


def test_random_resized_crop_boxes():
    draw = jax.jit(augment_images.resized_crop_boxes, static_argnums=(1, 2, 3, 4))
    keys, h, w = jax.random.split(KEY, 4000), 30, 50
    boxes = draw(keys, h, w, (0.08, 1.0), (3 / 4, 4 / 3))
    top, left, height, width = (np.asarray(v) for v in boxes)
    assert min(top.min(), left.min()) >= 0 and (top + height).max() <= h + 1e-4 and (left + width).max() <= w + 1e-4
    area, aspect = height * width / (h * w), width / height
    assert area.min() > 0.0799 and aspect.min() > 0.7499 and aspect.max() < 1.3334
    small = area < 0.4  # never rejected: uniform area, log-uniform aspect, uniform place
    assert scipy.stats.kstest(area[small], scipy.stats.uniform(0.08, 0.32).cdf).pvalue > 1e-3
    log_aspect = scipy.stats.uniform(np.log(3 / 4), 2 * np.log(4 / 3))
    assert scipy.stats.kstest(np.log(aspect[small]), log_aspect.cdf).pvalue > 1e-3
    assert scipy.stats.kstest((top / (h - height))[small], scipy.stats.uniform.cdf).pvalue > 1e-3
    tall = draw(keys, 100, 10, (0.9, 1.0), (3 / 4, 4 / 3))
    np.testing.assert_allclose(np.stack(tall)[:, 0], [(100 - 40 / 3) / 2, 0, 40 / 3, 10], rtol=1e-5)


@pytest.mark.parametrize("size", [None, 7, (24, 30)])
def test_random_resized_crop_is_pillows(size):
    batch, fn = make(6, 16, 20, 1), jax.jit(augment_images.random_resized_crop(size))
    keys = jax.random.split(KEY, 6)
    out = np.asarray(fn(keys, jnp.asarray(unit(batch))))
    height, width = out.shape[1:3]
    assert (height, width) == {None: (16, 20), 7: (7, 7)}.get(size, size)
    draw = jax.jit(augment_images.resized_crop_boxes, static_argnums=(1, 2, 3, 4))
    boxes = np.stack(draw(keys, 16, 20, (0.08, 1.0), (3 / 4, 4 / 3)), axis=1)
    for image, (top, left, box_h, box_w), mine in zip(unit(batch), boxes, out, strict=True):
        box = (left, top, min(left + box_w, 20), min(top + box_h, 16))
        reference = PIL.Image.fromarray(image[:, :, 0]).resize((width, height), PIL.Image.Resampling.BILINEAR, box=box)
        np.testing.assert_allclose(mine[:, :, 0], np.asarray(reference), atol=1e-4)


def test_random_resized_crop_of_everything_changes_nothing():
    batch = make(4, 9, 9)
    out = run("random_resized_crop(scale=(1, 1), ratio=(1, 1))", batch)["image"]
    np.testing.assert_allclose(out, unit(batch), atol=1e-5)


def smooth(h, w):
    y, x = np.mgrid[:h, :w].astype(np.float32)
    return (0.5 + 0.3 * np.sin(x / 5 + 0.4) * np.cos(y / 6) + 0.004 * y)[None, :, :, None].astype(np.float32)


rotated = jax.jit(augment_images.rotated, static_argnums=(2, 3))


@pytest.mark.parametrize("degrees", [-30, -7, 12, 45])
def test_rotation_is_pillows(degrees):
    image = smooth(40, 52)
    out = np.asarray(rotated(jnp.asarray(image), jnp.radians(jnp.array([degrees * 1.0])), 0.8, 0.25))
    reference = PIL.Image.fromarray(image[0, :, :, 0]).rotate(degrees, PIL.Image.Resampling.BILINEAR, fillcolor=0.25)
    difference = np.abs(out[0, :, :, 0] - np.asarray(reference))
    assert np.median(difference) < 0.005 and (difference < 0.02).mean() > 0.92  # edges of the frame are softened
    assert out.shape == image.shape


def test_rotation_by_none_and_a_right_angle():
    image = jnp.asarray(unit(make(2, 9, 9)))
    quarter = rotated(image, jnp.full(2, np.pi / 2), np.pi / 2, 0.0)
    np.testing.assert_allclose(quarter, np.rot90(image, axes=(1, 2)), atol=1e-5)
    np.testing.assert_array_equal(rotated(image, jnp.zeros(2), 0.5, 0.0), image)
    np.testing.assert_array_equal(run("rotate(0)", make(2))["image"], unit(make(2)))
    flat = {"image": jnp.full((64, 9, 9, 1), 0.5), "slot": jnp.arange(64)}
    dark = (run("rotate(40)", flat)["image"][:, 0, 0, 0] < 0.25).mean()
    assert 0.3 < dark < 0.9  # the corner leaves the frame only at large angles


# ---- colour


def test_brightness_contrast_saturation_by_hand():
    batch = make(64) | {"image": make(64)["image"] // 2 + 40}  # nothing is clipped
    image = unit(batch)
    bright = run("color_jitter(brightness=0.3)", batch)["image"]
    factor = (bright / image)[:, :1, :1, :1]
    np.testing.assert_allclose(bright, image * factor, atol=1e-6)
    assert factor.min() >= 0.7 and factor.max() <= 1.3 and factor.min() < 0.76 and factor.max() > 1.24
    grey = (image @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    mean = grey.mean(axis=(1, 2, 3), keepdims=True)
    flat = run("color_jitter(0, 0.3)", batch)["image"]
    slope = (flat - mean).std(axis=(1, 2, 3), keepdims=True) / (image - mean).std(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(flat, mean + slope * (image - mean), atol=3e-4)
    pale = run("color_jitter(saturation=0.3)", batch)["image"]
    slope = (pale - grey).std(axis=(1, 2, 3), keepdims=True) / (image - grey).std(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(pale, grey + slope * (image - grey), atol=3e-4)
    assert slope.min() >= 0.699 and slope.max() <= 1.301


def test_hue_turns_as_colorsys_does():
    batch = make(8, 3, 3)
    image, out = unit(batch), run("color_jitter(hue=0.5)", batch)["image"]
    turns = []
    for before, after in zip(image.reshape(8, 9, 3), out.reshape(8, 9, 3), strict=True):
        hsv = np.array([colorsys.rgb_to_hsv(*p) for p in before.tolist()])
        turned = np.array([colorsys.rgb_to_hsv(*p) for p in after.tolist()])
        np.testing.assert_allclose(hsv[:, 1:], turned[:, 1:], atol=1e-5)
        turn = (turned[:, 0] - hsv[:, 0]) % 1
        assert np.ptp((turn - turn[0] + 0.5) % 1) < 1e-4  # one angle for all pixels
        turns.append(turn[0])
    assert np.ptp(turns) > 0.3
    np.testing.assert_array_equal(run("color_jitter(0, 0, 0.5, 0.5)", make(4, c=1))["image"], unit(make(4, c=1)))


# ---- erased boxes


def test_erase():
    batch = {"image": jnp.ones((1000, 40, 50, 1)), "slot": jnp.arange(1000)}
    changed = run("erase(0.6, scale=(0.05, 0.3), ratio=(0.5, 2))", batch)["image"][..., 0] == 0
    erased = changed.any(axis=(1, 2))
    assert abs(erased.mean() - 0.6) < 0.05
    boxes = np.array([box_of(c) for c in changed[erased]])
    height, width = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
    area, ratio = height * width / 2000, width / height
    assert 0.04 < area.min() < 0.06 and 0.28 < area.max() < 0.32 and abs(area.mean() - 0.175) < 0.01
    assert 0.4 < ratio.min() < 0.6 and 1.8 < ratio.max() < 2.3
    assert boxes[:, 0].min() == 0 and boxes[:, 1].max() == 40 and boxes[:, 3].max() == 50
    assert abs((boxes[:, 0] / (40 - height)).mean() - 0.5) < 0.04


def test_erase_values():
    batch = make(16, c=3)
    out = run("erase(1, scale=(0.3, 0.3), value=(0.1, 0.2, 0.3))", batch)["image"]
    changed = (out != unit(batch)).any(axis=-1)
    np.testing.assert_allclose(out[changed], np.broadcast_to([0.1, 0.2, 0.3], (changed.sum(), 3)), rtol=1e-6)
    noise = run("erase(1, scale=(0.3, 0.3), value='random')", batch)["image"]
    values = noise[noise != unit(batch)]
    assert scipy.stats.kstest(values, scipy.stats.uniform.cdf).pvalue > 1e-3
    assert not np.array_equal(noise[0][noise[0] != unit(batch)[0]][:9], noise[1][noise[1] != unit(batch)[1]][:9])
    # A box with the whole image's sides is refused, and so nothing happens.
    np.testing.assert_array_equal(
        run("erase(1, scale=(1, 1), ratio=(1, 1))", make(4, 8, 8))["image"], unit(make(4, 8, 8))
    )


@pytest.mark.parametrize("size", [3, 4])
def test_cutout_may_overlap_the_border(size):
    batch = {"image": jnp.ones((2000, 6, 7, 1)), "slot": jnp.arange(2000)}
    out = run(f"cutout({size}, value=0.5)", batch)["image"][..., 0]
    assert set(np.unique(out)) == {0.5, 1.0}
    boxes = np.array([box_of(c == 0.5) for c in out])
    expected = {
        (max(y, 0), min(y + size, 6), max(x, 0), min(x + size, 7))
        for y in range(-(size // 2), 6 - size // 2)
        for x in range(-(size // 2), 7 - size // 2)
    }
    assert set(map(tuple, boxes.tolist())) == expected  # every centre in the image
