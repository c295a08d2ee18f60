"""The forwarders' side of the spool: one queue per destination."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import structlog

from dicom_node.errors import LeaseLost
from dicom_node.spool.base import forward_channel
from dicom_node.spool.destinations import NOT_NAMED, unknown
from dicom_node.spool.marking_queue import MarkingQueue
from dicom_node.spool.outbox import REGISTER, Kind, tell
from dicom_node.spool.records import Delivery
from dicom_node.spool.reserve import on_a_full_disk

LEASE_S = 180.0
LET_PASS_S, LONGEST_PASS_S = 1.0, 60.0
_PASSES = 32  # in one transaction: others write, too
_HOLD_AT_ONCE = 500
_TOLD: dict[str, Kind] = {"delivered": "delivered", "held": "held"}
_log = structlog.get_logger(__name__)


class DeliveryQueue(MarkingQueue):
    """Deliveries from *waiting* to *delivered* or *held*."""

    _remover: ThreadPoolExecutor | None = None

    def close(self) -> None:
        """Finish removing delivered files, then close."""
        if self._remover is not None:
            self._remover.shutdown()
        super().close()

    @on_a_full_disk
    def claim_delivery(
        self,
        destination: str,
        *,
        lease_s: float = LEASE_S,
        limit: int = 1,
        fresh_first: bool = False,
    ) -> list[Delivery]:
        """Take up to `limit` due deliveries, oldest first, for as long as the lease lasts.

        With `fresh_first` those that were refused several times come only if there are no others.
        """
        now = self._clock()
        if self._journal.row("due_delivery", destination=destination, now=now) is None:
            return []
        with self._journal.transaction(durable=False) as journal:
            for late in journal.rows("expired_deliveries", destination=destination, before=now):
                self._delivery_crashed(late["id"], late["worker"], now, blame=True)
            values = {
                "destination": destination, "now": now, "worker": self.process,
                "lease_until": now + lease_s, "limit": limit,
            }  # fmt: skip
            rows = self._claim_in_order(fresh=True, **values) if fresh_first else []
            rows = rows or self._claim_in_order(fresh=False, **values)
        return sorted(map(self._delivery, rows), key=lambda d: (d.due_at, d.job_id))

    def _claim_in_order(self, **values: Any) -> list[sqlite3.Row]:
        """Claim what is due, but for what has to wait for an earlier version."""
        passes = 0
        while passes < _PASSES and (claimed := self._journal.rows("claim_deliveries", **values)):
            found = [row for c in claimed for row in self._journal.rows("delivery", id=c["id"])]
            rows = [row for row in found if not self._lets_pass(row, values["now"])]
            if rows:
                return rows
            passes += len(found)
        return []

    def _lets_pass(self, row: sqlite3.Row, now: float) -> bool:
        """Whether an earlier version of this instance goes first; put it back then."""
        where = {"destination": row["destination"], "job_id": row["job_id"]}
        earlier = self._journal.row("overtaken", **where)
        if earlier is None:
            return False
        reason = f"job {earlier['id']}, an earlier version under its UID, goes first"
        self._journal.rows(
            "let_pass", id=row["id"], now=now, reason=reason,
            shortest_s=LET_PASS_S, longest_s=LONGEST_PASS_S,
        )  # fmt: skip
        return True

    def wait_for_delivery(self, destination: str, timeout_s: float) -> bool:
        """Sleep until a delivery may be due, at most `timeout_s`; False if nothing happened."""
        due = self._journal.row("next_delivery_due", destination=destination)
        return self._wait(forward_channel(destination), due[0] if due else None, timeout_s)

    def waiting_contexts(self, destination: str, *, limit: int = 1000) -> list[tuple[str, str]]:
        """Return the (SOP class, transfer syntax) pairs the next `limit` deliveries need."""
        rows = self._journal.rows("waiting_contexts", destination=destination, limit=limit)
        return [(row[0], row[1]) for row in rows]

    @on_a_full_disk
    def renew_delivery(self, delivery: Delivery, *, lease_s: float = LEASE_S) -> None:
        """Keep a claimed delivery `lease_s` seconds more (LeaseLost if it is no longer ours)."""
        with self._journal.transaction(durable=False) as journal:
            until = self._clock() + lease_s
            row = journal.row("renew_delivery", lease_until=until, **_claim_of(delivery))
            _owned(row, delivery)

    def delivered(
        self, delivery: Delivery, status: int = 0x0000, *, transfer_syntax_uid: str = ""
    ) -> None:
        """Record that the destination has it; with its last delivery the job's files go.

        Parameters
        ----------
        transfer_syntax_uid
            What it was sent in, where it may have been recoded for this destination; "": as the
            job's result is coded.
        """
        self._leave_delivery(delivery, "delivered", "", status, syntax=transfer_syntax_uid)

    def retry_delivery(
        self, delivery: Delivery, reason: str, due_at: float, *, status: int | None = None
    ) -> None:
        """Give it back after a transient failure; it is due again at `due_at`."""
        self._leave_delivery(delivery, "waiting", reason, status, due_at=due_at)

    def hold_delivery(self, delivery: Delivery, reason: str, *, status: int | None = None) -> None:
        """Put it into quarantine with its reason."""
        self._leave_delivery(delivery, "held", reason, status)

    def unclaim_delivery(self, delivery: Delivery) -> None:
        """Give it back untouched (a drain): due at once, the attempt does not count."""
        self._leave_delivery(delivery, "waiting", delivery.reason, delivery.status, refund=1)
        self._ring(forward_channel(delivery.destination))

    def hold_unknown(self, names: Sequence[str]) -> dict[str, int]:
        """Hold what waits for destinations that are not among `names`; say how much is held so."""
        rows = self._journal.rows("open_deliveries")
        found = unknown({row[0]: int(row[1]) for row in rows}, names)
        for name in found:
            while self._hold_some(name):
                self._ring(REGISTER)
        return found

    @on_a_full_disk
    def _hold_some(self, destination: str) -> int:
        now, reason = self._clock(), NOT_NAMED.format(name=destination)
        with self._journal.transaction() as journal:
            held = journal.rows(
                "hold_unknown", destination=destination, reason=reason, now=now,
                limit=_HOLD_AT_ONCE,
            )  # fmt: skip
            for row in held:
                tell(
                    journal, "held", row["job_id"], now, reason=reason, destination=destination
                )
                journal.rows("settle_job", id=row["job_id"], now=now)
        return len(held)

    def _leave_delivery(
        self,
        delivery: Delivery,
        state: str,
        reason: str,
        status: int | None,
        *,
        due_at: float | None = None,
        refund: int = 0,
        syntax: str = "",
    ) -> None:
        settled = self._record_delivery(
            delivery,
            syntax=syntax,
            state=state,
            reason=reason,
            status=status,
            due_at=delivery.due_at if due_at is None else due_at,
            refund=refund,
        )
        if state in _TOLD:
            self._ring(REGISTER)
        if settled and settled["state"] in ("delivered", "dropped"):
            self._remove_later(settled)

    @on_a_full_disk
    def _record_delivery(
        self, delivery: Delivery, *, syntax: str, **values: Any
    ) -> sqlite3.Row | None:
        """Record what became of a delivery; return its job if that ended with it."""
        now = self._clock()
        with self._journal.transaction() as journal:
            row = journal.row("leave_delivery", now=now, **values, **_claim_of(delivery))
            _owned(row, delivery)
            if values["state"] in _TOLD:
                tell(
                    journal, _TOLD[values["state"]], delivery.job_id, now,
                    reason=values["reason"], destination=delivery.destination,
                    status=values["status"], delivered_syntax_uid=syntax,
                )  # fmt: skip
                where = {"destination": delivery.destination, "job_id": delivery.job_id}
                journal.rows("next_version", now=now, **where)
            return journal.row("settle_job", id=delivery.job_id, now=now)

    def _remove_later(self, job: sqlite3.Row) -> None:
        """Remove the files of a job that has ended, beside the sending of the next one.

        Removing half a megabyte takes about 3 ms of waiting on ext4 with ``discard``. What a crash
        leaves behind is removed by `recover`.
        """
        if self._remover is None:
            self._remover = ThreadPoolExecutor(1, thread_name_prefix="spool-remover")
        self._remover.submit(self._remove_files_of, job).add_done_callback(_report)


def _report(removal: Future[None]) -> None:
    error = removal.exception()
    if error is not None:
        _log.error("delivered_file_not_removed", reason=str(error))


def _claim_of(delivery: Delivery) -> dict[str, Any]:
    return {"id": delivery.id, "worker": delivery.worker, "attempts": delivery.attempts}


def _owned(row: Any, delivery: Delivery) -> None:
    if row is None:
        raise LeaseLost(
            f"job {delivery.job_id} for {delivery.destination} is no longer claimed by this process"
        )
