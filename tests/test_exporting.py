"""Exported computations are those of the model, by whoever loads them."""

import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recvis_jax import errors, exporting, network, trained
from recvis_jax.data import augment

TOKENS = dict(patch_size=8, width=16, depth=1)
BACKBONE = dict(name="resnet18", norm="frozen", width=4, blocks=(1, 1))
DETR = dict(backbone=BACKBONE, queries=6, width=16, heads=2, encoder_depth=1, decoder_depth=1, hidden=16)
MODELS = {
    "resnet": dict(name="resnet18", width=4, blocks=(1, 1)),
    "vit": dict(name="vit_s16", heads=2, **TOKENS),
    "scanned": dict(name="vit_s16", heads=2, scan=True, **{**TOKENS, "depth": 2}),
    "mixer": dict(name="mixer_s16", tokens_dim=4, channels_dim=8, **TOKENS),
    "detr": dict(name="detr_tiny", **DETR),
    "fcn": dict(name="fcn_r50", backbone=BACKBONE, num_classes=11),
    "mae": dict(name="mae_b16", heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2, **TOKENS),
}
TASKS = {"detr": "detect", "fcn": "segment", "mae": "mae"}
SIDE = 16


@functools.cache
def model(kind, multi=False):
    """A network of random weights, as a run of made-up images has it."""
    data = dict(name="cifar10", statistics="cifar10", mock=8, train="train", val=None, test=None)
    data |= dict.fromkeys(("transform", "eval_transform"), f"resize({SIDE})")
    if kind in ("detr", "fcn"):
        fields = ("image", "boxes", "labels", "frame") if kind == "detr" else ("image", "masks", "labels")
        data |= dict(name="fashion_scenes", statistics="fashion_mnist", fields=fields, most_objects=4)
        data |= dict.fromkeys(("transform", "eval_transform"), f"resize_pad({SIDE})")
    config = dict(data=data, model=MODELS[kind], optim=dict(name="sgd", lr=0.1), steps=1, batch_size=8)
    config["task"] = dict(name=TASKS.get(kind, "classify"), **({"loss": "sigmoid"} if multi else {}))
    made = trained.of_config(config, "random")
    rng = np.random.default_rng(0)  # some layers begin as zeros, which would hide what is wrong

    def drawn(path, x):
        name, value = path[-1].key, rng.normal(0, 1, x.shape)
        if name == "kernel":
            return jnp.asarray(value * np.sqrt(1 / max(1, np.prod(x.shape[:-1]))), x.dtype)
        return jnp.asarray(1 + 0.1 * np.abs(value) if name in ("scale", "var") else 0.1 * value, x.dtype)

    return made._replace(
        params=jax.tree_util.tree_map_with_path(drawn, made.params),
        model_state=jax.tree_util.tree_map_with_path(drawn, made.model_state),
    )


def pictures(kind, count=3):
    x = np.random.default_rng(count).integers(0, 256, (count, SIDE, SIDE, 1 if kind in ("detr", "fcn") else 3))
    return x.astype(np.uint8)


def outputs(kind, x):
    """What the model's own `apply` gives, with pixels normalised by hand."""
    of = model(kind)
    mean, std = (np.float32(s) for s in augment.STATISTICS[of.run.data.info.statistics])
    return of.run.model.apply(of.variables, jnp.asarray((np.float32(x) / 255 - mean) / std), train=False)


def near(a, b, most=1e-5):
    assert np.abs(np.asarray(a, np.float64) - b).max() < most


ALONE = """
import sys
sys.modules["recvis_jax"] = None  # importing it would fail
import jax, numpy as np
exported = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
assert exported.platforms == ("cpu", "cuda", "tpu"), exported.platforms
for count in (1, 3):
    found = exported.call(np.load(sys.argv[2])[:count])
    np.savez(f"{sys.argv[3]}{count}.npz", **found)
"""


