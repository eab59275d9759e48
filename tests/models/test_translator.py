"""The Transformer between tokens: cached decoding equals whole targets, padding and later tokens change nothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recvis_jax import generation, models, trees
from recvis_jax.errors import BadRequest

SIZES = dict(vocabulary=12, width=16, heads=2, encoder_depth=1, decoder_depth=1, hidden=24)
RNG = np.random.default_rng(0)
BATCH = {
    "source": jnp.asarray([[5, 6, 7, 2, 0], [9, 2, 0, 0, 0]]),
    "target": jnp.asarray([[3, 4, 8, 2], [10, 11, 2, 0]]),
}
BATCH |= {f"{side}_mask": BATCH[side] > 0 for side in ("source", "target")}


def built(**kw):
    model = models.create("transformer_base", **SIZES, **kw)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), BATCH, train=False))
    variables = jax.tree.map(lambda x: jnp.asarray(RNG.normal(0, 0.4, x.shape), x.dtype), shapes)
    return model, variables, jax.jit(partial(model.apply, train=False))


@pytest.fixture(scope="module", params=[False, True], ids=["post-norm", "pre-norm"])
def net(request):
    return built(pre_norm=request.param)


def test_cached_decoding_equals_whole_targets(net):
    model, variables, forward = net
    whole, acts = forward(variables, BATCH)

    @jax.jit
    def one_by_one(variables):
        given = {k: BATCH[k] for k in ("source", "source_mask")}
        step, cache = generation.decoder(model, variables, batch=2, length=4, given=given)
        tokens = jnp.concatenate([jnp.full((2, 1), 1), BATCH["target"][:, :3]], 1)
        return jax.lax.scan(lambda cache, token: step(cache, token)[::-1], cache, tokens.T)[1].swapaxes(0, 1)

    there = np.asarray(BATCH["target_mask"])
    np.testing.assert_allclose(np.asarray(one_by_one(variables))[there], np.asarray(whole)[there], atol=1e-5)
    np.testing.assert_allclose(acts["decoder0/cross_attention"].sum(-1), 1, rtol=1e-5)
    assert (acts["decoder0/cross_attention"][1, :, :, 2:] == 0).all(), "nothing is attended to in the padding"


def test_padding_and_later_tokens_change_nothing(net):
    _, variables, forward = net
    whole, _ = forward(variables, BATCH)
    other = {
        "source": jnp.where(BATCH["source_mask"], BATCH["source"], 7),
        "target": BATCH["target"].at[:, 2].set(5),
        **{k: BATCH[k] for k in ("source_mask", "target_mask")},
    }
    found, _ = forward(variables, other)
    np.testing.assert_allclose(found[:, :3], whole[:, :3], atol=1e-5)
    assert not np.allclose(found[0, 3], whole[0, 3], atol=1e-3)


def test_parameters_are_those_of_the_paper():
    """One embedding for both sides and the output; the base model has 65 million, with 37,000 tokens."""
    d, h = 512, 2048
    layer = {"attention": 4 * d * (d + 1), "mlp": 2 * d * h + d + h, "norm": 2 * d}
    encoder = layer["attention"] + layer["mlp"] + 2 * layer["norm"]
    decoder = 2 * layer["attention"] + layer["mlp"] + 3 * layer["norm"]
    model = models.create("transformer_base", vocabulary=37_000)
    found = jax.eval_shape(lambda: model.init(jax.random.key(0), BATCH, train=False))["params"]
    assert trees.count(found) == 37_000 * d + 6 * (encoder + decoder) == 63_082_496


def test_without_attention_all_keys_are_alike():
    _, variables, forward = built(attention="uniform")
    acts = forward(variables, BATCH)[1]
    np.testing.assert_allclose(acts["encoder0/attention"][0, :, :, :4], 1 / 4, rtol=1e-5)
    np.testing.assert_allclose(acts["decoder0/cross_attention"][1, :, :, :2], 1 / 2, rtol=1e-5)
    with pytest.raises(BadRequest, match="unknown attention 'linear'"):
        models.create("transformer_base", **SIZES, attention="linear")
