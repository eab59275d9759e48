"""Pipelines on the device: any split of the batch, mixing by hand and its distributions, and normalisation."""

import gzip
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from batches import KEY, box_of, make, run, unit
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from recvis_jax.data import augment
from recvis_jax.errors import BadRequest

# ---- the pipeline


@pytest.mark.parametrize("text", [None, "", " "])
def test_no_operation_only_converts(text):
    batch = make()
    out = run(text, batch)
    np.testing.assert_array_equal(out["image"], unit(batch))
    np.testing.assert_array_equal(out["label"], batch["label"])
    floats = {"image": jnp.full((1, 2, 2, 1), 0.3)}  # neither label nor slot is needed
    assert run(text, floats)["image"].dtype == np.float32


@pytest.mark.parametrize(
    "text, words",
    [
        ("flp", ["unknown device operation", "'flip'"]),
        ("randaugment(2, 9)", ["host pipeline"]),
        ("pad_crop(-1)", ["pad is -1", "pad_crop(pad=4, mode='constant')"]),
        ("pad_crop(4, 'reflct')", ["Did you mean 'reflect'?"]),
        ("random_resized_crop((0.2, 1))", ["size is 0.2", "scale=(0.08, 1)"]),
        ("rotate(91)", ["degrees is 91", "to 90"]),
        ("erase(value='noise')", ["'noise'", "random"]),
        ("erase(value=(0.1, 2))", ["value is 2"]),
        ("cutout(0)", ["size is 0"]),
        ("mixup(0)", ["alpha is 0", "from 0.001 to 1000"]),
        ("mixup", ["missing", "alpha"]),
        ("mixup_cutmix(1, 1, 2)", ["switch is 2"]),
    ],
)
def test_bad_pipelines_say_what_would_be_right(text, words):
    with pytest.raises(BadRequest) as error:
        augment.parse(text, 10)
    for word in words:
        assert word in str(error.value)


def test_batches_that_do_not_fit():
    even, flip = make(4), augment.parse("flip")
    for batch, fn, word in [
        ({"image": even["image"]}, flip, "slot"),
        (make(3), augment.parse("mixup(0.2)", 5), "even batch"),
        (even, augment.parse("cutmix(1)"), "number of classes"),
        ({k: even[k] for k in ("image", "slot")}, augment.parse("mixup(1)", 5), "label"),
        ({**even, "label": jnp.zeros(4)}, augment.parse("mixup(1)", 5), "float32"),
        (make(4, c=2), augment.parse("color_jitter(0.1)"), "1 or 3 channels"),
        (make(4), augment.parse("cutout(3, value=(0.1, 0.2))"), "2 channels"),
        (make(4, h=4), augment.parse("pad_crop(4, mode='reflect')"), "larger"),
        ({**even, "image": even["image"].astype(jnp.int32)}, flip, "int32"),
    ]:
        with pytest.raises(BadRequest, match=word):
            jax.jit(fn)(KEY, batch)


LONG = "random_resized_crop(scale=(0.3, 1))|flip|rotate(9)|color_jitter(0.4, 0.4, 0.4, 0.1)|mixup_cutmix(0.8, 1)"
EVERY = [
    "pad_crop(3)|flip",
    "random_resized_crop(10)",
    "rotate(30)",
    "color_jitter(0.4, 0.4, 0.4, 0.1)",
    "erase(0.8)|cutout(5)",
    "erase(1, value='random')",
    "mixup_cutmix(0.8, 1.0)",
    LONG,
]


@pytest.mark.parametrize("text, channels", [(t, 3) for t in EVERY] + [(EVERY[3], 1)])
def test_any_split_of_the_batch_gives_the_same_bits(text, channels):
    batch = make(24, c=channels) | {"mask": jnp.arange(24) < 21}
    fn = jax.jit(augment.parse(text, 5))
    whole = jax.device_get(fn(KEY, batch))
    for size in (8, 6, 2) if "mix" in text else (8, 3, 1):
        parts = [fn(KEY, {k: v[i : i + size] for k, v in batch.items()}) for i in range(0, 24, size)]
        for name in ("image", "label"):
            np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), whole[name], err_msg=f"{size}")
    other = jax.device_get(fn(jax.random.key(6), batch))
    assert not np.array_equal(other["image"], whole["image"])
    assert whole["image"].min() >= 0 and whole["image"].max() <= 1 and whole["image"].dtype == np.float32


@pytest.mark.full
def test_compiled_or_not():
    batch, text = make(4, 7, 8), LONG + "|pad_crop(1)|erase(1)|cutout(2)"
    with jax.disable_jit():
        eager = jax.device_get(augment.parse(text, 5)(KEY, batch))
    compiled = run(text, batch)
    np.testing.assert_allclose(eager["image"], compiled["image"], atol=1e-4)
    np.testing.assert_allclose(eager["label"], compiled["label"], atol=1e-6)


