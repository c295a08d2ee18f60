"""The lease of the job in hand: renewed while it is marked, and its process ended if it hangs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from dicom_node.errors import SpoolError
from dicom_node.spool import Job, Spool

_log = structlog.get_logger(__name__)

LEASE_S = 120.0
HANG_S = 600.0
HANG_S_PER_MIB = 2.0
_BEATS = 6  # a lease is renewed after a third of it, at the latest
_MIB = 1 << 20


class Heartbeat:
    """Renews a job's lease while it is marked; ends a process that does not come back from it.

    A codec that holds the interpreter holds this thread up as well: `codecs.limit` sees to those.
    One thread for all jobs of a worker, started with the first: to start one takes longer than the
    journal does.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._lock = threading.Lock()
        self._job: Job | None = None
        self._out = Path()
        self._began = 0.0
        self._thread: threading.Thread | None = None

    @contextmanager
    def of(self, job: Job, out: Path) -> Iterator[None]:
        """Look after `job` in the meantime; `out` is the file it is written to."""
        with self._lock:
            self._job, self._out, self._began = job, out, time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._job = None

    def _beat(self) -> None:
        while True:
            time.sleep(LEASE_S / _BEATS)
            # Held while renewing, so that no job is renewed that has just been finished.
            with self._lock:
                job, for_s = self._job, time.monotonic() - self._began
                if job is None or for_s < LEASE_S / _BEATS:
                    continue
                if for_s > self._longest_s(job):
                    _log.error("marking_hangs", job=job.id, after_s=round(for_s))
                    os._exit(os.EX_SOFTWARE)
                self._renew(job)

    def _longest_s(self, job: Job) -> float:
        """Return how long it may take; what was compressed grows while it is written."""
        try:
            written = self._out.stat().st_size
        except OSError:
            written = 0
        return HANG_S + HANG_S_PER_MIB * max(job.size, written) / _MIB

    def _renew(self, job: Job) -> None:
        try:
            self._spool.renew(job, lease_s=LEASE_S)
        except SpoolError as error:
            # finish() will notice a lost lease; a busy journal is tried again.
            _log.warning("lease_not_renewed", job=job.id, reason=str(error))
