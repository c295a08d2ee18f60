"""After an unclean end: claims of the dead go back, files nobody knows go away, lost files show."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import ClassVar

from dicom_node.spool.base import MARK, forward_channel
from dicom_node.spool.intake import Intake
from dicom_node.spool.lost import LOST_MARKED, LOST_RECEIVED
from dicom_node.spool.outbox import tell
from dicom_node.spool.records import Recovery
from dicom_node.spool.reserve import on_a_full_disk

CRASH_LIMIT = 3
# A forwarder has one delivery in hand for each of its associations: most are not to blame.
DELIVERY_CRASH_LIMIT = 10
# A job that ended its worker lets others go first.
CRASH_DELAY_S = 1.0


class RecoverableSpool(Intake):
    """A spool that any of its processes may have left in mid-step."""

    RECLAIM_S: ClassVar[float] = 5.0
    _reclaimed = -1e9

    def recover(self) -> Recovery:
        """Put the spool in order; call it at start. Safe while other processes work.

        A file is removed only if the process that made it has ended and no open job names it; an
        open job whose received file is gone is held with that reason, one whose result is gone is
        marked anew.
        """
        reclaimed = self.reclaim()
        self._reserve.keep(self._files.scratch)
        orphans = self._files.orphans()
        # Asked after the list was made: whoever made these files can add no more rows.
        named: set[Path | None] = set()
        held = anew = 0
        for row in self._journal.rows("open_jobs"):
            received, marked = self._files_of(row)
            named.update((received, marked))
            if row["state"] not in ("received", "marking", "marked"):
                continue
            if received is None or not received.exists():
                held += self._hold_lost(row, LOST_RECEIVED)
            elif self._lacks_result(row):
                anew += self._requeue_lost(row)
        removed = self._files.remove(*(path for path in orphans if path not in named))
        return Recovery(
            reclaimed.requeued_jobs + anew,
            reclaimed.requeued_deliveries,
            reclaimed.held_jobs + held,
            reclaimed.removed_files + removed,
        )

    def reclaim(self, *, drained: bool = False) -> Recovery:
        """Requeue what processes that have ended still hold; sweep their temporary files.

        `drained`: they were killed because the node stops; no instance is to blame for that.
        """
        self._reclaimed = time.monotonic()
        removed = self._files.sweep_dead()
        requeued, held, destinations = self._requeue_claims_of_the_dead(drained)
        self._ring(*[MARK] * requeued, *map(forward_channel, destinations))
        return Recovery(requeued, len(destinations), held, removed)

    @on_a_full_disk
    def _requeue_claims_of_the_dead(self, drained: bool) -> tuple[int, int, list[str]]:
        """Return how many jobs were requeued, how many held, and whose deliveries were requeued."""
        now = self._clock()
        dead_jobs = self._dead(self._journal.rows("marking_workers"))
        dead_deliveries = self._dead(self._journal.rows("sending_workers"))
        held = requeued = 0
        destinations: list[str] = []
        if dead_jobs or dead_deliveries:
            with self._journal.transaction():
                for row in dead_jobs:
                    ended = self._job_drained if drained else self._job_crashed
                    state = ended(row["id"], row["worker"], now)
                    requeued += state == "received"
                    held += state == "held"
                for row in dead_deliveries:
                    destinations += self._delivery_crashed(
                        row["id"], row["worker"], now, blame=not drained
                    )
        return requeued, held, destinations

    def _dead(self, rows: list[sqlite3.Row]) -> list[sqlite3.Row]:
        alive = {worker: self._files.is_alive(worker) for worker in {row["worker"] for row in rows}}
        return [row for row in rows if not alive[row["worker"]]]

    def _job_crashed(self, job_id: int, worker: str, now: float) -> str:
        row = self._journal.row(
            "job_crashed",
            id=job_id,
            worker=worker,
            now=now,
            limit=CRASH_LIMIT,
            delay_s=CRASH_DELAY_S,
        )
        if row and row["state"] == "held":
            tell(self._journal, "held", job_id, now, reason=row["reason"])
        return str(row["state"]) if row else ""

    def _job_drained(self, job_id: int, worker: str, now: float) -> str:
        row = self._journal.row("job_drained", id=job_id, worker=worker, now=now)
        return str(row["state"]) if row else ""

    def _delivery_crashed(
        self, delivery_id: int, worker: str, now: float, *, blame: bool
    ) -> list[str]:
        rows = self._journal.rows(
            "delivery_crashed", id=delivery_id, worker=worker, now=now, blame=int(blame),
            limit=DELIVERY_CRASH_LIMIT, delay_s=CRASH_DELAY_S,
        )  # fmt: skip
        for row in rows:
            if row["state"] == "held":
                tell(self._journal, "held", row["job_id"], now, reason=row["reason"],
                     destination=row["destination"])  # fmt: skip
                self._journal.rows("settle_job", id=row["job_id"], now=now)
        return [row["destination"] for row in rows if row["state"] == "waiting"]

    @on_a_full_disk
    def _hold_lost(self, row: sqlite3.Row, reason: str) -> int:
        with self._journal.transaction() as journal:
            held = journal.rows(
                "hold_lost", id=row["id"], state=row["state"], reason=reason, now=self._clock()
            )
            if held:
                tell(journal, "held", row["id"], self._clock(), reason=reason)
                journal.rows(
                    "hold_lost_deliveries", job_id=row["id"], reason=reason, now=self._clock()
                )
        return len(held)

    @on_a_full_disk
    def _requeue_lost(self, row: sqlite3.Row) -> bool:
        """Have a job marked anew whose result is gone and whose received file is not."""
        with self._journal.transaction() as journal:
            again = self._mark_anew(journal, row, LOST_MARKED, self._clock())
        if again:
            self._ring(MARK)
        return again

    def _files_of(self, row: sqlite3.Row) -> tuple[Path | None, ...]:
        result = row["result_name"]
        return self._files.received(row["name"]), self._files.marked(result) if result else None

    def _remove_files_of(self, row: sqlite3.Row) -> None:
        self._files.remove(*self._files_of(row))
