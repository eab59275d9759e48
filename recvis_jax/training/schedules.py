"""Learning-rate schedules: functions of the number of updates already made, built from those of optax.

Update t = 0, 1, ..., total_steps - 1 uses the learning rate `schedule(t)`. With a warm-up of W updates the rate rises
linearly, lr (t + 1) / W for t < W: the first update is not wasted on a rate of zero, and update W - 1 is the first
with the full rate. The schedule's own curve starts at t = W from the full rate. It would reach its final value at
t = total_steps, one update after the last.

A length of time is given in updates (a whole number) or as a fraction of `total_steps` (a float below 1).
"""

import math
import numbers
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from recvis_jax.errors import BadRequest, check_kwargs, choose

Schedule = Callable[[Any], Any]  # number of updates made (int, scalar array) -> learning rate


def make_schedule(name: str, *, lr: float, total_steps: int, warmup_steps: int | float = 0, **kwargs: Any) -> Schedule:
    """Builds the learning-rate schedule called `name`.

    Args:
      name: a key of `SCHEDULES`.
      lr: the highest learning rate, >= 0.
      total_steps: updates in the whole training, warm-up included, >= 1.
      warmup_steps: length of the linear warm-up, in updates or as a fraction of training; 0 for none.
      **kwargs: keyword arguments of the function in `SCHEDULES`.

    Returns:
      A function from the number of updates already made to the learning rate; may be traced.

    Raises:
      BadRequest: an unknown name or keyword, or a value out of range, such as a warm-up longer than training.
    """
    make = choose(SCHEDULES, name, "schedule")
    if isinstance(total_steps, bool) or not isinstance(total_steps, numbers.Integral) or total_steps < 1:
        raise BadRequest(f"total_steps is {total_steps!r}; it takes a whole number of at least 1.")
    if not (math.isfinite(lr) and lr >= 0):
        raise BadRequest(f"lr is {lr!r}; it takes a finite number of at least 0.")
    warmup = in_steps(warmup_steps, total_steps, "warmup")
    if name == "one_cycle" and warmup:
        raise BadRequest("the schedule 'one_cycle' has its own warm-up: set schedule_args.peak, and warmup to 0.")
    check_kwargs(make, kwargs, "schedule_args")
    curve = make(lr, total_steps, warmup, **kwargs)
    if not warmup:
        return curve
    return optax.join_schedules([optax.linear_schedule(lr / warmup, lr, max(1, warmup - 1)), curve], [warmup])


def in_steps(time: int | float, total_steps: int, what: str) -> int:
    """Converts a length of time to updates: whole numbers are updates, floats below 1 are fractions of training.

    Raises:
      BadRequest: the time is negative, longer than training, or ambiguous: 1.0, or a larger float that is not whole.
    """
    if not (math.isfinite(time) and time >= 0):
        raise BadRequest(f"{what} is {time!r}; it takes a number of updates or a fraction of training, at least 0.")
    if isinstance(time, float) and (time == 1.0 or (time > 1 and time % 1)):
        raise BadRequest(f"{what} is {time!r}; it takes a whole number of updates, or a fraction of training below 1.")
    steps = math.floor(time * total_steps + 0.5) if time < 1 else int(time)
    if steps > total_steps:
        raise BadRequest(f"{what} is {steps} updates, longer than the whole training of {total_steps}.")
    return steps


def constant(lr: float, total_steps: int, warmup: int, /, *, cooldown: int | float = 0) -> Schedule:
    """Keeps `lr`; falls linearly to 0 over the last `cooldown` (updates or fraction of training)."""
    return _with_cooldown(optax.constant_schedule(lr), total_steps, warmup, cooldown)


def step(
    lr: float,
    total_steps: int,
    warmup: int,
    /,
    *,
    boundaries: tuple[int | float, ...] = (0.5, 0.75),
    factor: float = 0.1,
) -> Schedule:
    """Multiplies the rate by `factor` at each boundary (updates or fractions of training, counted from its start).

    Reference:
      The defaults are those of He et al., 2016, section 4.2: divided by 10 after 32k and 48k of 64k updates.
    """
    if factor < 0:
        raise BadRequest(f"schedule_args.factor is {factor}; it takes a number of at least 0.")
    at = [in_steps(b, total_steps, "a boundary of the schedule") for b in boundaries]
    if any(b < warmup for b in at):
        raise BadRequest(f"the boundaries {at} (in updates) do not all lie after the warm-up of {warmup}.")
    # In a very short run, several fractions may round to the same update.
    return optax.piecewise_constant_schedule(lr, {b - warmup: factor ** at.count(b) for b in at})


