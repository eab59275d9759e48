"""The arithmetic of a model and of its train step, counted in the traced programs before compilation.

Both numbers count matrix products and convolutions, with two operations per multiplication:

- the model: three times its forward pass in training, once for the outputs and twice for the gradients with respect to
  activations and parameters. This is the numerator of "model FLOPs utilisation" (Chowdhery et al. 2022, "PaLM",
  appendix B); recomputation to save memory is not counted. A masked autoencoder's forward pass in training sees only
  the visible patches.
- the step: every product in its traced program. This includes recomputation by `remat`, and counts micro-batches and
  scanned blocks as often as they run. It excludes gradients that are not needed (of the first layer's input and of
  frozen layers), and products with a convolution's padding or with the holes in the gradient of a strided one.
"""

from collections.abc import Callable
from typing import Any

import jax

from recvis_jax.planning.cost import valid_taps
from recvis_jax.vis import structure


def model_flops(task: Any, template: Any, batch: Any) -> int:
    """Returns three times the arithmetic of the forward pass in training over a batch.

    Args:
      task: has the function `loss` (params, model_state, batch, key).
      template: a state, of arrays or of their shapes.
      batch: shapes of an augmented batch.
    """
    program = jax.make_jaxpr(task.loss)(template.params, template.model_state, batch, jax.random.key(0))
    return 3 * 2 * count(program.jaxpr, structure.macs_of)


def step_flops(traced: Any) -> int:
    """Returns the arithmetic of a whole step over all devices, from the result of `step.trace(state, batch)`."""
    return 2 * count(traced.jaxpr.jaxpr, macs_that_matter)


def count(program: Any, macs: Callable[[Any], int]) -> int:
    """Returns the multiplications of a program (a jaxpr); loops count once per iteration.

    Args:
      program: has equations `eqns`.
      macs: counts the multiplications of one equation.
    """
    total = 0
    for e in program.eqns:
        values = [v for value in e.params.values() for v in (value if isinstance(value, (tuple, list)) else [value])]
        inner = [p for p in map(_open, values) if p is not None]
        if not inner:
            total += macs(e)
        elif (default := structure.default_branch(e)) is not None:
            total += count(default.jaxpr, macs)
        elif e.primitive.name == "cond":
            total += max(count(p, macs) for p in inner)
        elif e.primitive.name in ("custom_jvp_call", "custom_vjp_call"):
            total += count(inner[0], macs)
        else:
            times = e.params["length"] if e.primitive.name == "scan" else 1
            total += times * sum(count(p, macs) for p in inner)
    return total


def macs_that_matter(e: Any) -> int:
    """Returns the multiplications of one equation; for a convolution, only those with a pixel of the image."""
    if e.primitive.name != "conv_general_dilated":
        return structure.macs_of(e)
    p, (image, kernel), output = e.params, (v.aval.shape for v in e.invars), e.outvars[0].aval.shape
    numbers = p["dimension_numbers"]
    taps = 1
    for axis, of_image in enumerate(numbers.lhs_spec[2:]):
        sizes = image[of_image], kernel[numbers.rhs_spec[2 + axis]], output[numbers.out_spec[2 + axis]]
        stride, holes, spread = (p[k][axis] for k in ("window_strides", "lhs_dilation", "rhs_dilation"))
        taps *= valid_taps(*sizes, p["padding"][axis][0], stride, holes, spread)
    batch, channels = (image[d] for d in numbers.lhs_spec[:2])
    per_group = channels // p["feature_group_count"] * (batch // p["batch_group_count"])
    return taps * per_group * kernel[numbers.rhs_spec[0]]


def _open(value: Any) -> Any:
    """Returns the program in an equation's parameter, or None if it holds none."""
    value = getattr(value, "jaxpr", value)
    return value if hasattr(value, "eqns") else None
