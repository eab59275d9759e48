"""A config's `init_from`: what it may be, and that what does not fit is answered with the flags that help."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from recvis_jax import build, errors, models, pretrained

MODEL = dict(name="vit_ti16", patch_size=2, width=8, depth=1, heads=2)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """timm's names, of a model for 12x12 colour images of seven classes."""
    model = models.create(**MODEL, num_classes=7)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 12, 12, 3)), train=False))
    path = tmp_path_factory.mktemp("published") / "vit.safetensors"
    pretrained.export(jax.tree.map(lambda s: np.ones(s.shape, np.float32), shapes), model, "timm", path)
    return str(path)


@pytest.fixture(scope="module")
def run():
    sections = small.sections(model=MODEL)
    return build.make_run(**{k: v for k, v in sections.items() if k in errors.keywords(build.make_run)})


@pytest.mark.full
def test_what_does_not_fit_is_answered_with_the_flags_that_help(run, published):
    for init_from in (published, dict(source=published), dict(source=published, new_head=False, resample=None)):
        with pytest.raises(errors.BadRequest) as e:
            build.initial_state(run, init_from)
        for flag in ("new_head=True starts a new head", "adapt_stem=True adapts", "resample=True interpolates"):
            assert f"--config.init_from.{flag}" in str(e.value)
        assert "7 there, 10 here" in str(e.value) and "num_classes" not in str(e.value)
    said = []
    asked = dict(source=published, new_head=True, adapt_stem=True, resample=True)
    state = build.initial_state(run, asked, said.append)
    np.testing.assert_allclose(state.params["pos_embed"], 1, rtol=1e-6)
    np.testing.assert_array_equal(state.params["patch_embed"]["proj"]["kernel"], 3)
    np.testing.assert_array_equal(state.params["head"]["kernel"], 0)
    assert [line.split(" ")[0] for line in said] == [
        "new",
        "params/pos_embed",
        "params/patch_embed/proj/kernel",
        "initialised",
    ]


def test_what_is_no_source(run):
    for nothing in (None, "", {}, dict(source=None), dict(source="", new_head=False)):
        assert int(build.initial_state(run, nothing).step) == 0
    for init_from, words in (
        (
            dict(new_head=True),
            r"config.init_from.new_head is set, but no weights are named: give --config\.init_",
        ),
        (dict(source=3), "config.init_from.source is 3"),
        (dict(source="x.npz", new_hed=True), r"unknown key config.init_from.new_hed\. Did you mean 'new_head'"),
        (dict(source="x.npz", image_size=(8, 8)), "unknown key config.init_from.image_size"),
        (dict(source="x.npz", new_head="yes"), "config.init_from.new_head is 'yes'.* takes bool"),
        (dict(source="x.npz"), "there is no file x.npz"),
    ):
        with pytest.raises(errors.BadRequest, match=words):
            build.initial_state(run, init_from)
