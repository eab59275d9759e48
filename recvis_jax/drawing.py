"""Images that a trained model draws, completes or reconstructs."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from recvis_jax import build, errors, generation, trained
from recvis_jax.axes import BATCH_AXES
from recvis_jax.training import distributed, sharding


def draw(
    run: build.Run,
    params: Any,
    model_state: Any,
    number: int,
    seed: int = 0,
    *,
    split: str | None = None,
    batch_size: int = 64,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    say: Callable[[str, int, int], None] | None = None,
) -> dict[str, np.ndarray]:
    """Returns images in [0, 1] drawn by a model of pixels.

    Args:
      run: with a task that generates.
      params, model_state: of the trained model.
      number: of images.
      seed: an image depends only on the seed and its own number.
      split: images whose upper halves are kept, in order; None draws whole images. A model of super-resolution is told
        the split's images smaller, and draws them; it needs a split.
      batch_size: images drawn at a time.
      temperature, top_k, top_p: see `generation.sample`.
      say: called with (what, images done, total), also while a batch is drawn; the compiled program is then not kept
        for later processes.

    Returns:
      `images` (n h w c); with a split also `originals` and `given`, in which drawn pixels are grey, or what the model
      of super-resolution is told, enlarged.

    Raises:
      BadRequest: the run's task does not generate, the split has fewer images, or a split is needed.
    """
    if run.task.generate is None or run.data.info.vocabulary:
        raise errors.BadRequest(f"{type(run.model).__name__} of this run cannot draw images: its task is not 'pixels'.")
    upscales = bool(getattr(run.model, "encoder_depth", 0))
    if upscales and split is None:
        raise errors.BadRequest("this run draws the details of images: name the split of them, such as split='test'.")
    originals = None if split is None else _images(run, split, number)
    options: dict[str, Any] = dict(temperature=temperature, top_k=top_k, top_p=top_p)
    known = None
    if originals is not None and not upscales:
        h, w = originals.shape[1:3]
        known = jnp.broadcast_to(jnp.arange(h)[:, None] < h // 2, (h, w))
    generate = run.task.generate

    size, place = over_devices(run, min(batch_size, number))
    at = {"first": 0}

    def tell(share: float) -> None:
        assert say is not None
        say("drawing", min(number, at["first"] + int(share * size)), number)

    @jax.jit
    def some(params: Any, model_state: Any, numbers: jax.Array, image: jax.Array | None) -> jax.Array:
        keys = generation.keys(seed, numbers)
        return generate(params, model_state, keys, image=image, known=known, tell=tell if say else None, **options)

    out = []
    for first in range(0, number, size):
        at["first"] = first
        numbers = np.arange(first, first + size)  # always the same shape, so that there is one program
        image = None if originals is None else place(originals[np.minimum(numbers, number - 1)])
        out.append(distributed.onto_host(some(params, model_state, place(numbers), image)))
        if say:
            say("drawing", min(number, first + size), number)
    images = np.concatenate(out)[:number]
    if originals is None:
        return {"images": images}
    if upscales:
        given = (
            np.asarray(run.model.small(jnp.asarray(originals))).repeat(run.model.factor, 1).repeat(run.model.factor, 2)
        )
    else:
        given = np.where(np.asarray(known)[..., None], originals, 0.5)
    return {"originals": originals, "given": given, "images": images}


def reconstruct(run: build.Run, params: Any, model_state: Any, images: jax.Array) -> dict[str, np.ndarray]:
    """Returns the pictures {name: (n h w c) in [0, 1]} of the task's figure, such as a masked autoencoder's.

    Args:
      run: with a task that has a figure.
      params, model_state: of the trained model.
      images: (n h w c) of the run's shape, uint8 or float in [0, 1].

    Raises:
      BadRequest: the run's task has no figure.
    """
    if run.task.figure is None:
        raise errors.BadRequest(f"{type(run.model).__name__} of this run reconstructs nothing: its task is not 'mae'.")
    found = jax.jit(run.task.figure)(params, model_state, run.data.preprocess({"image": images}))
    return {name: np.clip(np.asarray(run.data.denormalise(x)), 0, 1) for name, x in found.items()}


def over_devices(run: build.Run, size: int) -> tuple[int, Callable[[np.ndarray], jax.Array]]:
    """Returns a size that devices divide evenly, at least `size`, and what puts so many examples on them.

    Fewer examples than devices stay on one device. What is generated does not depend on it.
    """
    parts = math.prod(run.mesh.shape[axis] for axis in BATCH_AXES)
    if size < parts or parts == 1:
        return size, jnp.asarray
    split = NamedSharding(run.mesh, sharding.batch_spec())
    return -(-size // parts) * parts, lambda x: distributed.onto_devices(x, split)


def _images(run: build.Run, split: str, number: int) -> np.ndarray:
    """Returns the first images of a split as input of the model."""
    source = trained.open_named(run.data, trained.canonical(split))
    if source.length < number:
        raise errors.BadRequest(f"{errors.printable(source.name)} has {source.length:,} images, not {number:,}.")
    found: list[np.ndarray] = []
    for batch in build.eval_batches(run, source):
        image = run.data.preprocess(batch)["image"]
        found.append(np.asarray(image)[np.asarray(batch["mask"])])
        if sum(map(len, found)) >= number:
            break
    return np.concatenate(found)[:number]
