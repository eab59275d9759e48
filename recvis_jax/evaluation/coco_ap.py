"""Average precision of detected boxes: COCO's family of numbers, equal to pycocotools, and PASCAL VOC's.

`outputs` hold `boxes` (b q 4), `labels` (b q) and `scores` (b q), in pixels of the image; a score of 0 is no detection.
`batch` holds the true `boxes`, `labels` and `boxes_mask`, and where the data have them `crowd`, `difficult`, `area`,
`image_id`, and `frame` and `size`, by which both are measured in pixels of the picture as it was.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from recvis_jax.evaluation.metrics import Metric

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of intersection over union
RECALLS = np.linspace(0, 1, 101)
AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}  # pixels
MOST = (1, 10, 100)  # detections of a class in an image


class Group(NamedTuple):
    """Detections, best first, and true objects of one class in one image.

    Attributes:
      scores: (d).
      found: (d 4), boxes of the detections.
      true: (g 4), boxes of the objects.
      area: (g), pixels of the objects.
      crowd: (g), regions of many objects: what is found in them is neither right nor wrong.
      difficult: (g), VOC's objects that need not be found.
    """

    scores: Float[np.ndarray, "d"]
    found: Float[np.ndarray, "d 4"]
    true: Float[np.ndarray, "g 4"]
    area: Float[np.ndarray, "g"]
    crowd: Bool[np.ndarray, "g"]
    difficult: Bool[np.ndarray, "g"]


class Ranked(NamedTuple):
    """Detections of a class and range of areas: how they were judged at every threshold of overlap.

    Attributes:
      scores: (d).
      place: (d), rank among the detections of the class in their image, from 0.
      right, ignored: (t d).
      objects: number of objects that could be found.
    """

    scores: Float[np.ndarray, "d"]
    place: Int[np.ndarray, "d"]
    right: Bool[np.ndarray, "t d"]
    ignored: Bool[np.ndarray, "t d"]
    objects: int


def coco(num_classes: int) -> Metric:
    """COCO's twelve numbers, and the average precision of every class.

    Args:
      num_classes: k.

    Returns:
      A metric of AP (mean over classes and overlaps 0.5, 0.55, ..., 0.95), AP50, AP75, AP_small, AP_medium, AP_large
      (objects below 32^2, up to 96^2 and above), the recalls AR_1, AR_10 and AR_100 of so many detections a class and
      image, AR_small, AR_medium, AR_large, and AP_per_class (k,). NaN where there are no objects.

    Reference: Lin et al. 2014, "Microsoft COCO"; pycocotools, `COCOeval` with `iouType='bbox'`.
    """

    def compute(state: Any) -> dict[str, Any]:
        groups = list(_groups(state))
        precision = {a: np.full((len(THRESHOLDS), num_classes), np.nan) for a in AREAS}
        recall = {(a, m): np.full((len(THRESHOLDS), num_classes), np.nan) for a in AREAS for m in MOST}
        for k in range(num_classes):
            own = [group for label, group in groups if label == k]
            for name, ranked in zip(AREAS, _judged(own), strict=True):
                if not ranked.objects:
                    continue
                for most in MOST:
                    curve, last = _curve(ranked, most)
                    recall[name, most][:, k] = last
                precision[name][:, k] = curve.mean(1)  # of the most detections
        every = precision["all"]
        values = {"AP": _mean(every), "AP50": _mean(every[0]), "AP75": _mean(every[5])}
        values |= {f"AP_{a}": _mean(precision[a]) for a in AREAS if a != "all"}
        values |= {f"AR_{m}": _mean(recall["all", m]) for m in MOST}
        values |= {f"AR_{a}": _mean(recall[a, MOST[-1]]) for a in AREAS if a != "all"}
        return values | {"AP_per_class": every.mean(0)}

    return Metric(_update, "concat", compute)


def voc(num_classes: int, mode: Literal["area", "voc11"] = "area", overlap: float = 0.5) -> Metric:
    """PASCAL VOC's average precision at one overlap.

    A detection belongs to the object that it overlaps most. It is right if it is the first one of an object, wrong if
    it is a later one; those of difficult objects do not count.

    Args:
      num_classes: k.
      mode: "area", below the monotone precision (VOC 2010 on), or "voc11", the mean at 11 recalls (VOC 2007).
      overlap: intersection over union that must be exceeded.

    Returns:
      A metric of voc_AP, the mean over classes that have objects, and voc_AP_per_class (k,).

    Reference: Everingham et al. 2010, "The PASCAL Visual Object Classes (VOC) challenge", section 4.2.
    """

    def compute(state: Any) -> dict[str, Any]:
        groups = list(_groups(state))
        values = np.full(num_classes, np.nan)
        for k in range(num_classes):
            own = [group for label, group in groups if label == k]
            objects = sum(int((~g.difficult).sum()) for g in own)
            if not objects:
                continue
            right, ignored = (np.concatenate(x) for x in zip(*(_voc_judged(g, overlap) for g in own), strict=True))
            order = np.argsort(-np.concatenate([g.scores for g in own]), kind="stable")
            right, ignored = right[order], ignored[order]
            found = np.cumsum(right[~ignored])
            precision = found / np.arange(1, len(found) + 1)
            values[k] = _area(precision, found / objects, mode)
        return {"voc_AP": _mean(values), "voc_AP_per_class": values}

    return Metric(_update, "concat", compute)


def in_picture(boxes: Float[Array, "b n 4"], batch: Mapping[str, Any]) -> Float[Array, "b n 4"]:
    """Returns boxes of the images in pixels of the pictures as they were, by the fields `frame` and `size`.

    Without these fields they stay as they are.

    Example:
      >>> batch = {"frame": jnp.array([[0.0, 0, 32, 16]]), "size": jnp.array([[100, 200]])}
      >>> in_picture(jnp.array([[[0.0, 4, 8, 8]]]), batch)[0].tolist()
      [[0.0, 25.0, 50.0, 50.0]]
    """
    if "frame" not in batch or "size" not in batch:
        return boxes
    frame, size = jnp.asarray(batch["frame"], jnp.float32), jnp.asarray(batch["size"], jnp.float32)[:, ::-1]
    scale = size / jnp.maximum(frame[:, 2:] - frame[:, :2], 1e-6)
    start, scale = (jnp.tile(x, 2)[:, None] for x in (frame[:, :2], scale))
    return (boxes - start) * scale


def _update(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
    b, n = batch["boxes_mask"].shape
    true = in_picture(jnp.asarray(batch["boxes"], jnp.float32), batch)
    own = jnp.maximum(true[..., 2:] - true[..., :2], 0).prod(-1)
    return {
        "found": in_picture(jnp.asarray(outputs["boxes"], jnp.float32), batch),
        "found_labels": jnp.asarray(outputs["labels"], jnp.int32),
        "scores": jnp.nan_to_num(jnp.asarray(outputs["scores"], jnp.float32)),
        "true": true,
        "labels": jnp.asarray(batch["labels"], jnp.int32),
        "there": jnp.asarray(batch["boxes_mask"], bool),
        "crowd": jnp.asarray(batch.get("crowd", jnp.zeros((b, n))), bool),
        "difficult": jnp.asarray(batch.get("difficult", jnp.zeros((b, n))), bool),
        "area": jnp.asarray(batch.get("area", own), jnp.float32),
        "id": jnp.asarray(batch.get("image_id", jnp.zeros(b)), jnp.int32),
        "mask": jnp.asarray(batch["mask"], bool),
    }


def _groups(state: Mapping[str, np.ndarray]) -> Iterator[tuple[int, Group]]:
    """Yields (class, group) of every image and class that has detections or objects, images by their ids."""
    rows = np.flatnonzero(state["mask"])
    for i in rows[np.argsort(state["id"][rows], kind="stable")]:
        kept, there = state["scores"][i] > 0, state["there"][i]
        found_labels, labels = state["found_labels"][i][kept], state["labels"][i][there]
        scores, found = (state[name][i][kept].astype(np.float64) for name in ("scores", "found"))
        true, area = (state[name][i][there].astype(np.float64) for name in ("true", "area"))
        crowd, difficult = state["crowd"][i][there], state["difficult"][i][there]
        for k in np.union1d(found_labels, labels).tolist():
            of, own = np.flatnonzero(found_labels == k), labels == k
            of = of[np.argsort(-scores[of], kind="stable")]
            yield k, Group(scores[of], found[of], true[own], area[own], crowd[own], difficult[own])


def overlaps(
    found: Float[np.ndarray, "d 4"], true: Float[np.ndarray, "g 4"], crowd: Bool[np.ndarray, "g"]
) -> Float[np.ndarray, "d g"]:
    """Returns intersection over union; over the detection's own area for a crowd, of which it may be a part.

    Example:
      >>> box = np.array([[0.0, 0, 2, 2]])
      >>> overlaps(box, np.array([[0.0, 0, 4, 4]]), np.array([True])).tolist()
      [[1.0]]
    """
    low, high = np.maximum(found[:, None, :2], true[None, :, :2]), np.minimum(found[:, None, 2:], true[None, :, 2:])
    shared = np.maximum(high - low, 0).prod(-1)
    a, b = (np.maximum(x[:, 2:] - x[:, :2], 0).prod(-1) for x in (found, true))
    whole = np.where(crowd, a[:, None], a[:, None] + b - shared)
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def _judged(groups: list[Group]) -> list[Ranked]:
    """Returns the judged detections of a class for every range of areas."""
    limits = np.array([*AREAS.values()], np.float64)
    parts: list[tuple[np.ndarray, ...]] = []
    objects = np.zeros(len(AREAS), int)
    for group in groups:
        group = group._replace(scores=group.scores[: MOST[-1]], found=group.found[: MOST[-1]])
        outside = (group.area < limits[:, :1]) | (group.area > limits[:, 1:])
        ignore = group.crowd | outside  # (a g)
        objects += (~ignore).sum(1)
        given, ignored = _matched(group, ignore)
        size = (group.found[:, 2:] - group.found[:, :2]).prod(-1)
        away = (size < limits[:, :1]) | (size > limits[:, 1:])
        ignored |= ~given & away[:, None]
        parts.append((group.scores, np.arange(len(group.scores)), given & ~ignored, ignored))
    if not parts:
        none = np.zeros((len(THRESHOLDS), 0), bool)
        return [Ranked(np.zeros(0), np.zeros(0, int), none, none, 0)] * len(AREAS)
    scores, place, right, ignored = (np.concatenate(x, -1) for x in zip(*parts, strict=True))
    order = np.argsort(-scores, kind="stable")
    return [
        Ranked(scores[order], place[order], right[a][:, order], ignored[a][:, order], int(objects[a]))
        for a in range(len(AREAS))
    ]


def _matched(group: Group, ignore: Bool[np.ndarray, "a g"]) -> tuple[np.ndarray, np.ndarray]:
    """Gives detections, best first, the objects that they overlap most of those not given yet.

    An object to be ignored is given only where no other one fits; a crowd may be given to many.

    Returns:
      Whether a detection was given an object (a t d), and whether this is to be ignored (a t d).
    """
    shape = (len(ignore), len(THRESHOLDS), len(group.found))
    given, ignored = np.zeros(shape, bool), np.zeros(shape, bool)
    if not len(group.true) or not len(group.found):
        return given, ignored
    least = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
    iou = overlaps(group.found, group.true, group.crowd)
    taken = np.zeros((*shape[:2], len(group.true)), bool)
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    for d in np.flatnonzero(iou.max(1) >= least.min()):
        fits = (~taken | group.crowd) & (iou[d] >= least)
        proper = fits & ~ignore[:, None]
        fits = np.where(proper.any(-1, keepdims=True), proper, fits)
        best = fits.shape[-1] - 1 - np.where(fits, iou[d], -1.0)[..., ::-1].argmax(-1)  # the last of equal ones
        there = fits.any(-1)
        given[..., d], ignored[..., d] = there, there & ignore[rows, best]
        taken[rows, columns, best] |= there
    return given, ignored


def _curve(ranked: Ranked, most: int) -> tuple[Float[np.ndarray, "t r"], Float[np.ndarray, "t"]]:
    """Returns the precision at every recall of `RECALLS`, and the recall reached, with so many detections an image."""
    kept = ranked.place < most
    right, wrong = ranked.right[:, kept], ~ranked.right[:, kept] & ~ranked.ignored[:, kept]
    hits, misses = np.cumsum(right, 1).astype(float), np.cumsum(wrong, 1).astype(float)
    recall, precision = hits / ranked.objects, hits / (hits + misses + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    out = np.zeros((len(right), len(RECALLS)))
    for t in range(len(right)):
        at = np.searchsorted(recall[t], RECALLS, side="left")
        there = at < recall.shape[1]
        out[t, there] = precision[t, at[there]]
    return out, recall[:, -1] if recall.shape[1] else np.zeros(len(right))


def _voc_judged(group: Group, overlap: float) -> tuple[Bool[np.ndarray, "d"], Bool[np.ndarray, "d"]]:
    """Returns which detections are right, and which do not count."""
    right, ignored = np.zeros(len(group.found), bool), np.zeros(len(group.found), bool)
    if not len(group.true):
        return right, ignored
    iou, taken = overlaps(group.found, group.true, np.zeros(len(group.true), bool)), set()
    for d, best in enumerate(iou.argmax(1).tolist()):
        if iou[d, best] > overlap:
            ignored[d] = group.difficult[best]
            right[d] = not ignored[d] and best not in taken
            taken.add(best)
    return right, ignored


def _area(precision: Float[np.ndarray, "d"], recall: Float[np.ndarray, "d"], mode: str) -> float:
    if mode == "voc11":
        return float(np.mean([precision[recall >= r - 1e-12].max(initial=0.0) for r in np.linspace(0, 1, 11)]))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def _mean(values: Float[np.ndarray, "..."]) -> float:
    some = values[~np.isnan(values)]
    return float(some.mean()) if some.size else float("nan")


METRICS: dict[str, Callable[..., Metric]] = {"coco_ap": coco, "voc_ap": voc}
