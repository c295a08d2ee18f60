"""The whole spool: every role on one folder, and the administrator's side."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from dicom_node.spool.base import MARK, forward_channel
from dicom_node.spool.delivery_queue import DeliveryQueue
from dicom_node.spool.journal import Journal
from dicom_node.spool.outbox import REGISTER, tell
from dicom_node.spool.records import Delivery, Job
from dicom_node.spool.reserve import on_a_full_disk


class Spool(DeliveryQueue):
    """An open spool; see the package for who calls what. Close it, or use ``with``."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def tally(self) -> dict[str, int]:
        """Return how many jobs are in each state."""
        return {row["state"]: int(row["jobs"]) for row in self._journal.rows("tally")}

    def jobs(
        self,
        *,
        state: str | None = None,
        destination: str | None = None,
        sop_instance_uid: str | None = None,
        limit: int = -1,
    ) -> list[Job]:
        """Return jobs in the order they came, at most `limit` (-1: all)."""
        rows = self._journal.rows(
            "jobs",
            state=state,
            destination=destination,
            sop_instance_uid=sop_instance_uid,
            limit=limit,
        )
        return list(map(self._job, rows))

    def job(self, job_id: int) -> Job | None:
        """Return one job, or None."""
        row = self._journal.row("job", id=job_id)
        return self._job(row) if row else None

    def deliveries(self, job_id: int) -> list[Delivery]:
        """Return the deliveries of one job."""
        return list(map(self._delivery, self._journal.rows("deliveries_of", job_id=job_id)))

    @on_a_full_disk
    def retry_now(self, job_id: int) -> bool:
        """Make a waiting job or its waiting deliveries due now; False if nothing waits."""
        with self._journal.transaction() as journal:
            now = self._clock()
            jobs = journal.rows("retry_job", id=job_id, now=now)
            deliveries = journal.rows("retry_deliveries", job_id=job_id, now=now)
        self._ring(
            *[MARK] * len(jobs), *(forward_channel(row["destination"]) for row in deliveries)
        )
        return bool(jobs or deliveries)

    @on_a_full_disk
    def release(self, job_id: int, *, destinations: Sequence[str] | None = None) -> bool:
        """Bring a held or rejected job, or its held deliveries, back; False if there is none.

        With the names of all `destinations`, what is held for one that is not among them goes to
        all of these instead, and stays held where there are none.

        A job whose result is missing is marked anew; one whose received file is missing as well
        stays held until the instance is sent again.
        """
        row = self._journal.row("job", id=job_id)
        if row is None:
            return False
        if self._lacks_result(row):
            return self._files.received(row["name"]).exists() and self._requeue_lost(row)
        if not row["result_name"] and not self._files.received(row["name"]).exists():
            return False
        with self._journal.transaction() as journal:
            now = self._clock()
            if destinations is not None and not self._redirect(journal, job_id, destinations, now):
                return False
            deliveries = journal.rows("release_deliveries", job_id=job_id, reason=None, now=now)
            jobs = journal.rows("release_job", id=job_id, now=now)
            settled = journal.row("settle_job", id=job_id, now=now)
        if settled:
            self._remove_files_of(settled)
        marking = [MARK for row in jobs if row["state"] == "received"]
        self._ring(*marking, *(forward_channel(row["destination"]) for row in deliveries))
        return bool(jobs or deliveries)

    def newer_version(self, job_id: int) -> int | None:
        """Return the job whose other version a destination has that would get this held one."""
        row = self._journal.row("newer_version", id=job_id)
        return row["id"] if row else None

    def _redirect(
        self, journal: Journal, job_id: int, destinations: Sequence[str], now: float
    ) -> bool:
        """Turn what is held for others towards `destinations`; False if there are none."""
        held = {row["destination"] for row in journal.rows("held_destinations", job_id=job_id)}
        gone = held.difference(destinations)
        if gone and not destinations:
            return False
        for name in gone:
            journal.rows("forget_held_delivery", job_id=job_id, destination=name)
        for name in destinations if gone else ():
            # Held, to be released with the others; who has or awaits it already is left alone.
            journal.rows(
                "add_delivery", job_id=job_id, destination=name, state="held", reason="", now=now
            )
        return True

    def drop(self, job_id: int, reason: str = "dropped by an administrator") -> bool:
        """Give a job up for good: its files are removed; False if it had already ended."""
        row = self._record_drop(job_id, reason)
        if row is None:
            return False
        self._ring(REGISTER)
        self._remove_files_of(row)
        return True

    @on_a_full_disk
    def _record_drop(self, job_id: int, reason: str) -> sqlite3.Row | None:
        now = self._clock()
        with self._journal.transaction() as journal:
            row = journal.row("drop_job", id=job_id, reason=reason, now=now)
            if row is not None:
                journal.rows("drop_deliveries", job_id=job_id, now=now)
                tell(journal, "dropped", job_id, now, reason=reason)
            return row