@pytest.mark.parametrize("text", [EVERY[0], EVERY[6]])
def test_sharded_over_devices_gives_the_same_bits(text):
    batch, devices = make(32), jax.devices()
    if 32 % (2 * len(devices)):
        pytest.skip("needs a power of two of devices, at most 16")
    fn = jax.jit(augment.parse(text, 5))
    sharding = NamedSharding(Mesh(np.array(devices), ("data",)), PartitionSpec("data"))
    sharded = fn(KEY, jax.device_put(batch, sharding))
    for name in ("image", "label"):
        np.testing.assert_array_equal(sharded[name], fn(KEY, batch)[name])
    hlo = fn.lower(KEY, jax.device_put(batch, sharding)).compile().as_text()
    for collective in ("all-gather(", "all-to-all(", "collective-permute(", "all-reduce("):
        assert collective not in hlo  # nothing crosses a device boundary


def test_slots_decide_and_operations_draw_independently():
    batch = make(8) | {"image": jnp.broadcast_to(make(1)["image"], (8, 12, 14, 3))}
    out = run("pad_crop(4)", batch)["image"]
    moved = run("pad_crop(4)", batch | {"slot": batch["slot"][::-1]})["image"]
    np.testing.assert_array_equal(moved, out[::-1])
    same = run("pad_crop(4)", batch | {"slot": jnp.zeros(8, jnp.int32)})["image"]
    np.testing.assert_array_equal(same, np.broadcast_to(out[:1], same.shape))
    mirrored = run("flip|flip", make(256, 2, 2))["image"]
    assert 0.35 < (mirrored == unit(make(256, 2, 2))).all(axis=(1, 2, 3)).mean() < 0.65  # not always undone


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_every_kind_of_key(impl):
    typed = jax.random.key(3, impl=impl)
    fn, batch = jax.jit(augment.parse("pad_crop(2)|mixup(1)", 5)), make(8)
    whole = fn(typed, batch)
    half = fn(typed, {k: v[4:] for k, v in batch.items()})
    np.testing.assert_array_equal(whole["image"][4:], half["image"])
    np.testing.assert_array_equal(whole["image"], fn(jax.random.key_data(typed), batch)["image"])
    assert not np.array_equal(whole["image"], fn(jax.random.fold_in(typed, 1), batch)["image"])


# ---- mixing


def test_mixup_by_hand():
    batch = make(64, classes=2) | {"label": jnp.tile(jnp.array([0, 3], jnp.int32), 32)}
    out, image = run("mixup(0.7)", batch), unit(batch)
    lam = out["label"][::2, 0]
    expected = np.zeros((32, 2, 5), np.float32)
    expected[:, 0, 0] = expected[:, 1, 3] = lam
    expected[:, 0, 3] = expected[:, 1, 0] = 1 - lam
    np.testing.assert_allclose(out["label"].reshape(32, 2, 5), expected, atol=1e-6)
    weight = lam[:, None, None, None]
    np.testing.assert_allclose(out["image"][::2], weight * image[::2] + (1 - weight) * image[1::2], atol=1e-6)
    np.testing.assert_allclose(out["image"][1::2], weight * image[1::2] + (1 - weight) * image[::2], atol=1e-6)
    assert len(np.unique(lam)) == 32


@pytest.mark.parametrize("alpha", [0.1, 1.0, 3.0])
def test_lambda_is_beta(alpha):
    batch = make(6000, 1, 1, 1) | {"label": jnp.tile(jnp.array([0, 1], jnp.int32), 3000)}
    lam = run(f"mixup({alpha})", batch, num_classes=2)["label"][::2, 0]
    # Kolmogorov and Smirnov's statistic, of which 1.95 / sqrt(n) is passed once in a thousand; between 0.01 and 0.99,
    # as float32 rounds the much mass of a small alpha that lies next to 0 and 1 onto them.
    at = np.linspace(0.01, 0.99, 99)
    found = np.searchsorted(np.sort(np.asarray(lam)), at) / len(lam)
    assert np.abs(found - scipy.stats.beta(alpha, alpha).cdf(at)).max() < 1.95 / np.sqrt(len(lam))


def test_cutmix_labels_are_exact_areas():
    batch = {
        "image": jnp.tile(jnp.array([0, 255], jnp.uint8), 300)[:, None, None, None]
        * jnp.ones((1, 9, 11, 1), jnp.uint8),
        "label": jnp.tile(jnp.array([0, 1], jnp.int32), 300),
        "slot": jnp.arange(600),
    }
    out = run("cutmix(1.0)", batch, num_classes=2)
    pasted = out["image"][::2, :, :, 0]
    assert set(np.unique(out["image"])) == {0.0, 1.0}
    np.testing.assert_array_equal(out["image"][1::2, :, :, 0], 1 - pasted)  # the same box both ways
    np.testing.assert_allclose(out["label"][::2, 1], pasted.mean(axis=(1, 2)), atol=1e-6)
    np.testing.assert_allclose(out["label"][1::2, 0], pasted.mean(axis=(1, 2)), atol=1e-6)
    boxes = [box_of(p > 0) for p in pasted if p.any()]
    assert len(boxes) > 200 and len(set(boxes)) > 100
    assert 0.2 < pasted.mean() < 0.45  # half, less what is cut off at the border


