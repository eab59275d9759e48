"""Evaluation of a task's predictions on a whole split, for all tasks."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from recvis_jax import errors
from recvis_jax.evaluation import coco_ap, metrics
from recvis_jax.training import processes


def build_metrics(names: Sequence[str], num_classes: int) -> dict[str, metrics.Metric]:
    """Builds metrics by name: a name in `metrics.METRICS`, or `top_3`, `top_5`, ...

    Args:
      names: which metrics.
      num_classes: k, for metrics with a value per class.
    """
    by_class = ("per_class_accuracy", "confusion_matrix", "mean_average_precision", *coco_ap.METRICS)
    out = {}
    for name in names:
        if name.startswith("top_") and name.isascii() and name[4:].isdigit():
            if len(name) > 12 or int(name[4:]) > num_classes:
                least = errors.printable(name[4:])[:12]
                raise errors.BadRequest(f"metric {name[:16]} needs at least {least} classes; there are {num_classes}.")
            if int(name[4:]) < 1:
                raise errors.BadRequest(f"metric {name}: the number must be at least 1, as in top_1.")
            out[name] = metrics.top_k(int(name[4:]), name=name)
        else:
            make = errors.choose(
                {k: v for k, v in (metrics.METRICS | coco_ap.METRICS).items() if k not in ("loss", "top_k")},
                name,
                "metric",
            )
            if name in by_class and not num_classes:
                raise errors.BadRequest(f"metric {name} needs classes; the labels of these data are numbers.")
            out[name] = make(num_classes) if name in by_class else make()
    return out


def make_evaluate(
    predict: Callable[[Any, Any, dict], dict],
    measured: Mapping[str, metrics.Metric],
    preprocess: Callable[[dict], dict],
    mesh: Mesh,
) -> Callable[..., dict[str, Any] | None]:
    """Returns `evaluate(params, model_state, batches, stop=...) -> {metric: value}`.

    Exact for any batching, on any number of devices and hosts: metrics are sums over the examples that the mask keeps.
    Returns None as soon as `stop()` is true.

    Args:
      predict: of a `Task`.
      measured: metrics by name, including those of the task.
      preprocess: batch -> input of the model, without augmentation.
      mesh: devices; the sums are replicated over it.
    """

    def update(params: Any, model_state: Any, batch: dict) -> dict[str, Any]:
        batch = preprocess(batch)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            outputs = predict(params, model_state, batch)
        return {name: metric.update(outputs, batch) for name, metric in measured.items()}

    compiled = processes.compiled_together(jax.jit(update, out_shardings=NamedSharding(mesh, PartitionSpec())))
    # On CPUs, sums over devices that are dispatched at the same time may block each other.
    serial = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"

    def evaluate(
        params: Any, model_state: Any, batches: Iterable[dict], stop: Callable[[], bool] = lambda: False
    ) -> dict[str, Any] | None:
        def states() -> Iterator[dict[str, Any]]:
            for batch in batches:
                if stop():
                    raise _Stopped
                found = compiled(params, model_state, batch)
                if serial:
                    jax.block_until_ready(found)
                yield found

        try:
            return metrics.accumulate(measured, states())
        except _Stopped:
            return None

    return evaluate


class _Stopped(Exception):
    """Ends an evaluation early."""


def scalars(values: dict[str, Any]) -> dict[str, float]:
    """Returns the metrics that are single numbers."""
    return {k: float(v) for k, v in values.items() if np.ndim(v) == 0}
