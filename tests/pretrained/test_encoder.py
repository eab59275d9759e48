"""A masked autoencoder's encoder becomes a Vision Transformer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recvis_jax import models, pretrained
from recvis_jax.errors import BadRequest
from recvis_jax.training import checkpoint, sharding
from recvis_jax.training.state import State

SIZE = dict(patch_size=4, width=16, depth=3, heads=2)


def autoencoder(**kw):
    model = models.create("mae_b16", **SIZE, decoder_width=8, decoder_depth=1, decoder_heads=2, **kw)
    return model, jax.jit(model.init, static_argnames="train")(
        jax.random.key(0), jnp.zeros((1, 12, 12, 1)), train=False
    )


def run_of(folder, variables):
    """Saves variables as the checkpoint of a run."""
    state = State(
        step=jnp.int32(1), params=variables["params"], model_state={"constants": variables["constants"]}, opt_state={},
        key=jnp.zeros(2, jnp.uint32),
    )  # fmt: skip
    mesh = sharding.make_mesh(jax.devices()[:1])
    writer = checkpoint.Checkpointer(folder, sharding.laid_out(jax.eval_shape(lambda: state), mesh))
    writer.save(state, {"loop": {}}, best=True)
    writer.wait()
    writer.close()


def vit(**kw):
    model = models.create("vit_b16", **SIZE, norm_eps=1e-6, **kw)
    variables = model.init(jax.random.key(1), jnp.zeros((1, 12, 12, 1)), train=False)
    return model, variables


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.full
def test_the_vit_computes_what_the_encoder_does(tmp_path, scan):
    model, variables = autoencoder(scan=scan)
    run_of(tmp_path / "run", variables)
    images, said = jax.random.normal(jax.random.key(2), (3, 12, 12, 1)), []
    _, acts = model.apply(variables, images, train=False)
    for pool in ("cls", "gap_norm"):
        other, template = vit(num_classes=0, pool=pool, scan=not scan)
        found = pretrained.load(tmp_path / "run", other, template, say=said.append)
        features, theirs = other.apply(found, images, train=False)
        np.testing.assert_allclose(theirs["block2"], acts["block2"], rtol=1e-5, atol=1e-5)
        if pool == "cls":
            np.testing.assert_allclose(features, acts["features"], rtol=1e-5, atol=1e-5)
    assert "decoder" in said[0]


@pytest.mark.full
def test_a_new_head_and_no_class_token(tmp_path):
    _, variables = autoencoder()
    run_of(tmp_path / "run", variables)
    other, template = vit(num_classes=5, pool="gap")
    with pytest.raises(BadRequest, match="2 missing in it: params/head"):
        pretrained.load(tmp_path / "run", other, template)
    found = pretrained.load(tmp_path / "run", other, template, new_head=True)
    np.testing.assert_array_equal(found["params"]["pos_embed"], variables["constants"]["pos_embed"][:, 1:])
    np.testing.assert_array_equal(found["params"]["head"]["kernel"], template["params"]["head"]["kernel"])


@pytest.mark.full
def test_a_file_of_another_library_into_a_net_without_class_token(tmp_path):
    model, variables = autoencoder()
    file, said = tmp_path / "mae.safetensors", []
    pretrained.export(variables, model, "mae", file)
    other, template = vit(num_classes=5, pool="gap")
    found = pretrained.load(file, other, template, new_head=True, say=said.append)
    np.testing.assert_array_equal(found["params"]["pos_embed"], variables["constants"]["pos_embed"][:, 1:])
    kernel = found["params"]["block1"]["mlp"]["fc1"]["kernel"]
    np.testing.assert_array_equal(kernel, variables["params"]["block1"]["mlp"]["fc1"]["kernel"])
    assert any("class token is left out" in line for line in said)


@pytest.mark.full
def test_another_width_is_refused_with_the_shapes(tmp_path):
    _, variables = autoencoder()
    run_of(tmp_path / "run", variables)
    other = models.create("vit_b16", patch_size=4, width=32, depth=3, heads=2, num_classes=0)
    template = jax.eval_shape(lambda: other.init(jax.random.key(0), jnp.zeros((1, 12, 12, 1)), train=False))
    with pytest.raises(BadRequest, match=r"of another shape: .*key/kernel \(16, 16\) instead of \(32, 32\)"):
        pretrained.load(tmp_path / "run", other, template)


@pytest.mark.full
def test_a_model_of_another_family_is_refused(tmp_path):
    _, variables = autoencoder()
    run_of(tmp_path / "run", variables)
    lenet = models.create("lenet5")
    template = jax.eval_shape(lambda: lenet.init(jax.random.key(0), jnp.zeros((1, 12, 12, 1)), train=False))
    with pytest.raises(BadRequest, match="not in the model"):
        pretrained.load(tmp_path / "run", lenet, template)
