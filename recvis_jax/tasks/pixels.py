"""Images as sequences: predict every pixel from those before it."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Key

from recvis_jax import errors, generation
from recvis_jax.evaluation import metrics
from recvis_jax.tasks.applying import apply_eval, apply_train, initialiser
from recvis_jax.tasks.task import Task


def pixels(model: nn.Module, *, image_shape: tuple[int, int, int]) -> Task:
    """Pairs an autoregressive model of images with the negative log-likelihood of their tokens.

    The loss is in nats a token. `bits_per_dim` is the same in bits, of the quantised image, for models whose tokens are
    the channels of its pixels; a colour of a palette is no dimension. Images must come in [0, 1]: `data.statistics` is
    ((0.0,), (1.0,)).

    Args:
      model: of `models.DECODERS`: `__call__(image (b h w c), *, train) -> (logits (b n v), acts)`, with the tokens
        (b n) as acts["targets"], and the methods `tokens_of` and `images_of`.
      image_shape: (h, w, c).

    Raises:
      BadRequest: a model that does not generate images, images with other channels than the model's, or more tokens
        than it has positions.

    Reference: Chen et al. 2020, "Generative pretraining from pixels", section 2; Parmar et al. 2018, "Image
    transformer", section 5, for super-resolution.
    """
    h, w, channels = image_shape
    colours = getattr(model, "colours", None)
    if colours is None or not hasattr(model, "length"):
        raise errors.BadRequest(
            f"task 'pixels' trains models that generate, as igpt_s; {type(model).__name__} does not."
        )
    palette, shape = getattr(model, "palette", False), getattr(model, "shape", None)
    if shape is not None and tuple(shape) != (h, w, channels):
        raise errors.BadRequest(
            f"config.model.shape is {errors.shown(tuple(shape))}, the images are of {(h, w, channels)}; set it to "
            "that, or change the images by config.data.transform and eval_transform."
        )
    if shape is None and channels != (3 if palette else 1):
        needed = "images of 3 channels" if palette else "grey images"
        remedy = "; config.model.palette=True is for images in colour" if channels == 3 else ""
        raise errors.BadRequest(f"task 'pixels' needs {needed}; these have {channels} channels{remedy}.")
    n = h * w if shape is None else h * w * channels
    if n > model.pixels:
        raise errors.BadRequest(
            f"images of {h}x{w} have {n:,} pixels, config.model.pixels is {model.pixels:,}: make them smaller by "
            "config.data.transform and eval_transform, or the model longer."
        )
    sparse, upscales = getattr(model, "sparse", None), bool(getattr(model, "encoder_depth", 0))
    if sparse and n != model.pixels:
        raise errors.BadRequest(f"sparse attention is of whole images: config.model.pixels={n} for {h}x{w}.")
    order = getattr(model, "order", np.arange(n))[:n]
    per_pixel = n // (h * w)

    def nats(logits: Array, acts: dict[str, Array]) -> Float[Array, "b"]:
        return optax.softmax_cross_entropy_with_integer_labels(logits, acts["targets"]).sum(-1)

    def counts(batch: dict) -> dict[str, Array]:
        return {"loss": jnp.full(len(batch["image"]), float(n))}

    def loss(params, model_state, batch, key):
        logits, acts, new = apply_train(model, params, model_state, batch, key)
        return {"loss": nats(logits, acts)}, new, {}

    def predict(params, model_state, batch):
        logits, acts = apply_eval(model, params, model_state, batch["image"])
        found = nats(logits, acts) / n
        return {"prediction": logits, "loss": found, "bits": found / math.log(2)}

    def figure(params, model_state, batch):
        image = batch["image"]
        keys = generation.keys(0, jnp.arange(len(image)))
        if upscales:
            drawn = generate(params, model_state, keys, image=image)
            return {"original": image, "given": enlarged(image), "drawn": drawn}
        upper = jnp.broadcast_to(jnp.arange(h)[:, None] < h // 2, (h, w))
        columns = {"original": image, "given": jnp.where(upper[..., None], image, 0.5)}
        columns["completed"] = generate(params, model_state, keys, image=image, known=upper)
        columns["drawn"] = generate(params, model_state, keys)
        return columns

    def enlarged(image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns what the model is told of images to draw, as large as they are."""
        small = model.small(image)
        return jnp.repeat(jnp.repeat(small, model.factor, 1), model.factor, 2)

    def generate(
        params,
        model_state,
        keys: Key[Array, "b"],
        *,
        image: Float[Array, "b h w c"] | None = None,
        known: Bool[Array, "h w"] | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        tell: Callable[[float], None] | None = None,
    ) -> Float[Array, "b h w c"]:
        """Draws images; of `image`, pixels stay where `known`. A model with an encoder is told `image` smaller."""
        b, variables, told = keys.shape[0], {"params": params, **model_state}, None
        if upscales:
            if image is None:
                raise errors.BadRequest("this model draws the details of images: give `image`.")
            told = {"small": model.small(image)}

        def call(method: str, *given: Any) -> Any:
            return model.apply(variables, *given, method=method)

        step, cache = generation.decoder(model, variables, b, n, told)
        given = None
        if known is not None and image is not None:
            given = call("tokens_of", image)[:, order]
            known = jnp.broadcast_to(jnp.repeat(known.reshape(-1), per_pixel), (b, n))[:, order]
        tokens, _ = generation.sample(
            step, cache, keys, colours, n, temperature=temperature, top_k=top_k, top_p=top_p, given=given,
            known=known if given is not None else None, tell=tell,
        )  # fmt: skip
        return call("images_of", tokens[:, np.argsort(order)], h, w)

    measured = {"loss": metrics.loss(None)}
    if not palette:
        measured["bits_per_dim"] = metrics.mean_of("bits", "bits_per_dim")
    return Task(
        init=initialiser(model, image_shape),
        loss=loss,
        predict=predict,
        metrics=measured,
        best=("loss", "min"),
        counts=counts,
        figure=jax.jit(figure),
        generate=generate,
    )
