"""The optimizers by name: the update direction of each, before the learning rate, and its kind of weight decay."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from recvis_jax import trees


class Rule(NamedTuple):
    """One optimizer: its update direction, before the learning rate, and its kind of weight decay."""

    direction: Callable[..., optax.GradientTransformation]
    decay_style: str  # "coupled" or "decoupled"
    trust_ratio: bool = False  # whether direction plus decay is scaled to the parameter's norm


def _sgd() -> optax.GradientTransformation:
    """Gradient descent without memory."""
    return optax.identity()


def _momentum(*, momentum: float = 0.9) -> optax.GradientTransformation:
    """Heavy ball, undamped as in torch: v = momentum * v + g (Sutskever et al., 2013)."""
    return optax.trace(momentum)


def _nesterov(*, momentum: float = 0.9) -> optax.GradientTransformation:
    """Nesterov's momentum as in torch: v = momentum * v + g, in direction g + momentum * v."""
    return optax.trace(momentum, nesterov=True)


def _adam(*, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """Kingma and Ba, 2015, https://arxiv.org/abs/1412.6980."""
    return optax.scale_by_adam(b1, b2, eps)


def _lion(*, b1: float = 0.9, b2: float = 0.99) -> optax.GradientTransformation:
    """Chen et al., 2023, https://arxiv.org/abs/2302.06675; use about a tenth of AdamW's rate, ten times its decay."""
    return optax.scale_by_lion(b1, b2)


def _lamb(*, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-6) -> optax.GradientTransformation:
    """You et al., 2020, https://arxiv.org/abs/1904.00962; the trust ratio is a later stage."""
    return optax.scale_by_adam(b1, b2, eps)


def _lars(*, momentum: float = 0.9, trust_coefficient: float = 0.001, eps: float = 0.0) -> optax.GradientTransformation:
    """You et al., 2017, https://arxiv.org/abs/1708.03888; parameters of one axis (biases, norms) use plain momentum.

    The learning rate multiplies the momentum, as in the linear probes of MAE and MoCo v3; in the paper it is inside the
    momentum. The two differ only while the rate changes.
    """
    scale = optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient, eps=eps)
    return optax.chain(optax.masked(scale, lambda p: jax.tree.map(lambda x: x.ndim > 1, p)), optax.trace(momentum))


def _adafactor(
    *,
    momentum: float | None = None,
    eps: float = 1e-30,
    decay_rate: float = 0.8,
    clipping_threshold: float | None = 1.0,
    min_dim_size_to_factor: int = 128,
    multiply_by_parameter_scale: bool = True,
) -> optax.GradientTransformation:
    """Shazeer and Stern, 2018, arxiv.org/abs/1804.04235; by default the rate is relative to a parameter's RMS."""
    factored = optax.adafactor(
        momentum=momentum,
        eps=eps,
        decay_rate=decay_rate,
        clipping_threshold=clipping_threshold,
        min_dim_size_to_factor=min_dim_size_to_factor,
        multiply_by_parameter_scale=multiply_by_parameter_scale,
    )
    return optax.chain(factored, optax.scale(-1.0))  # optax's adafactor already has the minus sign of descent


def _muon(
    *,
    momentum: float = 0.95,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    ns_steps: int = 5,
    consistent_rms: float | None = 0.2,
    adam: str = r"(^|/)head/",
) -> optax.GradientTransformation:
    """Orthogonalised momentum for the kernels of hidden layers, Adam for the rest.

    Args:
      momentum: of the orthogonalised part.
      b1, b2: of (Nesterov) Adam, which updates all other parameters: embeddings, biases, norms, the head.
      eps: of both.
      ns_steps: Newton-Schulz iterations.
      consistent_rms: scales updates to this root mean square, so that both parts share AdamW's learning rate (Liu et
        al., 2025, https://arxiv.org/abs/2502.16982). None: scaled by sqrt(max(1, out / in)).
      adam: regular expression of kernels that Adam updates; it may match none.

    Returns:
      The direction.

    Reference:
      Jordan et al., 2024, https://kellerjordan.github.io/posts/muon.
    """

    def dimensions(params: PyTree) -> PyTree:
        """Returns which axes of a kernel are inputs and outputs; None for a parameter that Adam updates."""
        excluded = trees.mask(params, adam, allow_empty=True)
        kernels = trees.mask(params, r"kernel$", allow_empty=True)
        heads = trees.mask(params, r"(query|key|value)/kernel$", allow_empty=True)  # (d, heads, head width)

        def one(x: Any, out: bool, kernel: bool, head: bool) -> optax.contrib.MuonDimensionNumbers | None:
            if out or not kernel or x.ndim < 2:
                return None
            inputs = 1 if head else x.ndim - 1  # a convolution (h w c_in c_out) is a matrix (h * w * c_in, c_out)
            return optax.contrib.MuonDimensionNumbers(tuple(range(inputs)), tuple(range(inputs, x.ndim)))

        return jax.tree.map(one, params, excluded, kernels, heads)

    descent = optax.contrib.muon(
        1.0,
        ns_steps=ns_steps,
        beta=momentum,
        eps=eps,
        adam_b1=b1,
        adam_b2=b2,
        consistent_rms=consistent_rms,
        muon_weight_dimension_numbers=dimensions,
    )

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        # Given coefficients for each iteration, optax uses a loop. Otherwise it unrolls the iterations, and XLA
        # computes the sums of each iteration again in all later ones.
        coefficients = optax.tree.get(state, "ns_coeffs")
        looped = optax.tree.set(state, ns_coeffs=jnp.tile(coefficients, (ns_steps, 1)))
        updates, new = descent.update(updates, looped, params)
        return updates, optax.tree.set(new, ns_coeffs=coefficients)

    return optax.chain(optax.GradientTransformation(descent.init, update), optax.scale(-1.0))


OPTIMIZERS: dict[str, Rule] = {
    "sgd": Rule(_sgd, "coupled"),
    "momentum": Rule(_momentum, "coupled"),
    "nesterov": Rule(_nesterov, "coupled"),
    "adam": Rule(_adam, "coupled"),
    "adamw": Rule(_adam, "decoupled"),
    "lion": Rule(_lion, "decoupled"),
    "lamb": Rule(_lamb, "decoupled", trust_ratio=True),
    "lars": Rule(_lars, "coupled"),
    "adafactor": Rule(_adafactor, "decoupled"),
    "muon": Rule(_muon, "decoupled"),
}
