"""A small network for the least time to a given accuracy on 28x28 images."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest
from recvis_jax.models.layers import Acts, activation, global_avg_pool, global_max_pool, he_normal, make_norm, max_pool


class SpeedNet(nn.Module):
    widths: tuple[int, ...] = (32, 64, 128)
    blocks: tuple[int, ...] = (0, 1, 1)
    stem_size: int = 3
    stem_stride: int = 1
    num_classes: int = 10
    activation: str = "relu"
    head_scale: float = 0.125
    pool: str = "max"
    head: str = "max"
    convs: int = 1
    bn_groups: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> tuple[Float[Array, "b k"], Acts]:
        act, acts = activation(self.activation), {}
        norm = make_norm("batch", bn_groups=self.bn_groups, dtype=self.dtype)

        def conv(w, k, s, name):
            pad = (k - s + 1) // 2 if s > 1 else k // 2
            return nn.Conv(
                w, (k, k), strides=s, padding=pad, use_bias=False, kernel_init=he_normal, dtype=self.dtype, name=name
            )

        x = conv(self.widths[0], self.stem_size, self.stem_stride, "stem")(x.astype(self.dtype))
        acts["stem"] = x = act(norm(name="stem_norm")(x, train=train))
        for s, (w, n) in enumerate(zip(self.widths[1:], self.blocks, strict=True), 1):
            x = conv(w, 3, 1, f"stage{s}_conv")(x)
            x = act(norm(name=f"stage{s}_norm")(max_pool(x, 2), train=train))
            acts[f"stage{s}/block1"] = x
            for b in range(n):
                y = x
                for c in range(self.convs):
                    y = conv(w, 3, 1, f"stage{s}_block{b}_conv{c}")(y)
                    y = act(norm(name=f"stage{s}_block{b}_norm{c}")(y, train=train))
                acts[f"stage{s}/block{b + 2}"] = x = x + y
        acts["features"] = x = global_max_pool(x) if self.head == "max" else global_avg_pool(x)
        x = nn.Dense(self.num_classes, use_bias=False, dtype=self.dtype, name="head")(x)
        acts["logits"] = x.astype(jnp.float32) * self.head_scale
        return acts["logits"], acts
