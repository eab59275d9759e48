"""Adaptations that are asked for and reported: a new head, another grid of positions, other input channels."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import template

from recvis_jax import models, pretrained, trees
from recvis_jax.errors import BadRequest, Failure
from recvis_jax.pretrained import adapt, grids
from recvis_jax.training import checkpoint, sharding
from recvis_jax.training.state import State

SMALL = {"width": 4, "blocks": (1, 1), "bottleneck": False}


def filled(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape, np.float32)), shapes)


def resnet(num_classes=10, channels=3, seed=0):
    model = models.create("resnet18", num_classes=num_classes, **SMALL)
    return model, filled(template(model, 32, channels), seed)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# --- heads ---


def test_new_head():
    model, published = resnet()
    state, said = pretrained.export(published, model, "torchvision"), []
    new, variables = resnet(num_classes=3, seed=1)
    with pytest.raises(BadRequest, match=r"2 of another shape: .*fc.weight -> params/head/kernel \(8, 10\)"):
        pretrained.load(state, new, variables)
    loaded = pretrained.load(state, new, variables, new_head=True, say=said.append)
    assert said == ["new head of 3 outputs; not used from the checkpoint: fc.bias, fc.weight"]
    same(loaded["params"].pop("head"), variables["params"]["head"])
    published["params"].pop("head")
    same(loaded, published)
    with pytest.raises(BadRequest, match="must be initialised, not only shapes"):
        pretrained.load(state, new, template(new, 32), new_head=True)


def test_new_head_for_and_from_a_backbone_alone():
    model, published = resnet()
    state, said = pretrained.export(published, model, "torchvision"), []
    backbone, variables = resnet(num_classes=0, seed=1)
    with pytest.raises(BadRequest, match=r"2 not in the model: fc.bias, fc.weight"):
        pretrained.load(state, backbone, variables)
    assert "head" not in pretrained.load(state, backbone, variables, ignore="^fc")["params"]
    loaded = pretrained.load(state, backbone, variables, new_head=True, say=said.append)
    assert said == ["the model has no head; not used from the checkpoint: fc.bias, fc.weight"]
    state = pretrained.export(loaded, backbone, "torchvision")
    assert "fc.weight" not in state
    new, variables = resnet(num_classes=3, seed=2)
    loaded = pretrained.load(state, new, variables, new_head=True, say=said.append)
    assert said[1] == "new head of 3 outputs; the checkpoint has none"
    same(loaded["params"]["head"], variables["params"]["head"])


@pytest.mark.full
def test_new_heads_of_googlenet():
    model = pretrained.create("torchvision", "googlenet")
    state = pretrained.export(filled(template(model, 32)), model, "torchvision")
    new = pretrained.create("torchvision", "googlenet", num_classes=3)
    variables = filled(template(new, 32), 1)
    loaded = pretrained.load(state, new, variables, new_head=True, say=lambda line: None)
    for where in (("head",), ("aux1", "head"), ("aux2", "head")):
        a, b = loaded["params"], variables["params"]
        for key in where:
            a, b = a[key], b[key]
        same(a, b)
    np.testing.assert_array_equal(loaded["params"]["aux1"]["fc1"]["bias"], state["aux1.fc1.bias"])
    plain = pretrained.create("torchvision", "googlenet", aux_logits=False)
    with pytest.raises(BadRequest, match=r"20 not in the model: aux1"):
        pretrained.load(state, plain, template(plain, 32))
    pretrained.load(state, plain, template(plain, 32), ignore="^aux")


# --- input channels ---


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_first_convolution(channels):
    model, published = resnet()
    state, said = pretrained.export(published, model, "torchvision"), []
    _, variables = resnet(channels=channels)
    with pytest.raises(BadRequest, match=r"1 of another shape: conv1.weight"):
        pretrained.load(state, model, variables)
    loaded = pretrained.load(state, model, variables, adapt_stem=True, say=said.append)
    assert said == [f"params/stem/kernel adapted from 3 to {channels} input channel{'s' * (channels > 1)}"]
    w = np.asarray(published["params"]["stem"]["kernel"])
    if channels == 1:  # as an RGB image of three equal channels
        expected = w[:, :, :1] + w[:, :, 1:2] + w[:, :, 2:]
    else:
        expected = np.concatenate([w, w], axis=2)[:, :, :channels] * (3 / channels)
    np.testing.assert_allclose(loaded["params"]["stem"]["kernel"], expected, rtol=1e-6)
    same(pretrained.load(state, model, published, adapt_stem=True, say=said.append), published)
    assert len(said) == 1, "nothing to adapt, nothing said"


# --- positions ---


def cubic(t):
    """Keys' kernel with a = -0.5."""
    t = abs(t)
    if t < 1:
        return 1.5 * t**3 - 2.5 * t**2 + 1
    return -0.5 * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def resize_axis(x, new):
    """Along the first axis, one output at a time, from the samples within reach of the kernel."""
    old = len(x)
    scale = max(1.0, old / new)
    out = []
    for i in range(new):
        centre = old / new * (i + 0.5)
        first = max(int(centre - 2 * scale + 0.5), 0)
        last = min(int(centre + 2 * scale + 0.5), old)
        w = np.array([cubic((j - centre + 0.5) / scale) for j in range(first, last)])
        out.append(np.tensordot(w / w.sum(), x[first:last], 1))
    return np.stack(out)


