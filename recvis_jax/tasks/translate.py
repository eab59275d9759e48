"""Translation: predict every token of the target from the source and from the tokens before it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Key

from recvis_jax import errors, generation
from recvis_jax.evaluation import translation
from recvis_jax.tasks.applying import apply_train
from recvis_jax.tasks.task import Task

PAD, START, END = 0, 1, 2  # of `data.text`
_NEVER = -1e9  # score of tokens that are not text


def translate(
    model: nn.Module,
    *,
    fields: Sequence[Any],
    vocabulary: Any,
    label_smoothing: float = 0.1,
    beams: int = 1,
    alpha: float = 0.6,
    decode: bool = True,
) -> Task:
    """Pairs a sequence-to-sequence model with the cross entropy of the target's tokens, and with a search.

    The loss is in nats a token: (1 - a) times minus the logarithm of the token's probability, plus a times the mean of
    minus the logarithms of all tokens' probabilities. It is divided by the number of tokens of the global batch.
    Evaluation reports it without smoothing, and BLEU and chrF of the translations as texts.

    Args:
      model: `__call__({source, source_mask, target, target_mask}, *, train) -> (logits (b n v), acts)`, which
        `generation.decoder` can decode with.
      fields: of the data, including `source` and `target`.
      vocabulary: of the data, with `size` and `decode`.
      label_smoothing: a, in [0, 1).
      beams: width of the beam search in evaluation; 1 is greedy.
      alpha: of the length penalty, see `generation.beam_search`.
      decode: whether evaluation also translates and scores the texts.

    Raises:
      BadRequest: data without texts, a model of another kind or with too small a vocabulary, or values out of range.

    Reference: Vaswani et al. 2017, "Attention is all you need", sections 5.4 and 6.1; Szegedy et al. 2016, section 7.
    """
    known = {f.name: f for f in fields}
    if vocabulary is None or not {"source", "target"} <= set(known):
        raise errors.BadRequest(
            "task 'translate' needs texts and their translations: set config.data.text, which defines their tokens."
        )
    size = getattr(model, "vocabulary", None)
    if not isinstance(size, int) or not hasattr(model, "length"):
        raise errors.BadRequest(
            f"task 'translate' trains sequence-to-sequence models such as transformer_base, not {type(model).__name__}."
        )
    if size < vocabulary.size:
        raise errors.BadRequest(
            f"config.model.vocabulary={size:,} is less than the {vocabulary.size:,} tokens of the data."
        )
    if not 0 <= label_smoothing < 1:
        raise errors.BadRequest(f"task.label_smoothing={label_smoothing} is outside [0, 1).")
    if beams < 1 or alpha < 0:
        raise errors.BadRequest(f"task.beams={beams} and task.alpha={alpha}; they are at least 1 and 0.")
    most = known["target"].most

    @jax.jit
    def init(key: Key[Array, ""]) -> dict[str, Any]:
        tokens, there = jnp.full((2, 4), END, jnp.int32), jnp.ones((2, 4), bool)
        example = {"source": tokens, "source_mask": there, "target": tokens, "target_mask": there}
        return dict(model.init({"params": key, "dropout": key}, example, train=False))

    def counts(batch: dict) -> dict[str, Array]:
        return {"loss": batch["target_mask"].sum(-1, dtype=jnp.float32)}

    def loss(params, model_state, batch, key):
        logits, _, new = apply_train(model, params, model_state, batch, key, _inputs(batch))
        nats, smooth, right = per_token(logits, batch["target"], batch["target_mask"])
        total = (1 - label_smoothing) * nats + label_smoothing * smooth if label_smoothing else nats
        return {"loss": total}, new, {"token_accuracy": (right, counts(batch)["loss"])}

    def predict(params, model_state, batch):
        logits, _ = model.apply({"params": params, **model_state}, _inputs(batch), train=False)
        nats, _, right = per_token(logits, batch["target"], batch["target_mask"])
        out = {"loss": nats, "right": right, "tokens": counts(batch)["loss"]}
        if decode:
            out["hypothesis"] = generate(params, model_state, None, **_source(batch), beams=beams, alpha=alpha)
            out["reference"] = batch["target"]
        return out

    def generate(
        params,
        model_state,
        keys: Key[Array, "b"] | None,
        *,
        source: Int[Array, "b m"],
        source_mask: Bool[Array, "b m"],
        beams: int = 1,
        alpha: float = 0.6,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> Int[Array, "b n"]:
        """Returns translations as tokens, up to and filled with the end; drawn with `keys` above temperature 0."""
        b, length = len(source), min(most, 2 * source.shape[1] + 10)
        variables = {"params": params, **model_state}
        step, cache = generation.decoder(model, variables, b, length, {"source": source, "source_mask": source_mask})
        step = _of_texts(step, vocabulary.size)
        if beams > 1:
            cache = jax.tree.map(lambda x: jnp.repeat(x, beams, axis=0) if x.ndim else x, cache)
            return generation.beam_search(step, cache, b, START, END, length, beams=beams, alpha=alpha).tokens[:, 0]
        keys = generation.keys(0, jnp.arange(b)) if keys is None else keys
        options = dict(temperature=temperature, top_k=top_k, top_p=top_p)
        return generation.sample(step, cache, keys, START, length, end=END, **options)[0]

    measured = {
        "loss": translation.per_token("loss", "loss"),
        "token_accuracy": translation.per_token("right", "token_accuracy"),
    }
    if decode:
        measured["translations"] = translation.translations(vocabulary.decode, max(most, known["source"].most))
    return Task(
        init=init,
        loss=loss,
        predict=predict,
        metrics=measured,
        best=("bleu", "max") if decode else ("loss", "min"),
        counts=counts,
        generate=generate,
    )


def per_token(
    logits: Float[Array, "b n v"], tokens: Int[Array, "b n"], mask: Bool[Array, "b n"]
) -> tuple[Float[Array, "b"], Float[Array, "b"], Float[Array, "b"]]:
    """Returns sums over an example's tokens: -log p of the token, the mean of -log p of all, and how many are right.

    Args:
      logits: scores of every token at every position.
      tokens, mask: what is there, and where.

    Example: of two tokens, the second of which is padding
      >>> nats, smooth, right = per_token(jnp.zeros((1, 2, 4)), jnp.array([[0, 1]]), jnp.array([[True, False]]))
      >>> bool(jnp.allclose(nats, jnp.log(4))), float(right[0])
      (True, 1.0)
    """
    logits = logits.astype(jnp.float32)
    total = jax.nn.logsumexp(logits, axis=-1)
    own = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]

    def summed(x: Array) -> Array:
        return jnp.where(mask, x, 0).sum(-1)

    right = (logits.argmax(-1) == tokens).astype(jnp.float32)
    return summed(total - own), summed(total - logits.mean(-1)), summed(right)


def _inputs(batch: dict) -> dict[str, Array]:
    return {k: batch[k] for k in ("source", "source_mask", "target", "target_mask")}


def _source(batch: dict) -> dict[str, Array]:
    return {k: batch[k] for k in ("source", "source_mask")}


def _of_texts(step: Callable, size: int) -> Callable:
    """Restricts a decoder to tokens of texts and the end token."""

    def only(cache: Any, tokens: Int[Array, "b"]) -> tuple[Float[Array, "b v"], Any]:
        logits, cache = step(cache, tokens)
        numbers = jnp.arange(logits.shape[-1])
        good = (numbers >= END) & (numbers < size)
        return jnp.where(good, logits, _NEVER), cache

    return only
