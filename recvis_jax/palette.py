"""The palette of a model of pixels: the colours that k-means finds in the training images."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from recvis_jax.classical import kmeans
from recvis_jax.data.sources import Source
from recvis_jax.training import distributed

COLLECTION = "palette"  # of a model's variables
_IMAGES, _PIXELS = 1000, 100_000  # that it is learned from, at most


def learn(source: Source, transform: Callable | None, colours: int, seed: int) -> Float[np.ndarray, "v 3"]:
    """Returns the centres of the training images' colours, in [0, 1], sorted by brightness.

    Args:
      source: the training split, with images of three channels.
      transform: `f(rng, example) -> example` on the host, or None.
      colours: number of centres.
      seed: of the choice of images and pixels, and of k-means.

    Reference: Chen et al. 2020, "Generative pretraining from pixels", section 3.2: k-means with 512 colours.
    """
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(source.length)[:_IMAGES])
    found = []
    for example in source.read(rows):
        image = (transform(rng, example) if transform else example)["image"]
        pixels = np.asarray(image, np.float32).reshape(-1, image.shape[-1]) / 255
        found.append(pixels[rng.permutation(len(pixels))[: -(-_PIXELS // len(rows))]])
    centres = np.asarray(kmeans.fit(np.concatenate(found), colours, seed=seed).centers)
    return np.clip(centres[np.lexsort((*centres.T, centres.sum(1)))], 0, 1)


def learned(run: Any, state: Any, say: Callable[[str], None] = print) -> Any:
    """Returns a new run's state with the palette of its training images; unchanged for models without one.

    Args:
      run: a `build.Run`.
      state: at step 0.
      say: takes a line of progress.
    """
    if COLLECTION not in state.model_state or run.data.train is None:
        return state
    with jax.default_device(jax.local_devices()[0]):
        found = learn(run.data.train, run.data.transform, run.model.colours, run.seed)
    say(f"palette: {run.model.colours} colours of the training images")
    state = distributed.onto_host(state)
    kept = {**state.model_state, COLLECTION: {"colours": jnp.asarray(found)}}
    ema = None if state.ema is None else {**state.ema, "model_state": kept}
    state = dataclasses.replace(state, model_state=kept, ema=ema)
    return jax.tree.map(jnp.copy, distributed.onto_devices(state, run.shardings))
