"""Figures: what is drawn where, whatever the classes are called."""

import warnings

import cv2
import numpy as np
import pytest

from recvis_jax.errors import BadRequest
from recvis_jax.vis import plot

pytest.importorskip("matplotlib")

NAMES = (
    "Äpfel",
    "Bäume und Sträucher im Spätherbst am See",
    "猫",
    "🐈",
    "$x_1$",
    "a$b",
    "عربي",
    "x\x1b[2J\n",
    "e\u0301",
    "",
)


@pytest.mark.parametrize("k", [1, 2, 10, 30, 160])
def test_confusion_matrices_are_drawn_without_a_warning(tmp_path, k):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counts = np.eye(k, dtype=int) * 7
        assert plot.confusion(counts, NAMES[:k], tmp_path / "m.png", "tést$[90%:], 猫")
    image = cv2.imread(str(tmp_path / "m.png"))
    assert image is not None and max(image.shape) < 4000
    assert [p.name for p in tmp_path.iterdir()] == ["m.png"]


def test_rows_are_the_true_classes(tmp_path):
    """All of class 0 is taken for class 1: the one dark cell is at the top right."""
    plot.confusion(np.array([[0, 9], [0, 0]]), ("a", "b"), tmp_path / "m.png")
    image = cv2.imread(str(tmp_path / "m.png")).astype(int)
    dark = (image[..., 0] - image[..., 2] > 60) & (image[..., 2] < 40)
    dark[:, int(image.shape[1] * 0.8) :] = False  # the colour bar
    rows, columns = np.nonzero(dark)
    light = (image > 240).all(-1) & (image[..., 0] - image[..., 2] > 2)
    assert rows.mean() < np.nonzero(light)[0].mean() and columns.mean() > np.nonzero(light)[1].mean()


def test_images_beyond_the_range_are_drawn_without_a_word(tmp_path, caplog):
    images = np.linspace(-1, 2, 2 * 4 * 4 * 3, dtype=np.float32).reshape(2, 4, 4, 3)
    assert plot.image_rows({"one": images}, tmp_path / "f.png") and not caplog.records


def test_a_grid_draws_dark_as_dark():
    figure = plot.grid([np.zeros((5, 5), np.uint8), np.full((5, 5, 1), 255, np.uint8)], ["black", "white"], columns=1)
    drawn = [axes.images[0] for axes in figure.axes]
    assert [float(image.norm(image.get_array()).mean()) for image in drawn] == [0.0, 1.0]
    assert [axes.get_title() for axes in figure.axes] == ["black", "white"]
    assert figure._repr_png_()[1:4] == b"PNG"
    with pytest.raises(BadRequest, match="2 images and 1 titles"):
        plot.grid(np.zeros((2, 3, 3)), ["one"])


def test_numbers_can_be_read_on_their_cells():
    figure = plot.numbers({"a": np.array([[0.0, 1.0]])}, marked={"a": (0, 1, 1, 1)}, form=".1f")
    assert [(t.get_text(), t.get_color()) for t in figure.axes[0].texts] == [("0.0", "white"), ("1.0", "black")]
    assert figure.axes[0].patches[0].get_xy() == (0.5, -0.5)
