"""The engine of names and layouts, and the tables of every library: each way back is exact."""

import numpy as np
import pytest
from reference import Fixture, fill, load, template

from recvis_jax import pretrained, trees
from recvis_jax.errors import BadRequest
from recvis_jax.pretrained import parts, rules

# Library, their name, attributes that make it small, and the size of its images.
SMALL_VGG = {"width": 4, "hidden": 6}
SMALL_BIT = {"width": 8, "norm_groups": 4}
SMALL = {"width": 8, "depth": 2, "patch_size": 8}
SMALL_VIT = SMALL | {"heads": 2}
SMALL_HYBRID = SMALL_VIT | {"stages": (1, 2), "patch_size": 2}
MODELS = [
    ("torchvision", "alexnet", {"num_classes": 5, "hidden": 6}, 64),
    ("torchvision", "vgg13", SMALL_VGG, 32),
    ("torchvision", "vgg19_bn", SMALL_VGG, 32),
    ("torchvision", "googlenet", {}, 32),
    ("torchvision", "squeezenet1_0", {"squeezes": (2,) * 8, "num_classes": 5}, 48),
    ("keras_vars", "hed", {"width": 2}, 32),
    ("torchvision", "resnet34", {"width": 4}, 32),
    ("torchvision", "wide_resnet50_2", {"width": 4}, 32),
    ("timm", "resnet101", {"width": 4}, 32),
    ("timm", "vgg11_bn", SMALL_VGG, 32),
    ("timm", "resnetv2_101x1_bit", SMALL_BIT, 32),
    ("timm", "resnet50_gn", {"width": 32}, 32),
    ("timm", "vit_small_r26_s32_224", SMALL_HYBRID, 32),
    ("timm", "vit_base_patch32_siglip_256", SMALL_VIT, 32),
    ("timm", "resmlp_12_224", SMALL, 32),
    ("deit", "deit_tiny_patch16_224", SMALL_VIT, 32),
    ("deit", "resmlpB_24", SMALL, 32),
    ("big_transfer", "BiT-M-R50x1", SMALL_BIT, 32),
    ("big_transfer", "BiT-S-R101x1", SMALL_BIT | {"num_classes": 0}, 32),
    ("big_vision", "ViT-B_16", SMALL_VIT | {"pre_logits": True}, 32),
    ("big_vision", "ViT-S_32-gap-norep", SMALL_VIT, 32),
    ("big_vision", "B/16", SMALL_VIT | {"pool": "map"}, 32),
    ("big_vision", "R26+ViT-S_32", SMALL_HYBRID, 32),
    ("big_vision", "R_Ti_16", SMALL_VIT, 64),
    ("big_vision", "Mixer-B_16", SMALL | {"tokens_dim": 6, "channels_dim": 10}, 32),
]


@pytest.mark.parametrize(("library", "name", "kw", "size"), MODELS, ids=lambda v: v if isinstance(v, str) else "")
def test_round_trip_is_exact(library, name, kw, size, tmp_path):
    model = pretrained.create(library, name, **kw)
    shapes = template(model, size)
    rng = np.random.default_rng(0)
    ours = {n: rng.standard_normal(s.shape, np.float32) for n, s in trees.flatten(shapes).items()}
    state = pretrained.export(trees.unflatten(ours), model, library)
    again = trees.flatten(pretrained.load(state, model, shapes, library=library))
    assert again.keys() == ours.keys()
    for n, x in ours.items():
        np.testing.assert_array_equal(again[n], x, err_msg=n)
    for suffix in (".safetensors", ".npz"):  # and found out from the names alone
        pretrained.export(trees.unflatten(ours), model, library, tmp_path / f"x{suffix}")
        again = trees.flatten(pretrained.load(tmp_path / f"x{suffix}", model, shapes))
        for n, x in ours.items():
            np.testing.assert_array_equal(again[n], x, err_msg=n)


