"""Masked autoencoding: masks, targets, and a loss that knows masked patches alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recvis_jax import errors, models
from recvis_jax.tasks import mae, masking
from recvis_jax.tasks.mae import patch_loss, target_patches, to_images
from recvis_jax.training import optim, step
from recvis_jax.training.state import create_state

TINY = dict(patch_size=4, width=16, depth=2, heads=2, decoder_width=8, decoder_depth=1, decoder_heads=2)


def build(**kw):
    model_kw = {k: kw.pop(k) for k in list(kw) if k in ("mask_ratio", "encoder_mask_tokens")}
    model = models.create("mae_b16", **TINY, **model_kw)
    return model, mae(model, image_shape=(16, 16, 1), **kw)


def batch_of(n=6, seed=0):
    image = jax.random.normal(jax.random.key(seed), (n, 16, 16, 1))
    return {"image": image, "label": jnp.zeros(n, jnp.int32), "slot": jnp.arange(n), "mask": jnp.ones(n, bool)}


def split(variables):
    return variables["params"], {k: v for k, v in variables.items() if k != "params"}


def test_loss_by_hand():
    pred = jnp.array([[[1.0, 3.0], [9.0, 9.0], [0.0, 2.0]]])
    target = jnp.zeros((1, 3, 2))
    mask = jnp.array([[1.0, 0.0, 1.0]])
    assert patch_loss(pred, target, mask) == pytest.approx([((1 + 9) / 2 + (0 + 4) / 2) / 2])


def test_visible_patches_have_no_part_in_the_loss_not_even_as_nan():
    pred, target = jnp.full((2, 4, 3), jnp.nan).at[:, 1].set(2.0), jnp.zeros((2, 4, 3))
    mask = jnp.zeros((2, 4)).at[:, 1].set(1.0)
    np.testing.assert_array_equal(patch_loss(pred, target, mask), [4.0, 4.0])
    pred, target = jnp.ones((2, 4, 3)), jnp.zeros((2, 4, 3))
    gradient = jax.grad(lambda p: patch_loss(p, target, mask).sum())(pred)
    assert (np.asarray(gradient)[:, [0, 2, 3]] == 0).all() and (np.asarray(gradient)[:, 1] > 0).all()


def test_targets_are_patches_row_by_row_normalised_with_the_unbiased_variance():
    image = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)
    raw, normed = (np.asarray(target_patches(jnp.asarray(image), 4, n)) for n in (False, True))
    for k, (i, j) in enumerate((i, j) for i in range(2) for j in range(3)):
        patch = image[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].reshape(2, -1)
        np.testing.assert_array_equal(raw[:, k], patch)
        expected = (patch - patch.mean(1, keepdims=True)) / np.sqrt(patch.var(1, ddof=1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(normed[:, k], expected, atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("sampling", masking.SAMPLERS)
def test_as_many_patches_are_masked_as_the_ratio_says(sampling):
    _, task = build(sampling=sampling)
    params, state = split(task.init(jax.random.key(0)))
    masks = np.asarray(task.predict(params, state, batch_of())["mask"])
    assert masks.shape == (6, 16) and (masks.sum(1) == 12).all()


def masks_of(key, slots, size=(7, 7), sampling="random", keep=12):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(slots))
    noise = masking.noise_of(masking.SAMPLERS[sampling], keys, size)
    return np.asarray(models.mae.random_masking(noise, keep)[1])


def test_masks_are_a_function_of_key_and_slot_and_differ_between_images():
    key, other = jax.random.key(1), jax.random.key(2)
    all_eight = masks_of(key, range(8))
    np.testing.assert_array_equal(all_eight[3:5], masks_of(key, [3, 4]))
    assert len({m.tobytes() for m in all_eight}) == 8
    assert not (all_eight == masks_of(other, range(8))).all(1).any()


@pytest.mark.full
def test_training_masks_by_slot_and_evaluation_by_the_image_alone():
    _, task = build()
    params, state = split(task.init(jax.random.key(0)))
    batch, key = batch_of(), jax.random.key(3)
    whole = task.loss(params, state, batch, key)[0]["loss"]
    part = task.loss(params, state, {k: v[2:4] for k, v in batch.items()}, key)[0]["loss"]
    np.testing.assert_allclose(part, whole[2:4], rtol=1e-5)
    moved = task.loss(params, state, batch | {"slot": batch["slot"] + 1}, key)[0]["loss"]
    assert (np.abs(np.asarray(moved - whole)) > 1e-4).all()
    seen = task.predict(params, state, batch)["mask"]
    again = task.predict(params, state, {k: v[::-1] for k, v in batch.items()})["mask"]
    np.testing.assert_array_equal(again[::-1], seen)
    assert len({np.asarray(m).tobytes() for m in seen}) == len(seen)


def test_random_masks_are_uniform():
    masks = masks_of(jax.random.key(0), range(4000))
    rate, error = 37 / 49, np.sqrt(37 / 49 * 12 / 49 / 4000)
    assert (np.abs(masks.mean(0) - rate) < 5 * error).all()


def test_grid_keeps_the_first_of_every_two_by_two():
    mask = masks_of(jax.random.key(0), range(3), (6, 6), "grid", keep=9).reshape(3, 6, 6)
    expected = np.ones((6, 6))
    expected[::2, ::2] = 0
    np.testing.assert_array_equal(mask, np.broadcast_to(expected, (3, 6, 6)))
    more = masks_of(jax.random.key(0), range(3), (6, 6), "grid", keep=18).reshape(3, 6, 6)
    assert (more[:, ::2, ::2] == 0).all() and (more.sum((1, 2)) == 18).all()


def test_blocks_are_larger_than_chance_makes_them():
    def neighbours(masks):  # how often two patches side by side are alike
        m = masks.reshape(-1, 14, 14)
        return ((m[:, 1:] == m[:, :-1]).mean() + (m[:, :, 1:] == m[:, :, :-1]).mean()) / 2

    block, chance = (masks_of(jax.random.key(0), range(200), (14, 14), s, keep=98) for s in ("block", "random"))
    assert neighbours(block) > 0.8 > 0.55 > neighbours(chance)


@pytest.mark.full
def test_the_mask_changes_with_the_step_and_not_with_accumulation():
    _, task = build()
    optimizer = optim.make_optimizer("sgd", params=task.init(jax.random.key(0))["params"], total_steps=9, lr=0.0)
    losses = {}
    for m in (1, 3):
        state = create_state(task, optimizer, 0)
        body = jax.jit(step.step_body(task, optimizer, augment=lambda key, b: b, accumulate=m))
        for i in range(2):
            before = state.model_state
            state, metrics = body(state, batch_of())
            losses[m, i] = float(metrics["loss"][0])
            jax.tree.map(np.testing.assert_array_equal, before, state.model_state)
    assert losses[1, 0] == pytest.approx(losses[3, 0], rel=1e-5)
    assert abs(losses[1, 0] - losses[1, 1]) > 1e-3


@pytest.mark.full
def test_mask_tokens_in_the_encoder_see_nothing_of_masked_patches():
    model, task = build(encoder_mask_tokens=True)
    variables = task.init(jax.random.key(0))
    x = batch_of()["image"]
    noise = jax.random.uniform(jax.random.key(5), (6, 16))
    pred, acts = model.apply(variables, x, train=False, noise=noise)
    assert acts["latent"].shape == (6, 17, 16)
    hidden = acts["mask"].reshape(6, 4, 4).repeat(4, 1).repeat(4, 2)[..., None]
    other, _ = model.apply(variables, jnp.where(hidden > 0, 7.0, x), train=False, noise=noise)
    np.testing.assert_array_equal(other, pred)
    changed, _ = model.apply(variables, jnp.where(hidden > 0, x, 7.0), train=False, noise=noise)
    assert not np.allclose(changed, pred)


def test_refuses_what_it_cannot_train():
    with pytest.raises(errors.BadRequest, match="masked autoencoders, such as mae_b16"):
        mae(models.create("linear"), image_shape=(16, 16, 1))
    with pytest.raises(errors.BadRequest, match="mask_ratio above 0"):
        build(mask_ratio=0.0)
    with pytest.raises(errors.BadRequest, match="Did you mean 'block'"):
        build(sampling="blok")


@pytest.mark.full
@pytest.mark.parametrize("norm_targets", [True, False])
def test_visible_patches_of_the_figure_are_the_images_own(norm_targets):
    _, task = build(norm_targets=norm_targets)
    params, state = split(task.init(jax.random.key(0)))
    batch = batch_of(3)
    found = {k: np.asarray(v) for k, v in jax.jit(task.figure)(params, state, batch).items()}
    assert list(task.figure(params, state, batch)) == ["masked", "reconstruction", "original"]
    mask = np.asarray(task.predict(params, state, batch)["mask"]).reshape(3, 4, 4).repeat(4, 1).repeat(4, 2) > 0
    np.testing.assert_array_equal(found["original"], batch["image"])
    np.testing.assert_array_equal(found["reconstruction"][~mask], found["original"][~mask])
    np.testing.assert_array_equal(found["masked"], np.where(mask[..., None], 0, found["original"]))
    assert (found["reconstruction"][mask] != found["original"][mask]).mean() > 0.9
    if not norm_targets:
        pred = to_images(task.predict(params, state, batch)["prediction"], 4, (16, 16))
        np.testing.assert_allclose(found["reconstruction"][mask], np.asarray(pred)[mask], rtol=1e-5, atol=1e-6)