def cosine(lr: float, total_steps: int, warmup: int, /, *, final: float = 0.0) -> Schedule:
    """Falls along half a cosine from `lr` to `final` * `lr`.

    Reference:
      Loshchilov and Hutter, 2017, https://arxiv.org/abs/1608.03983 (without restarts).
    """
    _check_fraction("final", final)
    return optax.cosine_decay_schedule(lr, max(1, total_steps - warmup), alpha=final)


def linear(lr: float, total_steps: int, warmup: int, /, *, final: float = 0.0) -> Schedule:
    """Falls linearly from `lr` to `final` * `lr`."""
    _check_fraction("final", final)
    return optax.linear_schedule(lr, final * lr, max(1, total_steps - warmup))


def rsqrt(
    lr: float, total_steps: int, warmup: int, /, *, timescale: int = 10_000, cooldown: int | float = 0
) -> Schedule:
    """Falls as lr / sqrt(1 + (t - warmup) / timescale), and linearly to 0 over the last `cooldown`.

    The part before the cool-down does not depend on the length of training, so one run serves several lengths.

    Reference:
      Zhai et al., 2022, https://arxiv.org/abs/2106.04560, section 3.5; `timescale` in updates.
    """
    if timescale <= 0:
        raise BadRequest(f"schedule_args.timescale is {timescale}; it takes a positive number of updates.")

    def curve(t: Any) -> Any:
        return lr / jnp.sqrt(1 + jnp.maximum(t, 0) / timescale)  # during warm-up t < 0 is evaluated, then discarded

    return _with_cooldown(curve, total_steps, warmup, cooldown)


def one_cycle(
    lr: float,
    total_steps: int,
    warmup: int,
    /,
    *,
    peak: int | float = 0.3,
    start: float = 0.04,
    final: float = 0.0,
    shape: str = "linear",
) -> Schedule:
    """Rises from `start` * `lr` to `lr` at `peak` (updates or fraction of training) and falls to `final` * `lr`.

    Args:
      lr: the rate at the peak.
      total_steps: updates in the whole training.
      warmup: always 0, the rise is the warm-up.
      peak: when the rate is highest.
      start: fraction of `lr` at the first update.
      final: fraction of `lr` at the end.
      shape: of both parts, 'linear' (a triangle) or 'cosine'.

    Returns:
      The schedule.

    Reference:
      Smith and Topin, 2018, https://arxiv.org/abs/1708.07120.
    """
    del warmup
    _check_fraction("start", start)
    _check_fraction("final", final)
    top = in_steps(peak, total_steps, "schedule_args.peak")
    rise, fall = max(1, top), max(1, total_steps - top)
    if choose({"linear": True, "cosine": False}, shape, "shape of one_cycle"):
        up, down = optax.linear_schedule(start * lr, lr, rise), optax.linear_schedule(lr, final * lr, fall)
    else:
        gap = optax.cosine_decay_schedule((1 - start) * lr, rise)
        up, down = (lambda t: lr - gap(t)), optax.cosine_decay_schedule(lr, fall, alpha=final)
    return optax.join_schedules([up, down], [top])


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "step": step,
    "cosine": cosine,
    "linear": linear,
    "rsqrt": rsqrt,
    "one_cycle": one_cycle,
}


def _with_cooldown(curve: Schedule, total_steps: int, warmup: int, cooldown: int | float) -> Schedule:
    length = in_steps(cooldown, total_steps, "schedule_args.cooldown")
    if length + warmup > total_steps:
        raise BadRequest(
            f"warm-up ({warmup}) and cool-down ({length}) are longer than training ({total_steps} updates)."
        )
    if not length:
        return curve
    fade = optax.linear_schedule(1.0, 0.0, length, transition_begin=total_steps - warmup - length)
    return lambda t: curve(t) * fade(t)


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise BadRequest(f"schedule_args.{name} is {value}; it is a fraction of lr, between 0 and 1.")