@pytest.mark.parametrize(
    ("fixture", "library", "name"),
    [
        ("tv_resnet18", "torchvision", "resnet18"),
        ("tv_vgg11", "torchvision", "vgg11"),
        ("tv_googlenet_aux", "torchvision", "googlenet"),
        ("timm_resnetv2_50x1_bit", "timm", "resnetv2_50x1_bit"),
    ],
)
def test_export_gives_their_state_dict(fixture, library, name):
    model, state = pretrained.create(library, name), Fixture(fixture).state_dict()
    exported = pretrained.export(load(model, state), model, library)
    assert exported.keys() == state.keys()
    for n, x in state.items():
        assert exported[n].dtype == x.dtype
        np.testing.assert_array_equal(exported[n], x, err_msg=n)


@pytest.mark.full
def test_big_transfer_names():
    model = pretrained.create("big_transfer", "BiT-M-R50x1", num_classes=21843)
    names = {m.theirs: m for m in pretrained.moves(model, trees.flatten(template(model)), "big_transfer")}
    for name, shape in {
        "resnet/root_block/standardized_conv2d/kernel": (7, 7, 3, 64),
        "resnet/block1/unit01/a/proj/standardized_conv2d/kernel": (1, 1, 64, 256),
        "resnet/block3/unit06/b/standardized_conv2d/kernel": (3, 3, 256, 256),
        "resnet/block4/unit03/c/group_norm/gamma": (512,),
        "resnet/group_norm/beta": (2048,),
        "resnet/head/conv2d/kernel": (1, 1, 2048, 21843),
    }.items():
        ours = [trees.flatten(template(model))[n].shape for n in names[name].ours]
        assert names[name].layout.export(*(np.zeros(s, np.int8) for s in ours)).shape == shape
    assert "resnet/block1/unit02/a/proj/standardized_conv2d/kernel" not in names
    small = pretrained.create("big_transfer", "R50x1", **SMALL_BIT)
    ours = {n: np.ones(s.shape, np.float32) for n, s in trees.flatten(template(small, 32)).items()}
    state = pretrained.export(trees.unflatten(ours), small, "big_transfer")
    older = {n.replace("a/standardized_conv2d/", "a/standardized_conv2d_17/"): x for n, x in state.items()}
    assert older.keys() != state.keys()
    load(small, older, 32)


def test_timm_names_of_vgg():
    model = pretrained.create("timm", "vgg16")
    names = {m.theirs: m for m in pretrained.moves(model, trees.flatten(template(model)), "timm")}
    assert names["pre_logits.fc1.weight"].layout.export(np.zeros((25088, 4096), np.int8)).shape == (4096, 512, 7, 7)
    assert names["pre_logits.fc2.weight"].layout.export(np.zeros((4096, 4096), np.int8)).shape == (4096, 4096, 1, 1)
    assert names["head.fc.weight"].layout.export(np.zeros((4096, 1000), np.int8)).shape == (1000, 4096)


# --- the engine ---

QKV = tuple(f"params/block{{i}}/{x}" for x in ("q", "k", "v"))


@pytest.mark.parametrize(
    ("layout", "theirs", "ours"),
    [
        ("", (2, 3), [(2, 3)]),
        ("conv", (5, 4, 3, 2), [(3, 2, 4, 5)]),
        ("linear", (5, 4), [(4, 5)]),
        ("conv1x1", (5, 4, 1, 1), [(4, 5)]),
        ("split", (6,), [(2,), (2,), (2,)]),
        ("split_linear", (6, 4), [(4, 2), (4, 2), (4, 2)]),
        (rules.squeeze(2), (1, 1, 4, 5), [(4, 5)]),
        (rules.linear_after_flatten(3, 2), (5, 24), [(24, 5)]),
        (rules.linear_as_conv(3, 2), (5, 4, 3, 2), [(24, 5)]),
    ],
    ids=lambda value: None if isinstance(value, rules.Layout) else str(value),  # a function's text differs each time
)
def test_layouts_invert_and_refuse_other_ranks(layout, theirs, ours):
    layout = rules.LAYOUTS[layout] if isinstance(layout, str) else layout
    x = np.random.default_rng(0).random(theirs)
    loaded = layout.load(x, len(ours))
    assert [y.shape for y in loaded] == ours
    np.testing.assert_array_equal(layout.export(*loaded), x)
    if layout is not rules.LAYOUTS[""]:
        with pytest.raises(ValueError):
            layout.load(np.zeros((7, 2, 2, 2, 2)), len(ours))


