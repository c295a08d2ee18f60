"""One job from received to marked: what a mark worker does until it is told to stop.

Claim, mark, hand the result to the spool. Everything that can go wrong ends in one of three ways:
the job is *held* with its reason (the instance's fault), it is *retried* later (our fault: memory,
disk, keys), or the process ends and the spool gives the job to the next one, at most three times.
"""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import structlog

from dicom_node.config import Config
from dicom_node.errors import (
    DecoderLost,
    EngineError,
    KeyRingError,
    LeaseLost,
    NodeError,
    ReferencesPending,
    SpoolError,
    SpoolFull,
)
from dicom_node.heartbeat import LEASE_S, Heartbeat
from dicom_node.logging import describe
from dicom_node.spool import Job, Spool
from dicom_node.spool.files import dataset_digest
from dicom_node.supervisor import StopEvent

# Decoders and networks are loaded only by a worker that marks.
if TYPE_CHECKING:
    from dicom_node.keys import KeyRing
    from dicom_node.marking import MarkOutcome
    from dicom_node.naming import Names

_log = structlog.get_logger(__name__)

IDLE_S = 1.0
RETRY_INITIAL_S = 2.0
RETRY_MAX_S = 300.0
# Room comes with the next delivery, not with time.
RETRY_FULL_S = 15.0
MEMORY_ATTEMPTS = 5
DECODER_ATTEMPTS = 5
RECYCLE_MIB = 600
_MIB = 1 << 20


class Marking(Protocol):
    """What the pipeline needs of a `Marker`."""

    def mark(
        self, source: Path, out: Path, *, marked_at: datetime, released: bool = False
    ) -> MarkOutcome:
        """Mark one instance."""


class MarkWorker:
    """Takes jobs one at a time and marks them.

    Parameters
    ----------
    spool
        Where jobs come from and results go.
    marker_for
        Gives the marker that signs with a key id (None: the current key). None as a whole when
        marking is off: instances are forwarded as received.
    current_key_id
        What a fresh marking is signed with.
    destinations
        Names of all destinations.
    otherwise
        Gives another marker: tried on an instance that comes out otherwise than the first time.
    """

    def __init__(
        self,
        spool: Spool,
        marker_for: Callable[[bytes | None], Marking] | None,
        *,
        current_key_id: bytes | None,
        destinations: Sequence[str],
        otherwise: Callable[[bytes | None], Marking] | None = None,
    ) -> None:
        self._spool = spool
        self._otherwise = otherwise
        self._marker_for = marker_for
        self._key_id = current_key_id
        self._destinations = tuple(destinations)
        self._began_s = 0.0
        self._heartbeat = Heartbeat(spool)

    def run(self, stop: StopEvent) -> None:
        """Mark until told to stop, or until this process has grown too large to keep."""
        while not stop.is_set():
            if not self.step():
                self._spool.wait_for_job(IDLE_S)
            elif resident_mib() > RECYCLE_MIB:
                _log.info("mark_worker_recycled", resident_mib=resident_mib())
                return

    def step(self) -> bool:
        """Take one job to its next state; return False if there was none."""
        self._began_s = time.thread_time()
        job = self._spool.claim(lease_s=LEASE_S, writes=self._marker_for is not None)
        if job is None:
            return False
        out = self._spool.work_path(job)
        try:
            with self._heartbeat.of(job, out):
                self._handle(job, out)
        except LeaseLost as error:
            _log.warning("result_thrown_away", job=job.id, reason=str(error))
        finally:
            out.unlink(missing_ok=True)
        return True

    def _handle(self, job: Job, out: Path) -> None:
        """Mark one job; every failure but a lost lease becomes a state with a reason."""
        try:
            if self._marker_for is None:
                self._spool.finish(job, None, action="untouched", deliver_to=self._destinations)
                return
            marker = self._marker_for(job.key_id)
            assert job.marked_at is not None, "claimed jobs have a time"
            marked_at = datetime.fromtimestamp(job.marked_at, UTC)
            # What an administrator released is not held by the same rule again.
            let_go: dict[str, bool] = {"released": True} if job.released else {}
            outcome = marker.mark(job.path, out, marked_at=marked_at, **let_go)
            if self._otherwise is not None and not self._is_as_before(job, outcome, out):
                out.unlink()
                own = self._otherwise(job.key_id)
                outcome = own.mark(job.path, out, marked_at=marked_at, **let_go)
            self._settle(job, outcome, out)
        except LeaseLost:
            raise
        except ReferencesPending as error:
            self._spool.postpone(job, str(error), time.time() + error.retry_in_s)
        except MemoryError:
            self._retry(job, "not enough memory to mark it", limit=MEMORY_ATTEMPTS)
        except DecoderLost as error:
            self._retry(job, str(error), limit=DECODER_ATTEMPTS)
        except (SpoolError, EngineError, KeyRingError, OSError) as error:
            if isinstance(error, FileNotFoundError) and not job.path.exists():
                self._hold(job, "received file is missing")
            elif not is_full(error):
                self._retry(job, describe(error))
            elif self._spool.make_room():
                self._spool.unclaim(job)
            else:
                self._retry(job, describe(error), longest_s=RETRY_FULL_S)
        except NodeError as error:
            self._hold(job, str(error))
        except Exception as error:  # noqa: BLE001 - a fault of ours must not stop the queue
            _log.exception("marking_failed", job=job.id)
            self._hold(job, f"fault in the node: {describe(error)}")

    def _is_as_before(self, job: Job, outcome: MarkOutcome, out: Path) -> bool:
        """Whether a repeat gives the bytes that were delivered; true of what is no repeat."""
        first = self._spool.job(job.repeat_of) if job.repeat_of is not None else None
        if first is None or first.action != "marked" or outcome.action != "marked":
            return True
        with out.open("rb") as result:
            return dataset_digest(result.fileno())[1] == first.result_digest

    def _settle(self, job: Job, outcome: MarkOutcome, out: Path) -> None:
        if outcome.action == "held":
            self._hold(job, outcome.reason)
            return
        if outcome.action == "rejected":
            _log.warning("instance_rejected", job=job.id, reason=outcome.reason)
            self._spool.reject(job, outcome.reason)
            return
        # What is passed on unchanged is already in the spool, as received.
        written = outcome.action != "untouched" and out.exists()
        same = self._spool.finish(
            job,
            out if written else None,
            action=outcome.action,
            reason=outcome.reason,
            deliver_to=self._destinations,
            key_id=(job.key_id or self._key_id) if outcome.action != "untouched" else None,
            transfer_syntax_uid=outcome.transfer_syntax_uid if written else None,
            sop_instance_uid=outcome.sop_instance_uid if written else "",
            study_instance_uid=outcome.study_instance_uid,
            series_instance_uid=outcome.series_instance_uid,
            facts=outcome.facts,
        )
        _log.info(
            outcome.action,
            job=job.id,
            reason=outcome.reason,
            frames=outcome.frames,
            psnr_db=outcome.psnr_db,
            max_change=outcome.max_change,
            stage_s=self._with_the_rest(outcome.stage_s),
            waited_s=round(time.time() - job.received_at, 3),
        )
        if not same:
            _log.warning("repeat_held", job=job.id, repeat_of=job.repeat_of)

    def _with_the_rest(self, stage_s: dict[str, float]) -> dict[str, float]:
        """Add what no stage counted (files, header, journal, given up attempts): CPU seconds."""
        spent_s = time.thread_time() - self._began_s
        return {**stage_s, "other": max(0.0, spent_s - sum(stage_s.values()))}

    def _hold(self, job: Job, reason: str) -> None:
        _log.warning("instance_held", job=job.id, reason=reason)
        self._spool.hold(job, reason)

    def _retry(
        self, job: Job, reason: str, limit: int | None = None, longest_s: float = RETRY_MAX_S
    ) -> None:
        if limit is not None and job.attempts >= limit:
            self._hold(job, f"{reason}, {job.attempts} times")
            return
        delay_s = min(longest_s, retry_delay_s(job.attempts))
        _log.warning("marking_retried", job=job.id, reason=reason, delay_s=round(delay_s, 1))
        self._spool.retry(job, reason, time.time() + delay_s)


