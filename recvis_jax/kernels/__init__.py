"""Forms of operations that are fast on CPUs. `recvis_jax.operations` defines the operations, and works without them.

`FORMS` maps the name of an operation to its form. A form takes the plain operation and its arguments, and decides from
shapes and types whether it is faster. If not, on accelerators, and with a version of JAX that it was not tested with
(`recvis_jax.tried`), the plain operation runs.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from recvis_jax import tried
from recvis_jax.kernels import attention, blocks, convolutions, layer_norm, pool, products

FORMS: dict[str, Callable[..., Any]] = {
    "attention": attention.attention,
    "convolve": convolutions.convolve,
    "convolve_and_pool": convolutions.convolve_and_pool,
    "dot_rows": products.dot_rows,
    "layer_norm": layer_norm.layer_norm,
    "max_pool": pool.max_pool,
    "softmax": blocks.softmax,
}

_Function = TypeVar("_Function", bound=Callable[..., Any])


def fast(plain: _Function) -> _Function:
    """Decorates the operation `plain` with its form in `FORMS`, found by name."""
    form = FORMS[plain.__name__]

    @functools.wraps(plain)
    def operation(*args: Any, **kw: Any) -> Any:
        return form(plain, *args, **kw) if tried.usable("forms") else plain(*args, **kw)

    return operation  # type: ignore[return-value]
