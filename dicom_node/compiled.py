"""How loops over samples are compiled: when first called, and kept on disk.

Machine code is kept in ``NUMBA_CACHE_DIR``, else beside the sources, else in the user's cache
folder, below a name that changes with every source of a compiled loop: numba itself looks at time
and size of one file, and would run old code of a function that another file brings. Processes that
compile at the same time do not disturb each other. Where nothing can be written, every process
compiles for itself, about ten seconds before its first frame.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])

_SOURCES = ("inference", "instance", "watermark")


def compiled(function: Function) -> Function:
    """Return `function` compiled; sums of integers are 64 bits wide, arrays keep their type."""
    return _compiled(function, fastmath=False)


def compiled_loosely(function: Function) -> Function:
    """Return `function` compiled; sums of fractions are taken in any order.

    For what only chooses: no bit that has to be found again may depend on it.
    """
    return _compiled(function, fastmath={"reassoc", "contract"})


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let one process at a time compile: those that waited find its code (a lock file beside it).

    For what compiles everything at once; where nothing can be kept, nobody waits.
    """
    if _kept_in is None:
        yield
        return
    handle = os.open(_kept_in / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _compiled(function: Function, *, fastmath: bool | set[str]) -> Function:
    keep = _kept_in is not None
    return cast(Function, njit(cache=keep, nogil=True, fastmath=fastmath)(function))


def _leave_out_blas() -> None:
    """Load numba without scipy's BLAS: no loop calls it, and it takes 0.15 s of every process."""
    if "scipy.linalg" in sys.modules:
        return
    sys.modules["scipy.linalg"] = cast(Any, None)  # numba goes on without what cannot be imported
    try:
        importlib.import_module("numba.np.arraymath")
    finally:
        del sys.modules["scipy.linalg"]


def _sources_digest() -> str:
    package = Path(__file__).parent
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(p for name in _SOURCES for p in (package / name).rglob("*.py")):
        source = path.read_bytes()
        if b"compiled" in source:
            digest.update(path.name.encode() + source)
    return digest.hexdigest()[:16]


def _folder() -> Path | None:
    """Return the folder for this version's machine code; None if none can be written to."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    cache_home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    beside = Path(__file__).parent / "__pycache__"
    places = [Path(chosen)] if chosen else [beside, Path(cache_home, "dicom-node")]
    name = f"compiled-{_sources_digest()}"
    for place in places:
        try:
            folder = place.expanduser() / name
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError):  # not writable; no home
            continue
        if os.access(folder, os.W_OK):
            return folder
    warnings.warn(
        f"compiled code cannot be kept in {' or '.join(map(str, places))}: "
        "set NUMBA_CACHE_DIR to a folder that may be written to",
        RuntimeWarning,
        stacklevel=1,
    )
    return None


_leave_out_blas()
_kept_in = _folder()
if _kept_in is not None:
    setattr(numba.config, "CACHE_DIR", str(_kept_in))  # noqa: B010 - absent from numba's types
