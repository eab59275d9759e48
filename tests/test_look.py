"""`python -m recvis_jax.look`: what it writes of a run, and what it says to what cannot be."""

import re

import cv2
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import recvis_jax as rv
from recvis_jax import looking, network
from recvis_jax.errors import BadRequest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a run: a LeNet-5 with relus after a step on the digits."""
    digits = load_digits()
    images = (digits.images * (255 / 16)).astype(np.uint8)
    data = rv.data.from_arrays(images[:300], digits.target[:300], val=100 / 300)
    model = rv.models.create("lenet5", activation="relu", pool="max")
    run = rv.fit(model, data, optax.adam(1e-2), steps=1, batch_size=32, progress=False)
    return run.save(tmp_path_factory.mktemp("look") / "run"), images[:3, ..., None].astype(np.float32) / 255


def request(folder, images, **changes):
    opened = network.of_run(folder)
    asked = looking.Request(opened, images, ["a", "b<c", "d"], None, None, None, lambda *done: None)
    return asked._replace(**changes)


@pytest.mark.full
def test_figures_and_the_page_of_them(folder, tmp_path):
    where, images = folder
    asked = request(where, images)
    found = looking.show(asked, ["filters", "maps", "saliency", "gradcam"])
    assert [f.name for f in found] == ["filters", "maps", "saliency", "gradcam"]
    page = looking.write(found, asked, tmp_path / "out").read_text()
    for figure in found:
        assert figure.picture.min() >= 0 and figure.picture.max() <= 1
        stored = cv2.imread(str(tmp_path / f"out/{figure.name}.png"), cv2.IMREAD_UNCHANGED)
        assert stored.shape[:2] == figure.picture.shape[:2] and stored.std() > 0
    assert page.count("data:image/png;base64,") == 4 and "b&lt;c" in page and "<script" not in page
    assert not re.findall(r"(src|href)=.https?:", page)
    assert len(list((tmp_path / "out").iterdir())) == 5
    # Of three images of 8x8, each 128 pixels: above the images, below their maps, two white pixels between.
    assert found[2].picture.shape == (2 * 128 + 2, 3 * 128 + 4, 3)


def test_what_cannot_be_shown_is_said(folder):
    where, images = folder
    asked = request(where, images)
    for name, message in {
        "attention": "the network names no attention weights", "positions": "cuts its images into no patches",
        "reconstructions": "those of a masked autoencoder's run", "top9": "--weights=RUN",
        "gradcm": "Did you mean 'gradcam'",
    }.items():  # fmt: skip
        with pytest.raises(BadRequest, match=message):
            looking.show(asked, [name])
    with pytest.raises(BadRequest, match=r"of images: name some"):
        looking.show(asked._replace(images=images[:0]), ["saliency"])


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "--weights is missing"),
        (["--weights=nowhere"], "--model is missing"),
        (["--weights=x.npz", "--model=resnet18"], "--out is missing"),
        (["--weights=x.npz", "--split=val", "x.png"], "give images or --split, not both"),
    ],
)
def test_bad_requests(program, flags, message):
    code, _, text = program("look", *flags)
    assert code == 2 and message in text