@pytest.mark.parametrize(
    ("old", "new", "prefix"),
    [((14, 14), (24, 24), 1), ((14, 14), (7, 7), 1), ((7, 7), (12, 5), 0), ((3, 3), (16, 2), 2), ((6, 4), (6, 4), 1)],
)
def test_resampling_is_torchs_bicubic_with_antialiasing(old, new, prefix):
    x = np.random.default_rng(0).standard_normal((1, prefix + old[0] * old[1], 5)).astype(np.float32)
    got = adapt.resample(x, old, new, prefix)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got[:, :prefix], x[:, :prefix])
    grid = resize_axis(x[0, prefix:].astype(np.float64).reshape(*old, 5), new[0])
    grid = resize_axis(grid.swapaxes(0, 1), new[1]).swapaxes(0, 1)
    np.testing.assert_allclose(got[0, prefix:], grid.reshape(-1, 5), atol=1e-5)
    same_by_jax = jax.image.resize(x[0, prefix:].reshape(*old, 5), (*new, 5), "cubic", antialias=True)
    np.testing.assert_allclose(got[0, prefix:], same_by_jax.reshape(-1, 5), atol=1e-5)


@pytest.mark.parametrize(("pool", "prefix"), [("cls", 1), ("gap", 0)])
@pytest.mark.parametrize("scan", [False, True])
def test_positions_of_another_image_size(pool, prefix, scan):
    model = models.create("vit_ti16", width=8, depth=2, heads=2, pool=pool, num_classes=3, scan=scan)
    variables, said = filled(template(model, 64)), []
    state = {n: np.asarray(x) for n, x in trees.flatten(variables).items()}
    larger = template(model, 96)
    run = pretrained.files.Checkpoint(state, ours=True)
    with pytest.raises(
        BadRequest, match=r"params/pos_embed is for 4x4 patches, the model's for 6x6: resample=True inter"
    ):
        pretrained.load(run, model, larger)
    loaded = pretrained.load(run, model, larger, resample=True, say=said.append)
    assert said == ["params/pos_embed resampled from 4x4 (assumed square) to 6x6 positions"]
    expected = adapt.resample(state["params/pos_embed"], (4, 4), (6, 6), prefix)
    np.testing.assert_array_equal(loaded["params"]["pos_embed"], expected)
    wide = shaped(larger, prefix, 12)
    with pytest.raises(
        BadRequest, match=r"has 12 positions, which are not a square: give their grid by resample=dict\(new=\(row"
    ):
        pretrained.load(run, model, wide, resample=True)
    for how in (dict(resample=(3, 4)), dict(resample=[3, 4]), dict(resample=dict(new=(3, 4))),
                dict(resample=True, image_size=(48, 64))):  # fmt: skip
        loaded = pretrained.load(run, model, wide, say=said.append, **how)
        assert said.pop() == "params/pos_embed resampled from 4x4 (assumed square) to 3x4 positions"
        expected = adapt.resample(state["params/pos_embed"], (4, 4), (3, 4), prefix)
        np.testing.assert_array_equal(loaded["params"]["pos_embed"], expected)
    with pytest.raises(BadRequest, match=r"resample=dict\(new=\(5, 4\)\) is not the model's grid: it has 12 positions"):
        pretrained.load(run, model, wide, resample=(5, 4))
    with pytest.raises(BadRequest, match=r"new=\(2, 6\)\) is not the model's grid: its images are 3x4 patches"):
        pretrained.load(run, model, wide, resample=(2, 6), image_size=(48, 64))
    for wrong in ("yes", 3, (3,), (0, 4), (3, 4, 5), (True, 2), dict(odl=(1, 2)), dict(old=4), dict(new=[2.0, 8])):
        with pytest.raises(BadRequest, match=r"resample(\.\w+)? (is .* it )?takes"):
            grids.parse(wrong)


def shaped(shapes, prefix, n):
    """Shapes with another number of positions."""
    positions = jax.ShapeDtypeStruct((1, prefix + n, 8), jnp.float32)
    return {"params": {**shapes["params"], "pos_embed": positions}}


TINY = dict(width=8, depth=1, heads=2, patch_size=4, num_classes=3)


