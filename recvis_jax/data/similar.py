"""Similarity of images by their pixels alone: copies, near copies, nearest neighbours, and similarity of two sets.

An image is reduced to a grey thumbnail with mean 0 and length 1, so the product of two thumbnails is their correlation;
it is near 1 for a copy with another size, brightness, contrast or encoding. In sets of simple pictures, many pictures
correlate without being copies. So a near copy must also be much nearer than the next neighbours.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

_SIDE = 32  # pixels of a thumbnail; neighbours are searched at half of that
_ALIKE = 0.98  # correlation of a near copy at half size; on Fashion-MNIST: 0.1 % false alarms, 99.7 % found
_CONFIRMED = 0.95  # and at full size, where the noise of encoders matters more
_NEARER = 0.4  # distance of a near copy, relative to that of the fifth neighbour
_NEIGHBOURS = 5
_ROWS = 512  # compared with all others at a time


class Looks(NamedTuple):
    """The appearance of images.

    Attributes:
      small: thumbnails (n 256) with mean 0 and length 1, zeros for an image of one colour.
      large: the same with four times as many pixels (n 1024).
      light: mean and standard deviation of each image's grey values, in [0, 1].
      digests: hash of all pixels of each image.
    """

    small: Float[np.ndarray, "_ 256"]
    large: Float[np.ndarray, "_ 1024"]
    light: Float[np.ndarray, "_ 2"]
    digests: tuple[str, ...]


class Neighbours(NamedTuple):
    """The nearest images of another set, nearest first.

    Attributes:
      places: (n k) indices in the other set.
      distance: (n k) between the thumbnails, from 0 to 2.
    """

    places: Int[np.ndarray, "_ _"]
    distance: Float[np.ndarray, "_ _"]


def look(images: Iterable[np.ndarray]) -> Looks:
    """Reduces images to the quantities that are compared.

    Args:
      images: each (h w c), uint8 or float in [0, 1]; of any sizes.

    Example:
      >>> flat = np.full((9, 9, 1), 7, np.uint8)
      >>> light = look([flat, np.pad(flat, ((0, 0), (9, 0), (0, 0)))]).light
      >>> [round(float(x), 4) for x in light[:, 0]]
      [0.0275, 0.0137]
    """
    import cv2  # only when images are compared

    rows, light, digests = [], [], []
    for image in images:
        digests.append(hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest())
        grey = image.astype(np.float32).mean(-1) / (255 if image.dtype == np.uint8 else 1)
        light.append((grey.mean(), grey.std()))
        rows.append(cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA))
    x = np.stack(rows) if rows else np.zeros((0, _SIDE, _SIDE), np.float32)
    half = x.reshape(len(x), _SIDE // 2, 2, _SIDE // 2, 2).mean((2, 4))
    return Looks(_unit(half), _unit(x), np.array(light, np.float32).reshape(-1, 2), tuple(digests))


def join(parts: Sequence[Looks]) -> Looks:
    """Joins the looks of several sets to those of one."""
    return Looks(
        np.concatenate([p.small for p in parts]),
        np.concatenate([p.large for p in parts]),
        np.concatenate([p.light for p in parts]),
        tuple(d for p in parts for d in p.digests),
    )


def first(looks: Looks, count: int) -> Looks:
    """Returns the looks of the first images."""
    return Looks(looks.small[:count], looks.large[:count], looks.light[:count], looks.digests[:count])


def _unit(x: np.ndarray) -> np.ndarray:
    x = x.reshape(len(x), x.shape[1] * x.shape[2])
    x = x - x.mean(1, keepdims=True)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.where(length > 1e-3, x / np.maximum(length, 1e-3), 0).astype(np.float32)


def neighbours(of: Looks, among: Looks, itself: bool = False) -> Neighbours:
    """Finds the `_NEIGHBOURS` nearest images of each image among others.

    Args:
      of: the images (n).
      among: the images that are searched.
      itself: whether `of` are the first images of `among`; if so, no image is its own neighbour.
    """
    k = min(_NEIGHBOURS, len(among.small) - itself)
    index = np.zeros((len(of.small), k), np.int64)
    distance = np.zeros((len(of.small), k), np.float32)
    for start in range(0, len(of.small), _ROWS):
        part = of.small[start : start + _ROWS]
        alike = part @ among.small.T
        if itself:
            alike[np.arange(len(part)), start + np.arange(len(part))] = -2
        found = np.argpartition(-alike, k - 1, axis=1)[:, :k] if k else np.zeros((len(part), 0), np.int64)
        values = np.take_along_axis(alike, found, 1)
        order = np.lexsort((found, -values))  # of equally near ones, the first wins
        index[start : start + _ROWS] = np.take_along_axis(found, order, 1)
        near = np.take_along_axis(values, order, 1)
        distance[start : start + _ROWS] = np.sqrt(np.maximum(2 - 2 * near, 0))
    return Neighbours(index, distance)


def near_copies(of: Looks, among: Looks, found: Neighbours, itself: bool = False) -> Int[np.ndarray, " _"]:
    """Returns for each image the index of the image that it is a copy or near copy of, -1 for none.

    Args:
      of, among: the two sets.
      found: from `neighbours`.
      itself: see `neighbours`; if true, the index is that of the first equal image, and -1 for that image itself.

    Images of one colour are similar to none. With fewer than five images to compare with, only exact copies are found.
    """
    places = {digest: i for i, digest in reversed(list(enumerate(among.digests)))}
    out = np.full(len(of.small), -1)
    if found.places.shape[1] == _NEIGHBOURS:
        first, last = found.distance[:, 0], found.distance[:, -1]
        near = (1 - first**2 / 2 >= _ALIKE) & (first <= _NEARER * last)
        rows = np.flatnonzero(near)
        confirmed = (of.large[rows] * among.large[found.places[rows, 0]]).sum(1) >= _CONFIRMED
        out[rows[confirmed]] = found.places[rows[confirmed], 0]
    for i, digest in enumerate(of.digests):
        place = places.get(digest, out[i])
        out[i] = place if not itself or place != i else out[i]
    return out


def copies(of: Looks, among: Looks) -> np.ndarray:
    """Returns for each image whether `among` has an image with exactly the same pixels."""
    there = set(among.digests)
    return np.array([d in there for d in of.digests], bool)


def vote(found: Neighbours, labels: Int[np.ndarray, " _"], num_classes: int) -> Int[np.ndarray, " _"]:
    """Returns the most frequent class among each image's neighbours; in a tie, the class of the nearest.

    Args:
      found: neighbours among m images.
      labels: their classes.
      num_classes: how many there are.
    """
    near = labels[found.places]
    votes = (near[:, :, None] == near[:, None, :]).sum(2)
    return near[np.arange(len(near)), votes.argmax(1)]


def further(of: Neighbours, own: Neighbours) -> float:
    """Compares the distances of two sets of images to their neighbours.

    Returns:
      The probability that an image drawn from the first set has the larger distance, ties counted half: 0.5 for sets
      that look alike, 1 if all images of the first are further away (the area under the ROC curve).

    Example:
      >>> a = Neighbours(np.zeros((2, 1), int), np.float32([[0.5], [0.7]]))
      >>> further(a, Neighbours(np.zeros((2, 1), int), np.float32([[0.1], [0.5]])))
      0.875
    """
    a, b = of.distance[:, 0], np.sort(own.distance[:, 0])
    below, upto = np.searchsorted(b, a, "left"), np.searchsorted(b, a, "right")
    return float((below + upto).mean() / (2 * len(b)))
