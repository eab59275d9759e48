"""Accuracy of maps of classes, from one confusion matrix of pixels."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from recvis_jax.evaluation.metrics import Metric


def mean_iou(num_classes: int) -> Metric:
    """Intersection over union of every class and their mean, and the fraction of pixels that are right.

    `outputs` hold `map` and `truth` (b h w), classes; a pixel whose truth is outside [0, k) is ignored. The matrix is
    summed over all images before anything is divided.

    Args:
      num_classes: k.

    Returns:
      A metric of mIoU (over the classes that are in the truth or were predicted), pixel_accuracy,
      mean_class_accuracy and IoU_per_class (k,), NaN where a class is in neither.

    Example:
      >>> maps = {"map": jnp.array([[[0, 0], [1, 1]]]), "truth": jnp.array([[[0, 1], [1, 255]]])}
      >>> metric = mean_iou(2)
      >>> found = metric.compute(metric.update(maps, {"mask": jnp.array([True])}))
      >>> found["mIoU"], round(found["pixel_accuracy"], 4)
      (0.5, 0.6667)

    Reference: Long, Shelhamer & Darrell 2015, "Fully convolutional networks for semantic segmentation", section 5.
    """

    def update(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        found, true = (jnp.asarray(outputs[name], jnp.int32) for name in ("map", "truth"))
        counted = (true >= 0) & (true < num_classes) & jnp.asarray(batch["mask"], bool)[:, None, None]
        cell = jnp.where(counted, true, 0) * num_classes + jnp.clip(found, 0, num_classes - 1)
        counts = jnp.zeros((num_classes**2,), jnp.int32).at[cell.ravel()].add(counted.ravel().astype(jnp.int32))
        return {"counts": counts.reshape(num_classes, num_classes)}

    def compute(state: Any) -> dict[str, Any]:
        counts = np.asarray(state["counts"], np.float64)
        right, true, found = np.diag(counts), counts.sum(1), counts.sum(0)
        either = true + found - right
        iou = np.divide(right, either, out=np.full(num_classes, np.nan), where=either > 0)
        recall = np.divide(right, true, out=np.full(num_classes, np.nan), where=true > 0)
        total = counts.sum()
        return {
            "mIoU": _mean(iou),
            "pixel_accuracy": float(right.sum() / total) if total else float("nan"),
            "mean_class_accuracy": _mean(recall),
            "IoU_per_class": iou,
        }

    return Metric(update, "sum", compute)


def _mean(values: np.ndarray) -> float:
    some = values[~np.isnan(values)]
    return float(some.mean()) if some.size else float("nan")
