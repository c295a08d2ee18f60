"""How loops over samples are compiled: when first called, and kept on disk.

Numba keeps machine code in ``NUMBA_CACHE_DIR``, else beside the source, else in the user's cache
folder. Where none can be written to, every process compiles for itself, in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Return `function` compiled; sums of integers are 64 bits wide, arrays keep their type."""
    return _compiled(function, fastmath=False)


def compiled_loosely(function: Function) -> Function:
    """Return `function` compiled; sums of fractions are taken in any order.

    For what only chooses: no bit that has to be found again may depend on it.
    """
    return _compiled(function, fastmath={"reassoc", "contract"})


def _compiled(function: Function, *, fastmath: bool | set[str]) -> Function:
    try:
        return cast(Function, njit(cache=True, nogil=True, fastmath=fastmath)(function))
    except RuntimeError:
        # Numba found no folder that it may write to.
        return cast(Function, njit(nogil=True, fastmath=fastmath)(function))