def run_marker(
    config: Config, stop: StopEvent, on_ready: Callable[[], None] = lambda: None, *,
    index: int = 0, inference: int = 0,
) -> None:  # fmt: skip
    """Be a mark worker process: open the keys and the networks once, then mark until `stop`.

    `on_ready` is called when it has them and has marked a picture of its own: on a new machine the
    loops over samples are compiled then.

    Parameters
    ----------
    index, inference
        Which worker this is, from 0, and how many inference processes there are to ask.

    Raises
    ------
    KeyRingError, EngineError, SpoolError, WatermarkError
        When it cannot start.
    """
    destinations = [destination.name for destination in config.destination]
    with Spool(config.spool) as spool:
        if not config.watermark.enabled:
            worker = MarkWorker(spool, None, current_key_id=None, destinations=destinations)
        else:
            from dicom_node.keys import KeyRing
            from dicom_node.markers import Markers

            ring = KeyRing.open(config.keys.directory)
            names = names_of(config, ring, spool)
            markers = Markers(config, ring, names, index=index, inference=inference)
            worker = MarkWorker(
                spool,
                markers,
                current_key_id=ring.current.key_id,
                destinations=destinations,
                otherwise=markers.on_our_own if inference else None,
            )
        on_ready()
        worker.run(stop)


def names_of(config: Config, ring: KeyRing, spool: Spool) -> Names | None:
    """Return who says under which UIDs instances are sent; None where none has a new one."""
    from dicom_node.naming import JournalNames

    watermark = config.watermark
    if watermark.uid_policy == "derive":
        return JournalNames(spool, ring.uid_key, watermark.reference_wait_s)
    # What was sent under a new UID keeps it, whatever the policy is now.
    return JournalNames(spool, None, 0.0) if spool.has_new_uids else None


def retry_delay_s(attempts: int) -> float:
    """Return the jittered exponential delay after this many attempts."""
    delay_s = min(RETRY_MAX_S, RETRY_INITIAL_S * 2.0 ** min(attempts - 1, 20))
    return delay_s * random.uniform(0.75, 1.25)


def is_full(error: Exception) -> bool:
    """Whether there was no room on a disk."""
    return isinstance(error, SpoolFull) or (
        isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    )


def resident_mib() -> int:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // _MIB
