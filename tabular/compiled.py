"""One decorator for numba kernels: cached on disk where some folder can be written, compiled anew where none can."""

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """``numba.njit`` that releases the interpreter lock, divides like numpy, and caches where it can.

    Parameters
    ----------
    function : callable, optional
        Left out where options are given: ``@compiled(fastmath={"contract"})``.
    options
        Of numba.njit.
    """
    if function is None:
        return lambda kernel: compiled(kernel, **options)
    settings = {"nogil": True, "error_model": "numpy", **options}
    try:
        return njit(cache=True, **settings)(function)
    except RuntimeError:  # numba found no folder that it may write
        return njit(**settings)(function)
