"""Disk kept back for the moment there is none left, so that work can go on that makes room.

Delivering an instance frees its files, but only once the journal has recorded the delivery, and
that needs blocks. On a disk filled to the last one nothing would ever move again. So the spool
holds a file of allocated, unused blocks; whoever finds the disk full removes it and tries again.
Until it can be allocated again new instances are refused, and what it left is for the journal
first: a job is marked only if its result leaves `JOURNAL_ROOM_MIB` free.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import structlog

from dicom_node.errors import SpoolFull
from dicom_node.spool.files import free_bytes, translated

_log = structlog.get_logger(__name__)
_MIB = 1 << 20

JOURNAL_ROOM_MIB = 5
"""Measured: the write-ahead log grows to 4.0 MiB before a checkpoint ends it, and marking and
delivering 5,000 jobs adds 1.5 MiB to the database."""
RESERVE_MIB = 8
"""The journal's room, and a result of up to 3 MiB: three CT slices, one small radiograph."""
FULL_TIMEOUT_S = 30.0
_PAUSE_S = 0.1


class Reserve:
    """The file that is given up when the disk is full (``journal.reserve``)."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._path = root / "journal.reserve"

    @property
    def kept(self) -> bool:
        """Whether it is there now."""
        try:
            os.stat(self._path)  # noqa: PTH116 - asked for every claim; a Path costs three times more
        except FileNotFoundError:
            return False
        return True

    def keep(self, scratch: Path) -> bool:
        """Allocate it if it is missing and as much again stays free; return whether it is there.

        It is made in `scratch`, which is swept if this process dies here.
        """
        if self.kept:
            return True
        if free_bytes(self._root) < 2 * RESERVE_MIB * _MIB:
            return False
        new = scratch / "reserve"
        try:
            with translated(new):
                handle = os.open(new, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
                try:
                    os.posix_fallocate(handle, 0, RESERVE_MIB * _MIB)
                finally:
                    os.close(handle)
                new.rename(self._path)
        except SpoolFull:
            new.unlink(missing_ok=True)
            return False
        _log.info("reserve_allocated", mib=RESERVE_MIB, path=str(self._path))
        return True

    def give_up(self) -> bool:
        """Remove it; return False if it was gone already."""
        with translated(self._path), contextlib.suppress(FileNotFoundError):
            self._path.unlink()
            _log.error(
                "reserve_given_up",
                path=str(self._path),
                reason="the spool's disk is full; new instances are refused until there is room",
            )
            return True
        return False

    @property
    def needed(self) -> bool:
        """Whether less is free than it would give."""
        return free_bytes(self._root) < RESERVE_MIB * _MIB

    def room_for_results(self) -> int:
        """Return how many bytes results may take before they take what the journal may need."""
        return free_bytes(self._root) - JOURNAL_ROOM_MIB * _MIB


class HasReserve(Protocol):
    """What `on_a_full_disk` needs."""

    _reserve: Reserve


_Step = TypeVar("_Step", bound=Callable[..., Any])


def on_a_full_disk(step: _Step) -> _Step:
    """Let a step of the journal, which happens whole or not at all, have the reserve.

    It is tried again for `FULL_TIMEOUT_S`, as for a busy journal: somebody's unfinished result,
    which goes away again, may be all that is in the way. Then `SpoolFull` is raised.
    """

    @functools.wraps(step)
    def with_reserve(self: HasReserve, *args: Any, **more: Any) -> Any:
        ends_at = time.monotonic() + FULL_TIMEOUT_S
        while True:
            try:
                return step(self, *args, **more)
            except SpoolFull:
                if not self._reserve.give_up():
                    if time.monotonic() > ends_at:
                        raise
                    time.sleep(_PAUSE_S)

    return cast(_Step, with_reserve)