def test_linear_after_flatten_is_the_same_function():
    maps, weight = np.random.default_rng(0).random((2, 3, 2, 4)), np.random.default_rng(1).random((5, 24))
    theirs = maps.transpose(0, 3, 1, 2).reshape(2, -1) @ weight.T
    (kernel,) = rules.linear_after_flatten(3, 2).load(weight, 1)
    np.testing.assert_allclose(maps.reshape(2, -1) @ kernel, theirs)
    (kernel,) = rules.linear_as_conv(3, 2).load(weight.reshape(5, 4, 3, 2), 1)
    np.testing.assert_allclose(maps.reshape(2, -1) @ kernel, theirs)


def test_placeholders_offsets_formats_and_fused_tensors():
    table = (
        ("b{i}.qkv", QKV, "split"),
        ("u{j:02d}.w{i+1}", "params/stage{i+1}/unit{j-1}/w", ""),
        ("stem.w", "params/stem/w", ""),
        ("stem.count", "params/stem/w", "count"),
    )
    names = ["params/block10/q", "params/block10/k", "params/block10/v", "params/stage2/unit3/w", "params/stem/w"]
    moves = rules.plan(table, names)
    assert [(m.theirs, m.ours) for m in moves] == [
        ("b10.qkv", tuple(names[:3])),
        ("u04.w2", (names[3],)),
        ("stem.w", (names[4],)),
        ("stem.count", (names[4],)),
    ]
    state = rules.export(moves, {n: np.full(2, i, np.float32) for i, n in enumerate(names)})
    np.testing.assert_array_equal(state["b10.qkv"], [0, 0, 1, 1, 2, 2])
    assert state["stem.count"].dtype == np.int64 and state["stem.count"].shape == ()
    found = rules.fit(moves, {n: x for n, x in state.items() if n != "stem.count"})
    assert not found.missing and not found.unexpected and set(found.values) == set(names)


@pytest.mark.parametrize("name", ["params/stage0/unit1/w", "params/stemmed/w", "params/block1/q"])
def test_a_variable_without_a_row_is_an_error(name):
    table = (("b{i}.qkv", QKV, "split"), ("u{i}.{j}", "params/stage{i+1}/unit{j}/w", ""), ("w", "params/stem/w", ""))
    with pytest.raises(BadRequest, match=f"no name for 1 of the model's 1 variables: {name}"):
        rules.plan(table, [name])


def test_renaming():
    def rename(name):
        return parts.substitute(name, ((r"^module\.", ""), (r"_\d+", "")))

    source = {"module.a_1.w": 1, "b.w": 2}
    renamed = parts.renamed(source, source, rename)
    assert dict(renamed) == {"a.w": 1, "b.w": 2} and len(renamed) == 2
    assert "a.w" in renamed and "module.a_1.w" not in renamed and renamed.shape_of("b.w") == ()
    same = parts.renamed({"a": 1, "module.a": 1}, ["a", "module.a"], rename)
    assert dict(same) == {"a": 1}
    with pytest.raises(BadRequest, match=r"'a' and 'module\.a' in the checkpoint are both 'a'"):
        parts.renamed({"a": 1, "module.a": 2}, ["a", "module.a"], rename)


def test_unknown_names():
    with pytest.raises(BadRequest, match="torchvision"):
        pretrained.create("torchvison", "resnet50")
    with pytest.raises(BadRequest, match="resnet50"):
        pretrained.create("torchvision", "resnet5O")
    with pytest.raises(BadRequest, match="num_clases"):
        pretrained.create("torchvision", "resnet50", num_clases=3)
    assert pretrained.create("timm", "resnetv2_50x1_bit.goog_in21k", num_classes=21843).num_classes == 21843
    model = pretrained.create("torchvision", "alexnet")
    with pytest.raises(BadRequest, match="timm has no table of names for AlexNet"):
        pretrained.export(template(model), model, "timm")


