"""`python -m recvis_jax.look`: what it writes of a run, and what it says to what cannot be."""

import re
from functools import partial

import cv2
import jax
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import recvis_jax as rv
from recvis_jax import looking, network
from recvis_jax.errors import BadRequest
from recvis_jax.figure import Request


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
    asked = Request(opened, images, ["a", "b<c", "d"], lambda *done: None)
    return asked._replace(**changes)


@pytest.mark.full
def test_figures_and_the_page_of_them(folder, tmp_path):
    where, images = folder
    asked = request(where, images)
    found = list(looking.show(asked, ["filters", "maps", "saliency", "gradcam"]))
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


def test_what_suits_a_network_is_shown_unasked(folder):
    where, images = folder
    asked = request(where, images)
    assert looking.usual(asked) == ["filters", "saliency", "gradcam"]
    assert looking.usual(asked._replace(images=images[:0])) == ["filters"]  # its data are not there
    model = rv.models.create("mae_b16", patch_size=4, width=8, depth=1, heads=2, decoder_width=8, decoder_depth=1,
                             decoder_heads=2)  # fmt: skip
    variables = model.init(jax.random.key(0), jax.numpy.asarray(images), train=False)
    apply = partial(model.apply, train=False)
    tokens = asked.network._replace(apply=apply, variables=variables, trained=None)
    assert looking.usual(asked._replace(network=tokens)) == ["filters", "attention", "positions"]
    unfiltered = asked.network._replace(
        apply=lambda variables, x: (x.mean((1, 2)), {}), variables={"params": {}}, trained=None
    )
    assert looking.usual(asked._replace(network=unfiltered)) == ["saliency"]


def test_queries_of_detr_are_shown_with_what_they_look_at(folder):
    """A row for an image: its best boxes, then as many queries; a query that looks at one place is bright there."""
    where, images = folder
    images = np.repeat(np.repeat(images[:2], 2, 1), 2, 2)
    size = dict(queries=3, width=8, heads=2, encoder_depth=1, decoder_depth=1, hidden=8)
    backbone = dict(name="resnet18", norm="none", width=4, blocks=(1,))
    model = rv.models.create("detr_tiny", num_classes=2, backbone=backbone, **size)
    variables = model.init(jax.random.key(0), jax.numpy.asarray(images), train=False)
    asked = request(where, images)
    network = asked.network._replace(
        apply=partial(model.apply, train=False), variables=variables, trained=None, image_shape=images.shape[1:]
    )
    asked = asked._replace(network=network, names=["a", "b<c"])
    assert looking.usual(asked) == ["filters", "queries"]
    (found,) = looking.show(asked, ["queries"])
    side = 256 // images.shape[1] * images.shape[1]
    assert found.picture.shape == (2 * side + 2, 4 * side + 6, 3) and found.caption.count("%") == 6
    weights = jax.numpy.zeros((1, 2, 3, 4)).at[0, :, 1, 2].set(jax.numpy.array([1, 0.5]))
    looked = rv.vis.of_queries({"projected": jax.numpy.zeros((1, 2, 2, 8)), "decoder0/cross_attention": weights})
    looked = np.asarray(looked)
    assert looked[0, 1].tolist() == [[0, 0], [0.75, 0]] and looked.sum() == 0.75


def test_figures_of_images_that_are_made(folder):
    """Each has its tiles of 128 pixels, two white ones between them, and shows something in every tile."""
    where, images = folder
    asked = request(where, images[:2], steps=1)
    tiles = {  # rows and columns
        "maximise": (asked._replace(units=(3, 7, 4)), 2, 2),
        "invert": (asked._replace(layer="stage1/block1"), 2, 2),
        "dream": (asked, 2, 2),
        "style": (asked._replace(style=images[2:]), 2, 3),
    }
    for name, (of, rows, columns) in tiles.items():
        (found,) = looking.show(of, [name])
        picture = found.picture
        assert picture.shape[:2] == (130 * rows - 2, 130 * columns - 2), name
        assert picture.min() >= 0 and picture.max() <= 1
        for i in range(2):
            assert picture[130 * i : 130 * i + 128, :128].std() > 0, name
    assert "one octave" in next(looking.show(tiles["dream"][0], ["dream"])).caption  # the head reads all pixels


def test_what_cannot_be_shown_is_said(folder):
    where, images = folder
    asked = request(where, images)
    for name, message in {
        "attention": "the network names no attention weights", "positions": "does not cut its images into patches",
        "queries": "names no decoder0/cross_attention",
        "reconstructions": "need the run of a masked autoencoder",
        "gradcm": "Did you mean 'gradcam'", "style": "--style=FILE",
    }.items():  # fmt: skip
        with pytest.raises(BadRequest, match=message):
            list(looking.show(asked, [name]))
    for name, message in {"saliency": "needs images: name some", "top9": "--weights=RUN"}.items():
        with pytest.raises(BadRequest, match=message):
            list(looking.show(asked._replace(images=images[:0]), [name]))


def test_best_patches_of_the_images_named(folder):
    """Where no data set is opened, such as that of published weights: the best of three images are all of them."""
    where, images = folder
    (found,) = looking.show(request(where, images, layer="stage1/block1"), ["top9"])
    assert "3 given images" in found.caption and found.picture.std() > 0
    with pytest.raises(BadRequest, match="unit 16 of 'stage1/block1' is outside 0 to 15"):
        list(looking.show(request(where, images, layer="stage1/block1", units=(16,)), ["top9"]))


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "--weights is missing"),
        (["--weights=nowhere"], "--model is missing"),
        (["--weights=x.npz", "--model=resnet18"], "--out is missing"),
        (["--weights=x.npz", "--split=val", "x.png"], "give images or --split, not both"),
        (
            ["--weights=x.npz", "--model=resnet18", "--out=x", "--show=maximise", "--units=3,x"],
            "--units=x: channels are whole",
        ),
        (
            ["--weights=x.npz", "--model=resnet18", "--out=x", "--steps=3"],
            "--steps is only for --show=maximise or invert",
        ),
    ],
)
def test_bad_requests(program, flags, message):
    code, _, text = program("look", *flags)
    assert code == 2 and message in text