def test_stablehlo_needs_jax_alone(tmp_path):
    x = pictures("resnet")
    beside = exporting.write(model("resnet"), tmp_path / "r.stablehlo").beside
    np.save(tmp_path / "x.npy", x)
    flags = (tmp_path / "r.stablehlo", tmp_path / "x.npy", tmp_path / "y")
    subprocess.run([sys.executable, "-c", ALONE, *map(str, flags)], check=True, timeout=300, cwd=tmp_path)
    logits = outputs("resnet", x)[0]
    for count in (1, 3):
        found = np.load(tmp_path / f"y{count}.npz")
        near(found["logits"], logits[:count])
        near(found["probabilities"], np.exp(logits[:count]) / np.exp(logits[:count]).sum(1, keepdims=True))
    facts = json.loads(beside.read_text())
    assert facts["classes"] == [*model("resnet").run.data.info.class_names] and len(facts["classes"]) == 10
    assert facts["inputs"] == {"image": {"shape": ["b", SIDE, SIDE, 3], "dtype": "uint8"}}
    assert facts["outputs"]["probabilities"] == {"shape": ["b", 10], "dtype": "float32"}
    assert facts["preprocessing"]["before"] == f"resize({SIDE})" and facts["preprocessing"]["colours"] == "RGB"


def needs_onnx():
    pytest.importorskip("jax2onnx", reason="the extra recvis_jax[onnx] is not installed")
    if not jax.__version__.startswith(exporting.ONNX_JAX):
        pytest.skip("jax2onnx does not know this JAX")


@pytest.mark.every
@pytest.mark.parametrize("kind", ["resnet", "vit", "scanned", "mixer"])
def test_onnx_of_classifiers(kind):
    needs_onnx()
    runtime = pytest.importorskip("onnxruntime")
    what = exporting.served(model(kind))
    session = runtime.InferenceSession(exporting.onnx(what))
    assert [i.name for i in session.get_inputs()] == ["image"]
    for count in (1, 3):
        x = pictures(kind, count)
        logits, probabilities = session.run(["logits", "probabilities"], {"image": x})
        near(logits, outputs(kind, x)[0])
        near(probabilities, jax.nn.softmax(logits))


@pytest.mark.every
def test_onnx_of_a_detector():
    """Whose pictures may be padded: nothing may attend to the padding."""
    needs_onnx()
    runtime = pytest.importorskip("onnxruntime")
    what, x, of = exporting.served(model("detr")), pictures("detr"), model("detr")
    data = exporting.onnx(what)
    session = runtime.InferenceSession(data)
    assert [i.name for i in session.get_inputs()] == ["image", "frame"]
    frame = np.float32([[0, 0, 16, 16], [0, 0, 8, 16], [0, 0, 16, 12]])
    boxes, labels, scores = session.run(["boxes", "labels", "scores"], {"image": x, "frame": frame})
    wanted = of.run.task.predict(
        of.params, of.model_state, of.run.data.preprocess({"image": jnp.asarray(x), "frame": frame})
    )
    near(boxes, wanted["boxes"], 1e-4)  # pixels
    near(scores, wanted["scores"])
    np.testing.assert_array_equal(labels, wanted["labels"])
    x[1, :, 8:] = 0  # what lies in the padding changes nothing
    near(session.run(["scores"], {"image": x, "frame": frame})[0][1], scores[1])
    assert exporting.difference(what, data) < 1e-5
    assert jnp.cumsum(jnp.ones((2, 3)), 1)[0, 2] == 3, "jax2onnx leaves JAX as it was"


def test_maps_are_exported():
    what, x = exporting.served(model("fcn")), pictures("fcn")
    found = jax.export.deserialize(bytearray(exporting.stablehlo(what))).call(x)
    np.testing.assert_array_equal(found["map"], outputs("fcn", x)[0].argmax(-1))
    assert exporting.about(model("fcn"), what)["classes"][0] == "background"


def test_probabilities_of_several_classes():
    assert network.kind(model("vit")) == "softmax" and network.kind(model("vit", multi=True)) == "sigmoid"
    found = exporting.served(model("vit", multi=True)).function(jnp.asarray(pictures("vit")))
    near(found["probabilities"], 1 / (1 + np.exp(-found["logits"])))


def test_what_cannot_be_exported_is_said(monkeypatch):
    with pytest.raises(errors.BadRequest, match=r"trained without labels.*--format=hub writes its weights"):
        exporting.served(model("mae"))
    monkeypatch.setattr(exporting, "MOST_BYTES", 1000)
    with pytest.raises(errors.BadRequest, match=r"the weights have 0\.0 GB and such a file holds"):
        exporting.served(model("vit"))


def test_onnx_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(errors.BadRequest, match=r"pip install 'recvis_jax\[onnx\]'"):
        exporting.onnx(exporting.served(model("vit")))