def positions_of(size, new_size, recorded, **how):
    """Loads weights for images of `size` into a model for `new_size`; returns its positions, the old, what was said."""
    model, said = models.create("vit_ti16", **TINY), []
    shapes = [
        jax.eval_shape(lambda s=s: model.init(jax.random.key(0), jnp.zeros((1, *s, 3)), train=False))
        for s in (size, new_size)
    ]
    state = {n: np.asarray(x) for n, x in trees.flatten(filled(shapes[0])).items()}
    run = pretrained.files.Checkpoint(state, ours=True, image_size=size if recorded else None)
    found = pretrained.load(run, model, shapes[1], image_size=new_size, say=said.append, **how)
    return np.asarray(found["params"]["pos_embed"]), state["params/pos_embed"], said


def test_grids_are_compared_and_not_their_numbers():
    """Sixteen positions of 2x8 are not those of 4x4."""
    with pytest.raises(
        BadRequest, match=r"pos_embed is for 2x8 patches, the model's for 4x4: resample=True interpolates"
    ):
        positions_of((8, 32), (16, 16), True)
    for how in (True, dict(old=(2, 8)), dict(old=(2, 8), new=(4, 4)), (4, 4)):
        got, old, said = positions_of((8, 32), (16, 16), True, resample=how)
        np.testing.assert_array_equal(got, adapt.resample(old, (2, 8), (4, 4), 1))
        assert said == ["params/pos_embed resampled from 2x8 to 4x4 positions"]
    got, old, said = positions_of((8, 32), (8, 32), True, resample=True)
    np.testing.assert_array_equal(got, old)
    assert said == []
    with pytest.raises(BadRequest, match=r"old=\(4, 4\)\) is not the checkpoint's grid: it was trained on 2x8 patches"):
        positions_of((8, 32), (16, 16), True, resample=dict(old=(4, 4)))
    with pytest.raises(BadRequest, match=r"for 2x8 patches, the model's for 8x2"):
        positions_of((8, 32), (32, 8), True)
    got, old, _ = positions_of((8, 20), (16, 16), True, resample=True)  # of 2x5
    np.testing.assert_array_equal(got, adapt.resample(old, (2, 5), (4, 4), 1))


@pytest.mark.full
def test_grids_that_nothing_tells_are_asked_for():
    got, old, said = positions_of((16, 16), (16, 16), False)
    np.testing.assert_array_equal(got, old)  # published weights are of squares
    assert said == []
    for how in (False, True):
        with pytest.raises(BadRequest, match=r"16 positions is not recorded, and the model's grid is 2x8: give it "
                           r"by resample=dict\(old=\(rows, columns\)\); 2x8 takes"):  # fmt: skip
            positions_of((8, 32), (8, 32), False, resample=how)
        with pytest.raises(BadRequest, match=r"10 positions are not a square: give their grid by resample=dict\(old"):
            positions_of((8, 20), (16, 16), False, resample=how)
    got, old, said = positions_of((8, 32), (8, 32), False, resample=dict(old=(2, 8)))
    np.testing.assert_array_equal(got, old)
    got, old, said = positions_of((16, 16), (8, 32), False, resample=dict(old=(4, 4)))
    np.testing.assert_array_equal(got, adapt.resample(old, (4, 4), (2, 8), 1))
    got, old, said = positions_of((8, 20), (16, 16), False, resample=dict(old=(2, 5)))
    np.testing.assert_array_equal(got, adapt.resample(old, (2, 5), (4, 4), 1))
    with pytest.raises(BadRequest, match=r"old=\(3, 3\)\) is not the checkpoint's grid: it has 10 positions"):
        positions_of((8, 20), (16, 16), False, resample=dict(old=(3, 3)))


def test_a_recorded_grid_and_a_model_whose_images_are_not_known():
    model = models.create("vit_ti16", **TINY)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 32, 3)), train=False))
    state = {n: np.asarray(x) for n, x in trees.flatten(filled(shapes)).items()}
    run = pretrained.files.Checkpoint(state, ours=True, image_size=(8, 32))
    with pytest.raises(BadRequest, match="is for 2x8 patches, the model's for 4x4"):
        pretrained.load(run, model, shapes)
    pretrained.load(run, model, shapes, image_size=(8, 32))


def test_token_mixing_is_of_one_grid():
    model = models.create("mixer_s16", width=8, depth=1, tokens_dim=4, channels_dim=8, patch_size=4, num_classes=3)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 32, 3)), train=False))
    state = {n: np.asarray(x) for n, x in trees.flatten(filled(shapes)).items()}
    run = pretrained.files.Checkpoint(state, ours=True, image_size=(8, 32))
    pretrained.load(run, model, shapes, image_size=(8, 32))
    with pytest.raises(BadRequest, match="its weights mix 2x8 patches, the model's 4x4"):
        pretrained.load(run, model, shapes, image_size=(16, 16))


