"""Operations in forms that are fast on CPUs; `recvis_jax.operations` says what they compute, and works without them.

`FORMS` has a form for each name of an operation. A form takes the plain operation and then its arguments, and decides
by shapes and types whether it is worth it; where it is not, on accelerators, and with a version of JAX that it was not
tested with (`recvis_jax.tried`), the plain operation is what runs.
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
    """Returns the operation `plain` with its form of `FORMS`, which is found by name; a decorator."""
    form = FORMS[plain.__name__]

    @functools.wraps(plain)
    def operation(*args: Any, **kw: Any) -> Any:
        return form(plain, *args, **kw) if tried.usable("forms") else plain(*args, **kw)

    return operation  # type: ignore[return-value]
