"""A run as a folder for the hub: opened again it is the run, and its card says what the run's files say."""

import json
import re

import numpy as np
import optax
import pytest
import yaml

import recvis_jax as rv
from recvis_jax import card, errors, publishing, trained
from recvis_jax.data import data_info
from recvis_jax.pretrained import files, published


@pytest.fixture(scope="module")
def images():
    from sklearn.datasets import load_digits

    return (load_digits().images * (255 / 16)).astype(np.uint8)


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    """A run of two steps as a folder, with a summary as training and `evaluate` write it."""
    from sklearn.datasets import load_digits

    data = rv.data.from_arrays(images, load_digits().target, val=0.1)
    made = rv.fit(rv.models.create("linear", num_classes=10), data, optax.adam(1e-2), steps=2, progress=False)
    folder = made.save(tmp_path_factory.mktemp("runs") / "digits")
    best = {"step": made.step, "val": {"accuracy": 0.5, "loss": 1.25}}
    later = {"test": {made.name: {"step": made.step, "accuracy": 0.25, "confusion_matrix": [[1]]}}}
    text = json.dumps({"best": best, "final": {"step": 99, "val": {"accuracy": 0.1}}, "evaluations": later})
    (folder / "summary.json").write_text(text)
    return folder


@pytest.fixture(scope="module")
def hub(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("hub") / "digits"
    model = trained.of_run(run, trained.read_config(run))
    assert publishing.write(model, run, out).keys() == {p.name for p in out.iterdir()}
    return out


def test_the_folder_is_opened_as_the_run_is(run, hub, images):
    a, b = rv.open(run), rv.open(hub)
    np.testing.assert_array_equal(a.predict(images[:5]), b.predict(images[:5]))
    assert (a.step, a.name, a.classes) == (b.step, b.name, b.classes) and rv.open(f"{hub}@{b.name}").step == b.step
    with pytest.raises(errors.BadRequest, match=r"no checkpoint '7' in .*, only best, of step 2"):
        rv.open(f"{hub}@7")


def test_its_weights_initialise_others(hub):
    for source in (hub, hub / "model.safetensors"):
        found = files.read(str(source))
        assert found.ours and found.image_size == (8, 8) and "params/head/kernel" in found.tensors


def test_what_does_not_fit_is_named(hub, tmp_path):
    for name in ("config.json", "data.json"):
        (tmp_path / name).write_bytes((hub / name).read_bytes())
    published.write(tmp_path, {"params": {"head": {"kernel": np.ones((2, 2))}}}, step=1, name="best", version="1")
    with pytest.raises(errors.BadRequest, match=r"does not fit the model of its config\.json: .*params/head/bias"):
        rv.open(tmp_path)
    from safetensors.numpy import save_file

    save_file({"x": np.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(errors.BadRequest, match=r"its model\.safetensors is another library's"):
        rv.open(tmp_path)


def test_the_card_says_what_the_files_say(hub):
    text = (hub / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    head = yaml.safe_load(head)
    assert head["library_name"] == "recvis_jax" and head["pipeline_tag"] == "image-classification"
    (val, test) = head["model-index"][0]["results"]
    assert val["dataset"]["split"] == "val" and {"type": "accuracy", "value": 0.5} in val["metrics"]
    assert test["metrics"] == [{"type": "accuracy", "value": 0.25}]
    assert re.findall(r"^## (.*)$", body, re.MULTILINE) == [
        "How to use it", "Results", "Data", "How it was made", "Intended use and limits",
    ]  # fmt: skip
    assert "| val | 180 | accuracy | 0.5 |" in body and "650 parameters" in body
    config = json.loads(re.search(r"```json\n(.*?)```", body, re.DOTALL)[1])
    assert config["model"]["name"] == "linear" and "0.1 |" not in body, "another step's numbers are not this one's"


def test_cards_know_every_data_set_with_a_licence():
    assert card.LICENCES.keys() <= rv.data.DATASETS.keys()


def test_preparation_in_the_words_of_others():
    known = data_info.DataInfo("x", 2, ("a", "b"), False, (224, 224, 3), "", "imagenet", {})
    found = publishing.preprocessing(known._replace(eval_transform="resize_crop(224, resize=256, method='bilinear')"))
    assert found["size"] == {"shortest_edge": 256} and found["crop_size"] == {"height": 224, "width": 224}
    assert found["resample"] == 2 and found["image_mean"] == [0.485, 0.456, 0.406]
    assert publishing.preprocessing(known)["size"] == {"height": 224, "width": 224}
    found = publishing.preprocessing(known._replace(eval_transform="resize_pad(224)", statistics="inception"))
    assert "size" not in found and found["image_std"] == [0.5, 0.5, 0.5]


def test_the_program_writes_each_format(program, run, tmp_path):
    flags = (f"--weights={run}", f"--out={tmp_path / 'digits.stablehlo'}")
    got = program("export", *flags)
    assert got.code == 0 and "out probabilities: float32 (b, 10)" in got.out, got.err
    assert json.loads((tmp_path / "digits.json").read_text())["step"] == 2
    for bad, pattern in (
        (flags, r"digits\.stablehlo exists already; --overwrite replaces it"),
        ((f"--weights={run}", f"--out={tmp_path / 'x.safetensors'}"), r"no library has one; --format=hub writes"),
        ((f"--weights={run}", f"--out={tmp_path / 'x.pt'}"), r"unknown file type; \.safetensors, \.npz, \.stablehlo"),
        ((f"--weights={run}", "--format=onnx", f"--out={tmp_path / 'x.npz'}"), r"unknown file type for --format=onnx"),
        ((f"--weights={run}", "--format=hub", f"--out={run}"), r"exists already|is the run itself"),
        ((f"--weights={run}", "--library=timm", f"--out={tmp_path / 'x.onnx'}"), r"--library is of --format=saf"),
    ):
        got = program("export", *bad)
        assert got.code == 2 and re.search(pattern, got.err), got.err


def test_the_program_predicts_from_the_folder(program, hub, tmp_path):
    import PIL.Image

    PIL.Image.fromarray(np.full((8, 8), 90, np.uint8)).save(tmp_path / "x.png")
    got = program("predict", f"--weights={hub}", tmp_path / "x.png")
    assert got.code == 0 and "linear, checkpoint best of step 2" in got.out, got.err
