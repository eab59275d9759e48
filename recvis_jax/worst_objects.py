"""The pictures of a split in which a detector does worst, drawn for the page of its run."""

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from recvis_jax import build, errors, trained
from recvis_jax.evaluation import coco_ap
from recvis_jax.vis import boxes, run_page

EXAMPLES = 200  # pictures in which objects are looked for, at most
_SHOWN = 12
_SCORE, _OVERLAP = 0.5, 0.5


def images(model: trained.Trained, examples: int = EXAMPLES) -> list[run_page.Images]:
    """Returns the pictures with the largest share of mistakes, first their true objects, then those that are found.

    Args:
      model: a checkpoint; of a task that gives no boxes, or without its data, nothing is returned.
      examples: pictures of the validation (or test) split that are looked at, the first ones.
    """
    if model.run.task.gives != "boxes":
        return []
    try:
        split = trained.open_named(model.run.data, trained.default_split(model.run.data))
    except (errors.BadRequest, errors.Failure):
        return []
    run, names, rows = model.run, model.run.data.info.class_names, []
    part = split._replace(length=min(split.length, examples))
    predict = jax.jit(lambda params, state, batch: run.task.predict(params, state, run.data.preprocess(batch)))
    for batch in build.eval_batches(run, part):
        found = predict(model.params, model.model_state, batch)
        found = {name: np.asarray(found[name]) for name in ("boxes", "labels", "scores")}
        of = {name: np.asarray(batch[name]) for name in ("image", "boxes", "labels", "boxes_mask", "mask")}
        of["crowd"] = np.asarray(batch["crowd"]) if "crowd" in batch else np.zeros_like(of["boxes_mask"])
        for i in np.flatnonzero(of["mask"]):
            order = np.argsort(-found["scores"][i], kind="stable")
            kept = order[found["scores"][i][order] >= _SCORE]
            valid = of["boxes_mask"][i] & ~of["crowd"][i]
            got = found["boxes"][i][kept], found["labels"][i][kept]
            true = of["boxes"][i][valid], of["labels"][i][valid]
            rows.append((mistakes(*got, *true), of["image"][i], true, got))
    rows.sort(key=lambda row: -row[0])  # stable: in ties the first pictures
    drawn = [_drawn(image, true, got, names) for _, image, true, got in rows[:_SHOWN]]
    if not drawn:
        return []
    about = (
        f"Of {len(rows):,} pictures those with the largest share of missed and wrong objects, at a score of {_SCORE} "
        f"and an overlap of {_OVERLAP}: left the true objects, right those that are found."
    )
    return [run_page.Images("Objects, worst first", about, drawn, 280)]


def mistakes(
    found: Float[np.ndarray, "n 4"],
    labels: Int[np.ndarray, "n"],
    true: Float[np.ndarray, "m 4"],
    classes: Int[np.ndarray, "m"],
) -> float:
    """Returns 1 - F1 of detections, best first: each is right if it overlaps a true object that is still free.

    Args:
      found, labels: boxes and classes of the detections.
      true, classes: of the objects.

    Example:
      >>> box = np.array([[0.0, 0.0, 4.0, 4.0]])
      >>> mistakes(box, np.array([1]), np.concatenate([box, box + 9]), np.array([1, 1]))  # one of two
      0.33333333333333337
    """
    right, free = 0, np.ones(len(true), bool)
    for row, label in zip(coco_ap.overlaps(found, true, np.zeros(len(true), bool)), labels, strict=True):
        iou = np.where(free & (classes == label), row, 0)
        if len(iou) and iou.max() >= _OVERLAP:
            free[iou.argmax()] = False
            right += 1
    both = len(found) + len(true)
    return 1 - 2 * right / both if both else 0.0


def _drawn(image: np.ndarray, true: tuple, found: tuple, names: tuple[str, ...]) -> UInt8[np.ndarray, "H W 3"]:
    scale = max(1, 256 // max(image.shape[:2]))
    left, right = (boxes.over(image, *of, names=names if len(names) > 1 else (), scale=scale) for of in (true, found))
    return np.concatenate([left, np.full((len(left), 2 * scale, 3), 255, np.uint8), right], 1)
