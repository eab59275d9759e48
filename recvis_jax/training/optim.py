"""Optimizers: optax's own, chained in a fixed order; regular expressions select what decays, freezes or is scaled.

A gradient becomes an update of the parameters in these stages; only the requested stages are present:

    clip          gradient scaled to a global norm of at most `clip_norm`
    l2            + weight_decay * parameter, if the decay is coupled: the gradient of an L2 penalty
    <name>        the optimizer: momentum, second moments, sign, ...
    decay         + weight_decay * parameter, if the decay is decoupled (Loshchilov and Hutter, 2019)
    trust_ratio   of LAMB
    lr            * -schedule(t): decoupled decay is therefore multiplied by the learning rate, as in torch and optax
    lr_multipliers  * the factor of each parameter
    layer_decay   * the factor of each parameter's layer

The state is a dict with these names. Frozen parameters pass through no stage and have no state.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from recvis_jax import trees
from recvis_jax.errors import BadRequest, check_kwargs, choose, keywords, shown
from recvis_jax.training.layer_decay import BLOCK, layer_factors
from recvis_jax.training.schedules import SCHEDULES, Schedule, in_steps, make_schedule

__all__ = ["OPTIMIZERS", "SCHEDULES", "Optimizer", "ema_update", "make_optimizer", "make_schedule"]


class Optimizer(NamedTuple):
    """A gradient transformation of optax with its learning-rate schedule, which is None if unknown."""

    init: Callable[..., Any]  # params -> state
    update: Callable[..., Any]  # (grads, state, params) -> (updates, state); new params are params + updates
    schedule: Schedule | None  # number of updates made -> learning rate


def of_optax(transformation: Any) -> Optimizer:
    """Returns any transformation of optax as an optimizer.

    Raises:
      BadRequest: it is not a transformation.

    Example:
      >>> of_optax(optax.adam(1e-3)).schedule is None
      True
    """
    if isinstance(transformation, Optimizer):
        return transformation
    if not callable(getattr(transformation, "init", None)) or not callable(getattr(transformation, "update", None)):
        raise BadRequest(f"the optimizer is {shown(transformation)}; give one of optax, such as optax.adam(1e-3).")
    return Optimizer(transformation.init, transformation.update, None)


class Rule(NamedTuple):
    """One optimizer: its update direction, before the learning rate, and its kind of weight decay."""

    direction: Callable[..., optax.GradientTransformation]
    decay_style: str  # "coupled" or "decoupled"
    trust_ratio: bool = False  # whether direction plus decay is scaled to the parameter's norm


def make_optimizer(
    name: str,
    *,
    params: PyTree,
    total_steps: int,
    batch_size: int | None = None,
    steps_per_epoch: int | float | None = None,
    lr: float,
    base_batch: int = 0,
    schedule: str = "cosine",
    schedule_args: dict | None = None,
    warmup: int | float = 0,
    warmup_epochs: int | float = 0,
    weight_decay: float = 0.0,
    decay: str | Sequence[str] | None = r"(kernel|embedding)$",
    decay_style: Literal["coupled", "decoupled"] | None = None,
    freeze: str | Sequence[str] | None = None,
    clip_norm: float | None = None,
    lr_multipliers: Sequence[tuple[str, float]] = (),
    layer_decay: float | None = None,
    layer_blocks: str = BLOCK,
    momentum: float | None = None,
    b1: float | None = None,
    b2: float | None = None,
    eps: float | None = None,
    optimizer_args: dict | None = None,
) -> Optimizer:
    """Builds an optimizer with its schedule; a config's section `optim` holds `name` and the arguments from `lr` on.

    Args:
      name: a key of `OPTIMIZERS`.
      params: the parameters, or their shapes; only names and shapes are used.
      total_steps: updates in the whole training.
      batch_size: examples in an update; needed with `base_batch`.
      steps_per_epoch: updates in an epoch; needed with `warmup_epochs`.
      lr: highest learning rate, >= 0.
      base_batch: if not 0, `lr` is meant for this many examples and is multiplied by batch_size / base_batch
        (Goyal et al., 2017, https://arxiv.org/abs/1706.02677; MAE and others state rates for 256).
      schedule: a key of `SCHEDULES`.
      schedule_args: further keywords of that schedule, such as {"final": 0.01}.
      warmup: linear warm-up, in updates (whole number) or as a fraction of training (below 1).
      warmup_epochs: the same in epochs; at most one of the two is given.
      weight_decay: strength of the decay, >= 0.
      decay: regular expressions (`trees.mask`) of the parameters that decay; None for all.
      decay_style: "coupled" or "decoupled"; None for the optimizer's usual style, listed in `OPTIMIZERS`.
      freeze: regular expressions of the parameters that stay bit-identical; '^(?!head/)' trains only the head.
      clip_norm: largest global norm of the gradient of all parameters that are not frozen, > 0; None for any.
      lr_multipliers: pairs (regular expression, factor): the first that matches a parameter multiplies its learning
        rate, decoupled decay included.
      layer_decay: factor from the learning rate of a block to that of the one before, in (0, 1], decoupled decay
        included; None for 1. Combined with `lr_multipliers`, both factors apply. See `layer_decay.layer_factors`.
      layer_blocks: regular expression of a block's name for `layer_decay`, with a group for its number.
      momentum, b1, b2, eps: of optimizers that have them; None for the default.
      optimizer_args: further keywords of the optimizer, such as {"trust_coefficient": 0.01} for lars.

    Returns:
      The optimizer. `update` needs the parameters as third argument.

    Raises:
      BadRequest: an unknown name, an argument that the optimizer does not take, a value out of range, or a regular
        expression that matches no parameter.
    """
    rule = choose(OPTIMIZERS, name, "optimizer")
    style = choose({s: s for s in ("coupled", "decoupled")}, decay_style or rule.decay_style, "decay_style")
    direction = rule.direction(**_arguments(name, optimizer_args, momentum=momentum, b1=b1, b2=b2, eps=eps))
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise BadRequest(f"optim.weight_decay is {weight_decay}; it takes a finite number of at least 0.")
    if clip_norm is not None and not clip_norm > 0:
        raise BadRequest(f"optim.clip_norm is {clip_norm}; it takes a positive number, or None.")
    lr_schedule = schedule_of(
        total_steps=total_steps, batch_size=batch_size, steps_per_epoch=steps_per_epoch, lr=lr, base_batch=base_batch,
        schedule=schedule, schedule_args=schedule_args, warmup=warmup, warmup_epochs=warmup_epochs,
    )  # fmt: skip

    frozen = jax.tree.map(lambda _: False, params) if freeze is None else trees.mask(params, freeze)
    if all(jax.tree.leaves(frozen)):
        raise BadRequest(f"optim.freeze = {freeze!r} freezes every parameter; nothing is left to train.")

    def trained(tree: PyTree) -> PyTree:
        """Hides the entries of frozen parameters, as `optax.partition` below does in the stages."""
        return jax.tree.map(lambda f, x: optax.MaskedNode() if f else x, frozen, tree)

    stages: list[tuple[str, Any]] = []
    if clip_norm is not None:
        stages.append(("clip", optax.clip_by_global_norm(clip_norm)))
    if weight_decay:
        decayed = jax.tree.map(lambda _: True, params) if decay is None else trees.mask(params, decay)
        decayer = optax.add_decayed_weights(weight_decay, trained(decayed))
        stages += (
            [("l2", decayer), (name, direction)] if style == "coupled" else [(name, direction), ("decay", decayer)]
        )
    else:
        stages.append((name, direction))
    if rule.trust_ratio:
        stages.append(("trust_ratio", optax.scale_by_trust_ratio()))
    stages.append(("lr", optax.scale_by_learning_rate(lr_schedule)))
    if lr_multipliers:
        stages.append(("lr_multipliers", _multiply(trained(_factors(params, lr_multipliers)))))
    if layer_decay is None and layer_blocks != BLOCK:
        raise BadRequest("optim.layer_blocks is set, but optim.layer_decay, which uses it, is not.")
    if layer_decay is not None:
        stages.append(("layer_decay", _multiply(trained(layer_factors(params, layer_decay, layer_blocks)))))

    transform = optax.named_chain(*stages)
    if freeze is not None:
        labels = jax.tree.map(lambda f: "frozen" if f else "trained", frozen)
        transform = optax.partition({"trained": transform, "frozen": _stand_still()}, labels)
    return Optimizer(transform.init, transform.update, lr_schedule)


def schedule_of(
    *,
    total_steps: int,
    batch_size: int | None = None,
    steps_per_epoch: int | float | None = None,
    lr: float,
    base_batch: int = 0,
    schedule: str = "cosine",
    schedule_args: dict | None = None,
    warmup: int | float = 0,
    warmup_epochs: int | float = 0,
    **_: Any,
) -> Schedule:
    """Builds the schedule of an optimizer; see `make_optimizer`, whose other arguments it ignores."""
    if base_batch < 0 or (base_batch and not batch_size):
        raise BadRequest(f"optim.base_batch is {base_batch}; it takes a number of examples, and needs the batch size.")
    if own := {"lr", "total_steps", "warmup_steps"} & set(schedule_args or {}):
        raise BadRequest(f"optim.schedule_args.{min(own)} is not a key of a schedule: set it beside schedule_args.")
    return make_schedule(
        schedule,
        lr=lr * batch_size / base_batch if base_batch and batch_size else lr,
        total_steps=total_steps,
        warmup_steps=_warmup(warmup, warmup_epochs, steps_per_epoch, total_steps),
        **(schedule_args or {}),
    )


def ema_update(ema: PyTree, new: PyTree, decay: float, step: Any = None) -> PyTree:
    """Moves an exponential moving average towards new values: decay * ema + (1 - decay) * new.

    Args:
      ema: the average so far.
      new: the new values, of the same structure.
      decay: weight of the past, in [0, 1].
      step: number t of updates before this one (may be traced). It limits the decay to (1 + t) / (10 + t), so that the
        average soon forgets the initial values. None for no such warm-up.

    Returns:
      The average, in the dtypes of `ema`. Leaves that are not floating-point (counters, keys) are copied from `new`.

    Reference:
      Polyak and Juditsky, 1992; the warm-up is that of tf.train.ExponentialMovingAverage.
    """
    weight = 1.0 - (decay if step is None else jnp.minimum(decay, (1.0 + step) / (10.0 + step)))

    def move(e: Any, x: Any) -> Any:
        if not jnp.issubdtype(e.dtype, jnp.inexact):
            return x
        return (e + weight * (x - e)).astype(e.dtype)  # in this form equal values stay equal to the bit

    return jax.tree.map(move, ema, new)


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


def _arguments(name: str, optimizer_args: dict | None, **common: float | None) -> dict[str, Any]:
    """Collects the arguments of optimizer `name`; raises `BadRequest` if it does not take one of them."""
    given = {**{k: v for k, v in common.items() if v is not None}, **(optimizer_args or {})}
    direction = OPTIMIZERS[name].direction
    takes = keywords(direction)
    for key in given:
        if key not in takes:
            raise BadRequest(f"the optimizer {name!r} takes no {key!r}; it takes {', '.join(takes) or 'no arguments'}.")
    check_kwargs(direction, given, "optim")
    for key in {"momentum", "b1", "b2"} & set(given):
        if given[key] is not None and not 0 <= given[key] < 1:
            raise BadRequest(f"optim.{key} is {given[key]}; it takes a number from 0 to below 1.")
    if given.get("eps", 0) < 0:
        raise BadRequest(f"optim.eps is {given['eps']}; it takes a number of at least 0.")
    return given


def _warmup(warmup: int | float, epochs: int | float, steps_per_epoch: int | float | None, total_steps: int) -> int:
    if not epochs:
        return in_steps(warmup, total_steps, "optim.warmup")
    if warmup:
        raise BadRequest(f"optim.warmup = {warmup} and optim.warmup_epochs = {epochs} are both set; give only one.")
    if not (epochs > 0 and steps_per_epoch):
        raise BadRequest(f"optim.warmup_epochs is {epochs}; it takes a positive number, and needs the epoch's length.")
    return in_steps(round(epochs * steps_per_epoch), total_steps, "optim.warmup_epochs")


def _factors(params: PyTree, lr_multipliers: Sequence[tuple[str, float]]) -> PyTree[float]:
    """Returns the learning-rate factor of every parameter: of the first pattern that matches, else 1."""
    factors = jax.tree.map(lambda _: 1.0, params)
    for pattern, factor in reversed(lr_multipliers):
        if not (math.isfinite(factor) and factor >= 0):
            raise BadRequest(f"optim.lr_multipliers has {factor} for {pattern!r}; it takes numbers of at least 0.")
        factors = jax.tree.map(
            lambda yes, f, new=factor: float(new) if yes else f, trees.mask(params, pattern), factors
        )
    return factors


def _multiply(factors: PyTree) -> optax.GradientTransformation:
    """Multiplies every update by its factor, in the update's own dtype."""
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: (u * f).astype(u.dtype), updates, factors))


def _stand_still() -> optax.GradientTransformation:
    """Updates of -0.0: adding them leaves every number bit-identical, while adding +0.0 would change -0.0.

    If the sum is compiled separately, devices that flush denormal numbers to 0 still do so.
    """
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u: jnp.full_like(u, -0.0), updates))
