"""Checks that a run fits its data and the machine before anything is written; single keys cannot show that.

Nothing is computed: only shapes are traced, of the training step and of evaluation.
"""

import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from recvis_jax import build, errors
from recvis_jax.data import pipeline


def check_run(run: build.Run, accumulate: int = 1) -> None:
    """Refuses a run that cannot be trained.

    Args:
      run: the run, with its data.
      accumulate: micro-batches per step.

    Raises:
      BadRequest: the batch is larger than the data, the state or a batch does not fit into a device's memory, or the
        model does not accept the images from `eval_transform`.
    """
    source = run.data.train
    if source is None:
        return
    if run.batch_size > source.length:
        raise errors.BadRequest(
            f"config.batch_size={run.batch_size} is larger than the {source.length} training examples of "
            f"{source.name}; --config.batch_size={_power(source.length)} would do."
        )
    _check_memory(run, accumulate)
    if run.data.val is not None or run.data.test_split:
        _check_evaluation(run, source.read([0])[0])


def check_step(run: build.Run, accumulate: int = 1, step: Any = None, batch: Any = None) -> None:
    """Refuses a run whose augmentation, model or loss does not accept its images or labels.

    Args:
      run: the run, with its data.
      accumulate: micro-batches per step.
      step: the jitted step of a single process. Tracing it here saves tracing at its first call. None traces its parts.
      batch: its first batch; tracing with other arrays would not be reused.

    Raises:
      BadRequest: a part does not fit; the message names it.
    """
    if run.data.train is None:
        return
    if step is not None:
        try:
            jax.eval_shape(step, run.template, batch)
            return
        except Exception:  # below, the parts are traced one by one to find the wrong one
            pass
    _check_training(run, _batch(run, run.batch_size // accumulate))
    if step is not None:
        _traced("the training step", step, run.template, batch)


def _check_memory(run: build.Run, accumulate: int) -> None:
    device = run.mesh.devices.flat[0]
    have = _memory_of(device)
    if not have:
        return
    sizes = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, run.template, run.shardings)
    state = sum(jax.tree.leaves(sizes))
    together = run.mesh.size if device.platform == "cpu" else 1  # devices that share this memory
    parts = run.mesh.shape["data"] * run.mesh.shape["fsdp"]
    one = _example_bytes(run)
    for what, need in (
        ("the parameters and the optimizer's state", state * together),
        (f"a batch of config.batch_size={run.batch_size}", run.batch_size // accumulate * one * together // parts),
        (f"a batch of config.eval_batch_size={run.eval_batch_size}", run.eval_batch_size * one * together // parts),
    ):
        if need > have:
            raise errors.BadRequest(
                f"{what}: {need / 2**30:,.1f} GiB, more than the {have / 2**30:,.1f} GiB of memory here. Make the "
                "model, the images or the batch smaller, or split the state over more devices (config.sharding)."
            )


def _example_bytes(run: build.Run) -> int:
    """Returns the bytes of an example on a device: its image in float32, and all else that is declared."""
    rest = {k: x for k, x in _batch(run, 1).items() if k != "image"}
    other = sum(math.prod(x.shape) * x.dtype.itemsize for x in rest.values())
    return int(np.prod(run.data.image_shape, dtype=object)) * 4 + other


def _memory_of(device: Any) -> int:
    """Returns the bytes of a device's memory, 0 if unknown."""
    if device.platform == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return int((device.memory_stats() or {}).get("bytes_limit", 0))
    except (RuntimeError, NotImplementedError):
        return 0


def _batch(run: build.Run, b: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a training batch of b examples, from the first example."""
    data = run.data
    assert data.train is not None
    example = data.train.read([0])[0]
    if data.transform:
        example = data.transform(np.random.default_rng(0), example)
    one = pipeline.stack([example], data.train, data.transform is not None)
    one |= {"slot": np.zeros(1, np.int32), "mask": np.ones(1, bool)}
    return {name: jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype) for name, x in one.items()}


def _check_training(run: build.Run, batch: dict[str, jax.ShapeDtypeStruct]) -> None:
    """Traces a step's augmentation and loss."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    where = f"data.augment on {f'images of {_by(run.data.image_shape)}' if 'image' in batch else 'examples'}"
    augmented = _traced(where, run.data.augment, key, batch)
    what = f"images of {_by(augmented['image'].shape[1:])}" if "image" in augmented else "examples"
    where = f"the model and its loss on training {what}"
    _traced(where, run.task.loss, run.template.params, run.template.model_state, augmented, key)


def _check_evaluation(run: build.Run, example: dict) -> None:
    """Traces evaluation on the first example after `eval_transform`."""
    source = run.data.train
    if "image" not in example or source is None:
        return
    if run.data.eval_transform:
        example = run.data.eval_transform(np.random.default_rng(0), example)
    shape = example["image"].shape
    if shape == run.data.image_shape:  # as in training
        return
    one = pipeline.stack([example], source, bool(run.data.eval_transform))
    batch = {name: jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype) for name, x in one.items()}
    batch |= {"mask": jax.ShapeDtypeStruct((2,), jnp.bool_), "slot": jax.ShapeDtypeStruct((2,), jnp.int32)}
    where = f"data.eval_transform gives images of {_by(shape)}, training has {_by(run.data.image_shape)}: the model"

    def predict(params: Any, model_state: Any, batch: Any) -> Any:
        return run.task.predict(params, model_state, run.data.preprocess(batch))

    _traced(where, predict, *run.template.evaluated, batch)


def _traced(where: str, function: Any, *args: Any) -> Any:
    try:
        return jax.eval_shape(function, *args)
    except errors.BadRequest as e:
        raise errors.BadRequest(f"{where}: {e}") from e
    except Exception as e:  # a library's error about shapes
        raise errors.BadRequest(f"{where} does not fit: {errors.brief(' '.join(str(e).split()), 200)}") from e


def _power(n: int) -> int:
    """Returns the largest power of two up to n."""
    return 1 << (n.bit_length() - 1)


def _by(shape: Any) -> str:
    return "x".join(map(str, shape))
