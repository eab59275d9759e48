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
from recvis_jax.training.optimizers import OPTIMIZERS
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


def held(optimizer: Optimizer, params: PyTree, freeze: str | Sequence[str]) -> Optimizer:
    """Returns the optimizer, which then leaves some parameters bit-identical.

    Args:
      optimizer: of any kind, as from `of_optax`.
      params: the parameters, or their shapes.
      freeze: regular expressions (`trees.mask`) of the parameters that stay.

    Raises:
      BadRequest: nothing is left to train, or an expression matches no parameter.

    Example:
      >>> tx = held(of_optax(optax.sgd(1.0)), {"a": 1.0, "b": 1.0}, "a")
      >>> grads = {"a": 2.0, "b": 2.0}
      >>> {k: float(u) for k, u in tx.update(grads, tx.init(grads), grads)[0].items()}
      {'a': -0.0, 'b': -2.0}
    """
    frozen = _mask_of(params, freeze)
    labels = jax.tree.map(lambda f: "frozen" if f else "trained", frozen)
    inner = optax.GradientTransformation(optimizer.init, optimizer.update)
    transform = optax.partition({"trained": inner, "frozen": _stand_still()}, labels)
    return Optimizer(transform.init, transform.update, optimizer.schedule)


def _mask_of(params: PyTree, freeze: str | Sequence[str] | None) -> PyTree:
    """Returns whether each parameter is frozen, and refuses to freeze all."""
    frozen = jax.tree.map(lambda _: False, params) if freeze is None else trees.mask(params, freeze)
    if all(jax.tree.leaves(frozen)):
        raise BadRequest(f"optim.freeze = {freeze!r} freezes every parameter; nothing is left to train.")
    return frozen


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

    frozen = _mask_of(params, freeze)

    def trained(tree: PyTree) -> PyTree:
        """Hides the entries of frozen parameters, as `held` does in the stages."""
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
    whole = Optimizer(transform.init, transform.update, lr_schedule)
    return whole if freeze is None else held(whole, params, freeze)


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
        raise BadRequest(f"optim.warmup = {warmup} and optim.warmup_epochs = {epochs} are both set; give one.")
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