def test_the_grid_of_a_hybrid_is_that_of_its_feature_map():
    model = models.create("vit_s_r26_s32", width=8, depth=1, heads=2, stages=(1, 1))
    x = jax.ShapeDtypeStruct((1, 40, 88, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    rows, columns = grids.of_model(model, (40, 88))
    assert (rows, columns) == (5, 11) and shapes["params"]["pos_embed"].shape[1] == 1 + rows * columns
    assert grids.of_model(models.create("resnet18"), (64, 64)) is None


def test_what_a_config_beside_the_file_says(tmp_path):
    path = tmp_path / "model.safetensors"
    pretrained.safetensors.write(path, {"x": np.zeros(1, np.float32)})
    for text, size in (
        ('{"image_size": 224}', (224, 224)),
        ('{"image_size": [8, 32]}', (8, 32)),
        ('{"pretrained_cfg": {"input_size": [3, 16, 64]}}', (16, 64)),
        ('{"image_size": "large"}', None),
        ('{"image_size": [1, 2, -3]}', None),
        ("[1", None),
    ):
        (tmp_path / "config.json").write_text(text)
        assert pretrained.files.read(str(path)).image_size == size


# --- runs of our own ---


@pytest.mark.full
@pytest.mark.parametrize("ema", [False, True])
def test_a_run_of_our_own(ema, tmp_path):
    model, variables = resnet()
    average = {"params": jax.tree.map(lambda x: x + 1, variables["params"]), "model_state": {}}
    average["model_state"] = {"batch_stats": variables["batch_stats"]}
    states = {}
    for step in (1, 2):
        states[step] = State(
            step=jnp.int32(step),
            params=jax.tree.map(lambda x, s=step: x * s, variables["params"]),
            model_state={"batch_stats": variables["batch_stats"]},
            opt_state=optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(variables["params"]),
            key=jnp.zeros(2, jnp.uint32),
            ema=average if ema else None,
        )
    mesh = sharding.make_mesh(jax.devices()[:1])
    writer = checkpoint.Checkpointer(tmp_path, sharding.laid_out(jax.eval_shape(lambda: states[1]), mesh))
    for step, state in states.items():
        writer.save(state, {"loop": {}}, best=step == 1)
        writer.wait()
    writer.close()
    before = sorted(p for p in tmp_path.rglob("*"))
    for which, step in (("", 1), ("@best", 1), ("@last", 2), ("@2", 2)):
        loaded = pretrained.load(f"{tmp_path}{which}", model, template(model, 32))
        same(loaded["params"], average["params"] if ema else states[step].params)
        same(loaded["batch_stats"], variables["batch_stats"])
    assert sorted(p for p in tmp_path.rglob("*")) == before, "reading leaves a run as it is"
    with pytest.raises(BadRequest, match=r"no checkpoint '7' in .*: there are the steps \[1, 2\]"):
        pretrained.load(f"{tmp_path}@7", model, template(model, 32))
    for part in (tmp_path / "checkpoints/best/1/state").rglob("_METADATA"):
        part.write_text("{")
    with pytest.raises(Failure, match=r"best/1 cannot be read"):
        pretrained.load(tmp_path, model, template(model, 32))
    other = models.create("resnet18", num_classes=10, **{**SMALL, "blocks": (1, 2)})
    with pytest.raises(BadRequest, match=r"missing in it: .*stage2_block2"):
        pretrained.load(f"{tmp_path}@last", other, template(other, 32))
    assert pretrained.files.read(f"{tmp_path}@last").image_size is None
    (tmp_path / "data.json").write_text('{"image_shape": [8, 32, 3]}')
    assert pretrained.files.read(f"{tmp_path}@last").image_size == (8, 32)
    (tmp_path / "data.json").write_text('{"image_shape": [8, "32"]}')
    with pytest.raises(BadRequest, match=r"data\.json: image_shape is \[8, '32'\], not"):
        pretrained.files.read(f"{tmp_path}@last")


@pytest.mark.full
def test_a_run_whose_equal_blocks_are_stacked(tmp_path):
    kw = {"width": 8, "depth": 2, "heads": 2, "num_classes": 3}
    scanned, plain = models.create("vit_ti16", scan=True, **kw), models.create("vit_ti16", **kw)
    variables = filled(template(scanned, 32))
    run = pretrained.files.Checkpoint({n: np.asarray(x) for n, x in trees.flatten(variables).items()}, ours=True)
    same(pretrained.load(run, scanned, template(scanned, 32)), variables)
    loaded = pretrained.load(run, plain, template(plain, 32))
    image = jnp.asarray(np.random.default_rng(0).random((1, 32, 32, 3), np.float32))
    outputs = [m.apply(v, image, train=False)[0] for m, v in ((scanned, variables), (plain, loaded))]
    np.testing.assert_allclose(*outputs, atol=1e-5)
