"""Images as sequences: predict every pixel from those before it."""

import math

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
    """Pairs an autoregressive model of grey images with the negative log-likelihood of their pixels.

    The loss is in nats a pixel; `bits_per_dim` is the same in bits, of the quantised image. Images must come in [0, 1]:
    `data.statistics` is ((0.0,), (1.0,)).

    Args:
      model: one of `models.DECODERS`: `__call__(image (b h w 1), *, train) -> (logits (b n v), acts)`, with the pixels'
        tokens (b n) as acts["targets"].
      image_shape: (h, w, 1).

    Raises:
      BadRequest: a model that does not generate, images with colours, or more pixels than the model has positions.

    Reference: Chen et al. 2020, "Generative pretraining from pixels", section 2.
    """
    h, w, channels = image_shape
    colours = getattr(model, "colours", None)
    if colours is None or not hasattr(model, "length"):
        raise errors.BadRequest(
            f"task 'pixels' trains models that generate, as igpt_s; {type(model).__name__} does not."
        )
    if channels != 1:
        raise errors.BadRequest(f"task 'pixels' needs grey images; these have {channels} channels.")
    if h * w > model.pixels:
        raise errors.BadRequest(
            f"images of {h}x{w} have {h * w:,} pixels, config.model.pixels is {model.pixels:,}: make them smaller by "
            "config.data.transform and eval_transform, or the model longer."
        )

    sparse = getattr(model, "sparse", None)
    if sparse and h * w != model.pixels:
        raise errors.BadRequest(f"sparse attention is of whole images: config.model.pixels={h * w} for {h}x{w}.")
    order = getattr(model, "order", np.arange(h * w))[: h * w]

    def nats(logits: Array, acts: dict[str, Array]) -> Float[Array, "b"]:
        return optax.softmax_cross_entropy_with_integer_labels(logits, acts["targets"]).sum(-1)

    def counts(batch: dict) -> dict[str, Array]:
        return {"loss": jnp.full(len(batch["image"]), float(h * w))}

    def loss(params, model_state, batch, key):
        logits, acts, new = apply_train(model, params, model_state, batch, key)
        return {"loss": nats(logits, acts)}, new, {}

    def predict(params, model_state, batch):
        logits, acts = apply_eval(model, params, model_state, batch["image"])
        found = nats(logits, acts) / (h * w)
        return {"prediction": logits, "loss": found, "bits": found / math.log(2)}

    def figure(params, model_state, batch):
        image = batch["image"]
        keys = generation.keys(0, jnp.arange(len(image)))
        upper = jnp.broadcast_to(jnp.arange(h)[:, None] < h // 2, (h, w))
        columns = {"original": image, "given": jnp.where(upper[..., None], image, 0.5)}
        columns["completed"] = generate(params, model_state, keys, image=image, known=upper)
        columns["drawn"] = generate(params, model_state, keys)
        return columns

    def generate(
        params,
        model_state,
        keys: Key[Array, "b"],
        *,
        image: Float[Array, "b h w 1"] | None = None,
        known: Bool[Array, "h w"] | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> Float[Array, "b h w 1"]:
        """Draws images; of `image`, pixels stay where `known`."""
        b = keys.shape[0]
        step, cache = generation.decoder(model, {"params": params, **model_state}, b, h * w)
        given = None
        if image is not None:
            given = apply_eval(model, params, model_state, image)[1]["targets"]
            known = jnp.broadcast_to(jnp.ones((h, w), bool) if known is None else known, (b, h, w)).reshape(b, -1)
            known = known[:, order]
        tokens, _ = generation.sample(
            step, cache, keys, colours, h * w, temperature=temperature, top_k=top_k, top_p=top_p, given=given,
            known=known if given is not None else None,
        )  # fmt: skip
        return (tokens[:, np.argsort(order)] / (colours - 1)).reshape(b, h, w, 1)

    return Task(
        init=initialiser(model, image_shape),
        loss=loss,
        predict=predict,
        metrics={"loss": metrics.loss(None), "bits_per_dim": metrics.mean_of("bits", "bits_per_dim")},
        best=("loss", "min"),
        counts=counts,
        figure=jax.jit(figure),
        generate=generate,
    )
