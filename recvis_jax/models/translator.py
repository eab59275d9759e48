"""Translation: the Transformer on tokens, with one embedding matrix for source, target and output."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from recvis_jax.errors import BadRequest
from recvis_jax.models.attention import check_heads
from recvis_jax.models.layers import Acts, activation
from recvis_jax.models.tokens import check_rates
from recvis_jax.models.transformer import Transformer

# Vaswani et al. 2017, table 3.
VARIANTS = {
    "transformer_base": dict(width=512, heads=8, encoder_depth=6, decoder_depth=6, hidden=2048, dropout=0.1),
    "transformer_big": dict(width=1024, heads=16, encoder_depth=6, decoder_depth=6, hidden=4096, dropout=0.3),
}
START = 1  # token before the first of a target


class Translator(nn.Module):
    """Predicts the next token of a target from a source and the tokens before it.

    The embeddings of source and target and the output layer are one matrix; embedded tokens are multiplied by
    sqrt(width).

    Attributes:
      vocabulary: number of tokens, shared by both languages.
      width: of the token embeddings.
      heads, encoder_depth, decoder_depth, hidden, pre_norm, dropout: see `Transformer`.
      attention: "softmax", or "uniform" for equal weights: a baseline without attention.
      activation: elementwise function of the MLPs.
      norm_eps: added to the variance in layer norms.
      length: maximum number of tokens when decoding, see `recvis_jax.generation`; 0 for whole targets (training).
      dtype: of the computation.

    Raises:
      BadRequest: heads that do not divide the width, an unknown attention or activation, a probability outside [0, 1).

    Reference: Vaswani et al. 2017, "Attention is all you need", section 3.4; Press & Wolf 2017, "Using the output
    embedding to improve language models".

    Example:
      >>> model = Translator(vocabulary=20, width=8, heads=2, encoder_depth=1, decoder_depth=1, hidden=16)
      >>> tokens = jnp.ones((2, 5), jnp.int32)
      >>> batch = {"source": tokens, "source_mask": tokens > 0, "target": tokens, "target_mask": tokens > 0}
      >>> (logits, acts), variables = model.init_with_output(jax.random.key(0), batch, train=False)
      >>> logits.shape, acts["decoder0/cross_attention"].shape
      ((2, 5, 20), (2, 2, 5, 5))
    """

    vocabulary: int
    width: int = 512
    heads: int = 8
    encoder_depth: int = 6
    decoder_depth: int = 6
    hidden: int = 2048
    pre_norm: bool = False
    dropout: float = 0.1
    attention: str = "softmax"
    activation: str = "relu"
    norm_eps: float = 1e-6
    length: int = 0
    dtype: Any = jnp.float32

    def __post_init__(self):
        check_heads(self.width, self.heads)
        check_rates(dropout=self.dropout)
        activation(self.activation)
        if self.attention not in ("softmax", "uniform"):
            raise BadRequest(f"unknown attention {self.attention!r}. There are: softmax, uniform.")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Mapping[str, Any] | Int[Array, "b 1"], *, train: bool) -> tuple[Float[Array, "b n v"], Acts]:
        """Returns the scores of the next token at every position of the target, and intermediates.

        Args:
          x: `source` (b m) and `target` (b n) tokens, `source_mask` and `target_mask`, true where there is one. The
            scores at position i are those of the target's token i, given those before it. In decoding, the token at
            one position (b 1); the first call takes only `source` and `source_mask`, which are cached.
          train: whether dropout is on.
        """
        embed = nn.Embed(self.vocabulary, self.width, embedding_init=nn.initializers.normal(self.width**-0.5),
                         dtype=self.dtype, name="embed")  # fmt: skip
        net = Transformer(
            self.width, self.heads, self.encoder_depth, self.decoder_depth, self.hidden, pre_norm=self.pre_norm,
            end_norm=self.pre_norm, uniform=self.attention == "uniform", length=self.length,
            activation=self.activation, norm_eps=self.norm_eps, dropout=self.dropout, dtype=self.dtype, name="net",
        )  # fmt: skip
        source, masks = None, {}
        if not isinstance(x, Mapping):
            tokens = x
        else:
            source = embed(x["source"]) * self.width**0.5
            masks["source_mask"] = x["source_mask"]
            first = jnp.full((len(x["source"]), 1), START, x["source"].dtype)
            tokens = first
            if not self.length:
                tokens = jnp.concatenate([first, x["target"][:, :-1]], axis=1)
                masks["target_mask"] = jnp.pad(x["target_mask"][:, :-1], ((0, 0), (1, 0)), constant_values=True)
        y, acts = net(source, embed(tokens) * self.width**0.5, **masks, train=train)
        acts["features"] = y
        acts["logits"] = logits = embed.attend(y.astype(self.dtype)).astype(jnp.float32)
        return logits, acts
