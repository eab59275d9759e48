"""Sequences from models that predict the next token: one cache contract, sampling and beam search.

A decoder is a function `step(cache, tokens (b,)) -> (logits (b v), cache)`: given the tokens at one position of b
sequences, it scores those at the next. The cache, a tree of arrays, holds what came before. `decoder` makes one from a
model of ours; a function of your own works as well.
"""

from recvis_jax.generation.beam import beam_search
from recvis_jax.generation.cache import decoder
from recvis_jax.generation.sampling import keys, sample

__all__ = ["beam_search", "decoder", "keys", "sample"]