def test_cutmix_box_sides():
    keep = jnp.array([0.75, 0.75, 1.0, 0.0])
    inside = np.asarray(
        augment._cut_boxes(keep, jnp.array([0.5, 0, 0.5, 0.5]), jnp.array([0.5, 0.99, 0.5, 0.5]), 16, 8)
    )
    assert box_of(inside[0, ..., 0]) == (4, 12, 2, 6)  # half of either side
    assert box_of(inside[1, ..., 0]) == (0, 4, 5, 8)  # cut off at the corner
    assert not inside[2].any() and inside[3].all()


def test_mixup_cutmix_switches_by_pair():
    batch = make(800, 6, 6, 1) | {"label": jnp.tile(jnp.array([0, 1], jnp.int32), 400)}
    out, image = run("mixup_cutmix(1, 1, switch=0.3)", batch)["image"], unit(batch)
    other = image.reshape(400, 2, 6, 6, 1)[:, ::-1].reshape(image.shape)
    pasted = ((out == image) | (out == other)).all(axis=(1, 2, 3)).reshape(400, 2)
    np.testing.assert_array_equal(pasted[:, 0], pasted[:, 1])
    assert abs(pasted[:, 0].mean() - 0.3) < 0.07
    for text, alone in (("mixup_cutmix(1, 1, 0)", "mixup(1)"), ("mixup_cutmix(1, 1, 1)", "cutmix(1)")):
        np.testing.assert_array_equal(run(text, batch)["image"], run(alone, batch)["image"])


@pytest.mark.parametrize("text", ["mixup(1)", "cutmix(1)", "mixup_cutmix(1, 1)"])
def test_labels_sum_and_padding(text):
    batch = make(16) | {"mask": jnp.array([True] * 12 + [True, False, False, False])}
    out = run(text, batch)
    np.testing.assert_allclose(out["label"].sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(out["image"][12:], unit(batch)[12:])
    np.testing.assert_array_equal(out["label"][12:], np.eye(5)[np.asarray(batch["label"][12:])])
    assert out["label"].dtype == np.float32 and (out["image"][:12] != unit(batch)[:12]).any()
    np.testing.assert_array_equal(out["mask"], batch["mask"])
    hot = batch | {"label": jnp.eye(5)[batch["label"]] * 2}  # soft or multi-hot labels are mixed as they are
    np.testing.assert_allclose(run(text, hot, num_classes=None)["label"], 2 * out["label"], atol=1e-6)


# ---- normalisation


def test_normalise_by_hand():
    image = make(2, c=3)["image"]
    out = np.asarray(augment.normalise(image, "imagenet"))
    assert out[1, 2, 3, 1] == pytest.approx((int(image[1, 2, 3, 1]) / 255 - 0.456) / 0.224, abs=1e-5)
    np.testing.assert_allclose(augment.normalise(image, "none"), image / 255, rtol=1e-6)
    assert augment.normalise(jnp.ones((1, 1, 1, 3)), "inception").tolist() == [[[[1, 1, 1]]]]
    pair = ((0.1, 0.2, 0.3), (1.0, 2.0, 4.0))
    np.testing.assert_allclose(augment.normalise(jnp.ones((1, 1, 1, 3)), pair)[0, 0, 0], [0.9, 0.4, 0.175], rtol=1e-6)
    np.testing.assert_allclose(augment.normalise(jnp.ones((1, 1, 1, 3)), (0.5, 0.25)), 2, rtol=1e-6)


@pytest.mark.parametrize(
    "stats, words",
    [
        ("imagnet", "Did you mean 'imagenet'"),
        (((0.5, 0.5), (0.5, 0.5)), "2 channels"),
        ((0.5,), "pair"),
        ((0.5, 0), "std is 0"),
        (((0.5, 0.5, 0.5), (0.5, 0.5)), "differ in length"),
        (((), ()), "differ in length"),
    ],
)
def test_bad_statistics(stats, words):
    with pytest.raises(BadRequest, match=words):
        augment.normalise(make(2)["image"], stats)
    with pytest.raises(BadRequest, match="3 channels, the images have 1"):
        augment.normalise(make(2, c=1)["image"], "cifar10")


def check_statistics(name, pixels):
    mean, std = augment.STATISTICS[name]
    np.testing.assert_allclose([mean[0], std[0]], [pixels.mean(), pixels.std()], atol=5.1e-5)


def test_digits_statistics():
    check_statistics("digits", pytest.importorskip("sklearn.datasets").load_digits().images / 16)


def test_fashion_mnist_statistics():
    path = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")  # Debian's dataset-fashion-mnist
    if not path.exists():
        pytest.skip("Fashion-MNIST is not there")
    counts = np.bincount(np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=16), minlength=256)
    mean = (counts * np.arange(256)).sum() / counts.sum() / 255
    std = np.sqrt((counts * (np.arange(256) / 255 - mean) ** 2).sum() / counts.sum())
    np.testing.assert_allclose(np.array(augment.STATISTICS["fashion_mnist"]).ravel(), [mean, std], atol=5e-5)