def test_strict_loading_lists_all_that_differs():
    model = pretrained.create("torchvision", "resnet18", width=4)
    shapes = template(model, 32)
    state = pretrained.export(trees.unflatten({n: np.zeros(s.shape) for n, s in trees.flatten(shapes).items()}),
                              model, "torchvision")  # fmt: skip
    for name in [n for n in state if n.endswith("num_batches_tracked")]:
        del state[name]  # what older versions of torch did not write
    pretrained.load(state, model, shapes)
    pretrained.load({f"module.{n}": x for n, x in state.items()}, model, shapes)
    del state["bn1.weight"]
    state["extra.weight"] = np.zeros(3)
    state["layer1.0.conv1.weight"] = np.zeros((4, 4, 5, 5), np.float32)
    state["conv1.weight"] = np.zeros(4, np.float32)
    with pytest.raises(BadRequest) as e:
        pretrained.load(state, model, shapes)
    assert str(e.value) == (
        f"the checkpoint does not fit the model of {len(trees.flatten(shapes))} variables: "
        "1 missing in it: bn1.weight; "
        "1 not in the model: extra.weight; "
        "2 of another shape: conv1.weight (4,), "
        "layer1.0.conv1.weight -> params/stage1_block1/conv1/kernel (5, 5, 4, 4) instead of (3, 3, 4, 4)."
    )
    many = {f"new.{i}": np.zeros(1) for i in range(100)}
    with pytest.raises(BadRequest, match=r"101 not in the model: .* and 98 more"):
        pretrained.load({**state, **many}, model, shapes)


@pytest.mark.full
def test_a_checkpoint_of_another_family_is_refused_in_one_line():
    model = pretrained.create("torchvision", "resnet18", width=4)
    with pytest.raises(
        BadRequest, match=r"none of the names .* for this ResNet; it holds features.0.weight.*another model"
    ):
        load(model, {"features.0.weight": np.zeros((64, 3, 3, 3))}, 32)
    with pytest.raises(BadRequest, match="it holds nothing"):
        load(model, {}, 32)
    mixer = pretrained.create("timm", "mixer_s16_224", **SMALL, tokens_dim=6, channels_dim=10)
    deeper = pretrained.create("torchvision", "resnet50", width=4)
    for other, file, words in (
        (mixer, ("timm", "resmlp_12_224", SMALL), "only 12 of the 30 names that timm has for this Mixer"),
        (deeper, ("torchvision", "resnet18", {"width": 4}), "only 122 of the 320 names .* for this ResNet"),
    ):
        library, name, kw = file
        theirs = pretrained.create(library, name, **kw)
        ours = {n: np.ones(s.shape, np.float32) for n, s in trees.flatten(template(theirs, 32)).items()}
        state = pretrained.export(trees.unflatten(ours), theirs, library)
        with pytest.raises(BadRequest, match=words) as e:
            load(other, state, 32)
        assert "\n" not in str(e.value)


def test_half_precision_is_widened_and_integers_are_refused():
    model = pretrained.create("torchvision", "vgg11", **SMALL_VGG)
    shapes = template(model, 32)
    ones = {n: np.ones(s.shape, np.float16) for n, s in trees.flatten(shapes).items()}
    state = pretrained.export(trees.unflatten(ones), model, "torchvision")
    assert all(x.dtype == np.float32 for x in trees.flatten(load(model, state, 32)).values())
    state["features.0.bias"] = state["features.0.bias"].astype(np.int32)
    with pytest.raises(BadRequest, match="stage1_conv1/bias is int32 instead of float32"):
        load(model, state, 32)


def test_fixtures_are_filled_as_they_were_made():
    fill.self_check()
