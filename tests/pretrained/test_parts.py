"""Which tensors of a file are the model's: wrappers of names, several sets of weights, and what to do about them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import template

from recvis_jax import models, pretrained, trees
from recvis_jax.errors import BadRequest
from recvis_jax.pretrained import files, parts, safetensors

NET = models.create("resnet18", num_classes=4, width=2, blocks=(1, 1), bottleneck=False)
SHAPES = template(NET, 32)


def state(value=1.0):
    """Torchvision's names, and numbers that tell one set of weights from another."""
    ones = trees.unflatten({n: np.full(s.shape, value, np.float32) for n, s in trees.flatten(SHAPES).items()})
    return pretrained.export(ones, NET, "torchvision")


def load(source, **kw):
    said = []
    kw = {"say": said.append, **kw}
    loaded = pretrained.load(source, NET, SHAPES, **kw)
    (value,) = {float(x.flat[0]) for x in map(np.asarray, jax.tree.leaves(loaded))}
    return value, said


def under(prefix, tensors):
    return {f"{prefix}{n}": x for n, x in tensors.items()}


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "module.module._orig_mod.", "model.", "net.",
     "state_dict.", "backbone.", "model._orig_mod.", "model.module.backbone.", "_forward_module._fsdp_wrapped_module.",
     "teacher.module.", "a.b.c.d."],
)  # fmt: skip
def test_wrappers_are_stripped_however_nested(prefix):
    assert load(under(prefix, state())) == (1, [])


def test_wrappers_inside_of_names():
    """As when a part of a model was compiled, or its activations are computed again."""
    names = {n.replace("layer1.0.", "layer1._orig_mod.0._checkpoint_wrapped_module."): x for n, x in state().items()}
    assert len(names) == len(state()) and names.keys() != state().keys()
    assert load(under("module.", names)) == (1, [])


def test_a_name_twice():
    """A compiled model that a module holds next to itself writes every tensor twice."""
    assert load({**state(), **under("_orig_mod.", state())}) == (1, [])
    other = state()
    other["conv1.weight"] = other["conv1.weight"] + 1
    with pytest.raises(BadRequest, match=r"'conv1.weight' and '_orig_mod.conv1.weight' in the checkpoint are both"):
        load({**state(), **under("_orig_mod.", other)})


@pytest.mark.parametrize(
    ("raw", "averaged"),
    [("model.", "model_ema."), ("state_dict.", "state_dict_ema."), ("student.", "teacher."), ("", "ema."),
     ("module.net.", "swa_model.module."), ("model.backbone.", "ema_model.backbone."), ("ema_raw.", "avg.")],
)  # fmt: skip
def test_averaged_weights_beside_raw_ones(raw, averaged, tmp_path):
    path = tmp_path / "x.safetensors"
    for order in (0, 1):
        both = [under(raw, state(1.0)), under(averaged, state(2.0))]
        safetensors.write(path, {**both[order], **both[1 - order]})
        value, said = load(str(path))
        names = [parts.unwrapped(p.rstrip(".")) or "." for p in (averaged, raw)]
        if "ema" not in raw:
            assert value == 2
            assert said == [f"{path} has several sets of weights: {names[0]} is used; FILE#{names[1]} uses another"]
        assert load(f"{path}#{names[1]}")[0] == 1
        assert load(f"{path}#{names[0]}")[0] == 2


def test_a_part_that_is_not_there(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.write(path, under("model.", state()))
    with pytest.raises(BadRequest, match=r"has no weights 'model_ema'; its names begin with model\."):
        load(f"{path}#model_ema")
    (tmp_path / "x#y.safetensors").write_bytes(path.read_bytes())
    assert load(str(tmp_path / "x#y.safetensors"))[0] == 1, "a file's own name comes first"


def test_what_lies_beside_the_weights_of_a_training_state():
    """Tables of tables: an optimizer's tensors are no weights; a tensor in the weights' own table is one too many."""
    tensors = {
        **under("state.model.", state()),
        "optimizer.state.0.exp_avg": np.zeros(3),
        "rng": np.zeros(4),
    }
    whole = files.Checkpoint(tensors, tables=("state.model", "optimizer.state.0", ""))
    assert load(whole) == (1, [])
    extra = whole._replace(tensors={**tensors, "state.model.extra.weight": np.zeros(1)})
    with pytest.raises(BadRequest, match=r"1 not in the model: extra\.weight"):
        load(extra)
    assert load(extra, ignore="extra")[0] == 1
    average = {"n_averaged": np.int64(3), **under("module.", state())}
    assert load(files.Checkpoint(average)) == (1, [])
    flat = files.Checkpoint({**state(), "optimizer.exp_avg": np.zeros(3)}, tables=("", "optimizer"))
    assert load(flat) == (1, [])
    with pytest.raises(BadRequest, match=r"1 not in the model: optimizer.exp_avg.* ignore=REGEX leaves"):
        load(files.Checkpoint(flat.tensors))


def test_heads_name_their_remedies():
    other = {**state(), "fc.weight": np.zeros((7, 4), np.float32), "fc.bias": np.zeros(7, np.float32)}
    with pytest.raises(BadRequest) as e:
        load(other)
    assert str(e.value).endswith(
        "outputs: 7 there, 4 here: new_head=True starts a new head, or a model of num_classes=7 makes as many."
    )
    spell = {"new_head": "", "num_classes": "--num_classes=7"}
    with pytest.raises(BadRequest, match=r"outputs: 7 there, 4 here: --num_classes=7 makes as many.$"):
        load(other, spell=lambda key, value: spell.get(key, ""))
    none = {n: x for n, x in state().items() if not n.startswith("fc.")}
    with pytest.raises(
        BadRequest, match=r"2 missing in it: fc.* no head there, 4 here: new_head=True starts a new head"
    ):
        load(none)
    huge = {**other, "fc.weight": np.broadcast_to(np.float32(0), (10**6, 4)), "fc.bias": np.zeros(10**6, np.float32)}
    with pytest.raises(BadRequest, match=r"fc.weight \(1000000, 4\).*outputs: 1000000 there, 4 here: new_head=True"):
        load(huge)


def test_messages_are_about_a_line():
    wrong = {f"{'long' * 30}.{i}": np.zeros(1) for i in range(500)} | {n: np.zeros((9, 9)) for n in state()}
    with pytest.raises(BadRequest) as e:
        load(wrong)
    assert "\n" not in str(e.value) and len(str(e.value)) < 1000
    with pytest.raises(BadRequest) as e:
        load({f"{'long' * 300}.{i}": np.zeros(1) for i in range(500)})
    assert len(str(e.value)) < 600


def test_numbers_that_are_not_finite_are_refused():
    for bad in (np.nan, np.inf):
        wrong = {**state(), "fc.bias": np.float32([0, 0, bad, 0])}
        with pytest.raises(BadRequest, match=r"fc.bias holds values that are not finite"):
            load(wrong)
    wide = {**state(), "fc.bias": np.float64([0, 0, 1e300, 0])}  # not as the model's float32
    with pytest.raises(BadRequest, match=r"not finite"):
        load(wide)


def test_names_are_looked_up_in_other_libraries_too():
    vit = models.create("vit_ti16", width=8, depth=1, heads=2, num_classes=3)
    ones = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), template(vit, 32))
    for library in ("timm", "transformers"):
        variant = vit if library == "timm" else models.create("vit_ti16", width=8, depth=1, heads=2, num_classes=3)
        named = pretrained.export(ones, variant, library)
        loaded = pretrained.load(under("model.module.", named), vit, template(vit, 32))
        jax.tree.map(np.testing.assert_array_equal, loaded, ones)
