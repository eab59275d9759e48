"""The data set `fashion_scenes`: one to four garments of Fashion-MNIST in a picture, with their boxes and masks.

A substitute for PASCAL VOC if no photographs with boxes are available: several labels per image, objects of many sizes
on backgrounds that the source data set does not have. Results can only be compared with others on this data set.
The training scenes are made from the garments `train[30000:]` of Fashion-MNIST, in tfds's order, and the test scenes
from its test images: a net that was pretrained on `train[:30000]` has not seen any garment of a scene.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Int, UInt8

from recvis_jax.data import coco, writing
from recvis_jax.data.image_file import png

NAME = "fashion_scenes"
VERSION = "1.1.0"  # 1.0.0 has the same pictures, and no masks
COUNTS = {"train": 4000, "test": 1000}
FIRST = 30_000  # first garment of the training scenes; those before are for pretraining

SIDE = 96  # of the canvas, pixels
MOST = 4  # garments per scene
SCALES = (20, 56)  # range of the side that a garment's picture of 28 pixels is resized to
OVERLAP = 0.1  # largest overlap, as a fraction of the smaller of two boxes
_TRIES = 20  # positions tried for a garment before it is left out
_DARK = 10  # grey levels up to this are background in Fashion-MNIST


class Scene(NamedTuple):
    """A picture and its content.

    Attributes:
      image: uint8 (SIDE SIDE 1).
      boxes: of the garments in pixels, ymin xmin ymax xmax, ends excluded; tight around each drawn garment, including
        parts that others hide.
      classes: of the garments, in drawing order.
      masks: (n SIDE SIDE), the pixels of which at least half is of the garment and of none drawn after it.
    """

    image: UInt8[np.ndarray, "_ _ 1"]
    boxes: Int[np.ndarray, "n 4"]
    classes: Int[np.ndarray, " n"]
    masks: Bool[np.ndarray, "n _ _"]


def compose(rng: np.random.Generator, pictures: UInt8[np.ndarray, "_ _ _"], labels: Int[np.ndarray, " _"]) -> Scene:
    """Draws a scene.

    Args:
      rng: random generator; equal states give equal scenes.
      pictures: one garment on black each, (n h w).
      labels: their classes.
    """
    canvas = _background(rng)
    boxes: list[tuple[int, int, int, int]] = []
    classes: list[int] = []
    masks: list[np.ndarray] = []
    for chosen in rng.integers(len(pictures), size=rng.integers(1, MOST + 1)):
        grown = round(float(np.exp(rng.uniform(*np.log(SCALES)))))
        grey, opacity = _garment(pictures[chosen], grown)
        h, w = grey.shape
        gain, offset = rng.uniform(0.6, 1.0), rng.uniform(0, 40)
        for _ in range(_TRIES):
            y, x = rng.integers(SIDE - h + 1), rng.integers(SIDE - w + 1)
            box = (int(y), int(x), int(y + h), int(x + w))
            if all(_shared(box, other) <= OVERLAP for other in boxes):
                break
        else:
            continue
        part = canvas[y : y + h, x : x + w]
        part += opacity * (np.minimum(gain * grey + offset, 255) - part)
        own = np.zeros(canvas.shape, bool)
        own[y : y + h, x : x + w] = opacity >= 0.5
        masks = [*(mask & ~own for mask in masks), own]
        boxes.append(box)
        classes.append(int(labels[chosen]))
    canvas += rng.normal(0, rng.uniform(2, 10), canvas.shape)
    image = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)[..., None]
    return Scene(image, np.array(boxes), np.array(classes), np.array(masks))


def scene(split: str, number: int, pictures: np.ndarray, labels: np.ndarray) -> Scene:
    """Draws scene `number` of a split from the garments of its pool; depends on the arguments alone."""
    return compose(np.random.default_rng((list(COUNTS).index(split), number)), pictures, labels)


def pool(split: str, pictures: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pictures (n h w) and labels (n) of Fashion-MNIST that the scenes of a split are made from."""
    if split == "train":
        chosen = writing.shuffled(range(len(labels)), split)[FIRST:]
        pictures, labels = pictures[chosen], labels[chosen]
    return pictures, labels


def write(root: Path, columns: dict[str, dict[str, np.ndarray]], class_names: Sequence[str], source: dict) -> Path:
    """Composes and writes the data set below `root` and returns its directory.

    Args:
      root: the folder of prepared data sets.
      columns: split -> 'image' (n h w 1) and 'label' (n) of Fashion-MNIST in its authors' order.
      class_names: of its labels.
      source: their origin, for the record beside the data set.
    """
    import PIL.Image

    pools = {split: pool(split, columns[split]["image"][..., 0], columns[split]["label"]) for split in COUNTS}

    def read(split: str, keys: Sequence[int]) -> Iterator[dict[str, Any]]:
        for key in keys:
            made = scene(split, int(key), *pools[split])
            yield {
                "image": png(PIL.Image.fromarray(made.image[..., 0])),
                "label": np.unique(made.classes).tolist(),
                "objects": [
                    {"bbox": np.float32(box / SIDE), "label": int(c), "mask": coco.compressed(mask)}
                    for box, c, mask in zip(made.boxes, made.classes, made.masks, strict=True)
                ],
            }

    def features(tfds: Any) -> dict[str, Any]:
        f = tfds.features
        one = {"bbox": f.BBoxFeature(), "label": f.ClassLabel(names=list(class_names)), "mask": f.Text()}
        return {
            "image": f.Image(shape=(SIDE, SIDE, 1)),
            "label": f.Sequence(f.ClassLabel(names=list(class_names))),  # each class in the picture once
            "objects": f.Sequence(one),
        }

    writing.make_room(root, sum(COUNTS.values()) * SIDE * SIDE)
    splits = {s: writing.Split(range(count), functools.partial(read, s)) for s, count in COUNTS.items()}
    with writing.staging(root, NAME) as stage:
        written = writing.write(stage, NAME, VERSION, splits, features, (__doc__ or "").strip())
        return writing.move(written, root / NAME / VERSION, stage, source)


def _background(rng: np.random.Generator) -> np.ndarray:
    """Returns a texture, float64 (SIDE SIDE): noise of several wavelengths and random strengths around a grey."""
    texture = np.zeros((SIDE, SIDE))
    for cells in (3, 6, 12, 24, 48):
        coarse = rng.integers(0, 256, (cells, cells), np.uint8)
        smooth = cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR_EXACT)
        texture += rng.uniform(0, 1) * (smooth - 127.5)
    texture *= rng.uniform(5, 35) / texture.std()
    return np.clip(texture + rng.uniform(20, 110), 0, 255)


def _garment(picture: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns grey levels and opacity in [0, 1], float64 (h w), of a garment, cut out and resized to `side`."""
    outlines, _ = cv2.findContours((picture > _DARK).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(np.zeros_like(picture), outlines, -1, 255, cv2.FILLED)  # black parts inside belong to it
    grey, opacity = (
        cv2.resize(x, (side, side), interpolation=cv2.INTER_LINEAR_EXACT).astype(float) for x in (picture, filled)
    )
    rows, columns = (np.flatnonzero((opacity >= 128).any(axis)) for axis in (1, 0))
    inside = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    return grey[inside], opacity[inside] / 255


def _shared(a: Sequence[int], b: Sequence[int]) -> float:
    """Returns the area that two boxes share as a fraction of the smaller one's."""
    height, width = (max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return height * width / smaller
