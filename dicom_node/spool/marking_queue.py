"""The mark workers' side of the spool: claim a job, finish it, or say why not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dicom_node.errors import LeaseLost
from dicom_node.facts import InstanceFacts
from dicom_node.spool.base import MARK, forward_channel
from dicom_node.spool.outbox import REGISTER, Kind, tell
from dicom_node.spool.records import Fate, Job
from dicom_node.spool.recovery import RecoverableSpool
from dicom_node.spool.reserve import on_a_full_disk

LEASE_S = 120.0
_TOLD: dict[str, Kind] = {"held": "held", "rejected": "refused"}
_ANY_SIZE = (1 << 63) - 1
NO_DESTINATION = "no [[destination]] is configured; add one, then `dicom-node queue release`"
ANOTHER_VERSION = (
    "its result is not what job {first} delivered for the same instance (marked by other software,"
    " weights or settings): `dicom-node queue release {job}` sends it as a second version,"
    " `dicom-node queue drop {job}` leaves the first"
)


class MarkingQueue(RecoverableSpool):
    """Jobs from *received* to *marked*."""

    @on_a_full_disk
    def claim(self, *, lease_s: float = LEASE_S, writes: bool = True) -> Job | None:
        """Take the oldest due job, or None; nobody else gets it until the lease ends.

        `Job.marked_at` is the time the marks carry: set by the first claim and kept by every later
        one, so that a job marked again after a crash gives the same bytes. Without `writes` no room
        is needed for a result.
        """
        now = self._clock()
        room = self._room_for_results() if writes else _ANY_SIZE
        if self._journal.row("due_job", now=now, room=room) is None:
            return None
        with self._journal.transaction(durable=False) as journal:
            for late in journal.rows("expired_jobs", now=now):
                self._job_crashed(late["id"], late["worker"], now)
            row = journal.row(
                "claim_job",
                now=now,
                room=room,
                worker=self.process,
                lease_until=now + lease_s,
                marked_at=int(now),
            )
        return self._job(row) if row else None

    def wait_for_job(self, timeout_s: float) -> bool:
        """Sleep until a job may be due, at most `timeout_s`; return False if nothing happened."""
        due = self._journal.row("next_job_due", room=self._room_for_results())
        return self._wait(MARK, due[0] if due else None, timeout_s)

    def _room_for_results(self) -> int:
        """Return how many bytes results may take now; a result is about as large as its source."""
        if self._reserve.keep(self._files.scratch):
            return _ANY_SIZE
        return self._reserve.room_for_results()

    def make_room(self) -> bool:
        """Give up the reserve if the disk is full; return False if there was nothing to give.

        For who finds no space outside the journal, which helps itself.
        """
        return self._reserve.needed and self._reserve.give_up()

    def work_path(self, job: Job) -> Path:
        """Return where the worker writes its result; swept if this process dies."""
        return self._files.scratch / f"job-{job.id}.dcm"

    @on_a_full_disk
    def renew(self, job: Job, *, lease_s: float = LEASE_S) -> None:
        """Keep a claimed job for `lease_s` more seconds (LeaseLost if it is no longer ours)."""
        with self._journal.transaction(durable=False) as journal:
            until = self._clock() + lease_s
            _owned(journal.row("renew_job", lease_until=until, **self._claim_of(job)), job)

    def finish(
        self,
        job: Job,
        result: Path | None,
        *,
        action: str,
        deliver_to: Sequence[str],
        reason: str = "",
        key_id: bytes | None = None,
        transfer_syntax_uid: str | None = None,
        sop_instance_uid: str = "",
        study_instance_uid: str = "",
        series_instance_uid: str = "",
        facts: InstanceFacts | None = None,
    ) -> bool:
        """Make the result durable and queue it for every destination.

        Parameters
        ----------
        result
            The file to send, moved into the spool; None sends the instance as received.
        action
            ``marked``, ``sealed`` or ``untouched``.
        deliver_to
            Destination names. With none the job is held, never silently done, and the result is
            left where it is.
        transfer_syntax_uid
            Of the result; None as received.
        sop_instance_uid
            Of the result; "" as received.
        facts
            For the registry.

        Returns
        -------
        bool
            False if this job repeats an earlier one and its result differs from what that one
            delivered: it is held with this reason, and `release` sends it after all.
        """
        if not deliver_to:
            self.hold(job, NO_DESTINATION)
            return True
        name: str | None = None
        size, digest = job.size, job.digest
        if result is not None:
            name = self._files.new_name()
            size, digest = self._files.adopt(result, name)
        try:
            differs = self._record_result(
                job,
                deliver_to,
                action=action,
                reason=reason,
                key_id=key_id,
                result_name=name,
                result_size=size if name else None,
                result_digest=digest,
                result_syntax_uid=transfer_syntax_uid,
                result_instance_uid=(
                    sop_instance_uid if sop_instance_uid not in ("", job.sop_instance_uid) else None
                ),
                study_instance_uid=study_instance_uid,
                series_instance_uid=series_instance_uid,
                facts=facts,
            )
        except BaseException:
            if name is not None:
                self._files.remove(self._files.marked(name))
            raise
        self._ring(REGISTER)
        if not differs:
            self._ring(*map(forward_channel, deliver_to))
        return not differs

    @on_a_full_disk
    def _record_result(
        self, job: Job, deliver_to: Sequence[str], *, facts: InstanceFacts | None, **values: Any
    ) -> bool:
        """Queue the result, or hold it if it is another version; return whether it is one."""
        now = self._clock()
        with self._journal.transaction() as journal:
            row = journal.row("finish_job", now=now, **values, **self._claim_of(job))
            differs, first = _owned(row, job)
            reason = ANOTHER_VERSION.format(first=first, job=job.id) if differs else ""
            tell(journal, "marked", job.id, now, reason=values["reason"], facts=facts)
            if differs:
                journal.rows("hold_repeat", id=job.id, reason=reason, now=now)
                tell(journal, "held", job.id, now, reason=reason)
            for destination in deliver_to:
                journal.rows(
                    "add_delivery",
                    job_id=job.id,
                    destination=destination,
                    state="held" if differs else "waiting",
                    reason=reason,
                    now=now,
                )
            # Marked anew, and everybody had it already.
            settled = journal.row("settle_job", id=job.id, now=now)
        if settled:
            self._remove_files_of(settled)
        return bool(differs)

    def hold(self, job: Job, reason: str) -> None:
        """Put a claimed job into quarantine with its reason."""
        self._leave(job, "held", reason)

    def reject(self, job: Job, reason: str) -> None:
        """Refuse a claimed job by policy; its bytes stay until an administrator drops them."""
        self._leave(job, "rejected", reason)

    def retry(self, job: Job, reason: str, due_at: float) -> None:
        """Give a claimed job back because of a failure of ours; it is due again at `due_at`."""
        self._leave(job, "received", reason, due_at=due_at)

    def unclaim(self, job: Job) -> None:
        """Give a claimed job back untouched: due at once, the attempt does not count."""
        self._leave(job, "received", job.reason, refund=1)
        self._ring(MARK)

    def postpone(self, job: Job, reason: str, due_at: float) -> None:
        """Give a claimed job back because it has to wait for others; the attempt does not count."""
        self._leave(job, "received", reason, due_at=due_at, refund=1)

    @on_a_full_disk
    def assign_uid(self, sop_instance_uid: str, sent_as: str) -> str:
        """Say under which UID an instance is sent; return what was said first, for all time."""
        # On disk before whatever depends on it: the journal keeps its order.
        with self._journal.transaction(durable=False) as journal:
            known = self.fate_of(sop_instance_uid).sent_as
            if known is None:
                journal.rows("assign_uid", uid=sop_instance_uid, sent_as=sent_as, now=self._clock())
        return sent_as if known is None else known

    def fate_of(self, sop_instance_uid: str) -> Fate:
        """Return what is known of the UID an instance is sent under."""
        row = self._journal.row("uid_sent_as", uid=sop_instance_uid)
        assert row is not None, "a SELECT without FROM"
        return Fate(row["sent_as"], bool(row["pending"]))

    @property
    def has_new_uids(self) -> bool:
        """Whether any instance was sent under another UID than it came with."""
        return self._journal.row("any_new_uid") is not None

    @on_a_full_disk
    def _leave(
        self, job: Job, state: str, reason: str, *, due_at: float | None = None, refund: int = 0
    ) -> None:
        now = self._clock()
        with self._journal.transaction() as journal:
            row = journal.row(
                "leave_job",
                state=state,
                reason=reason,
                due_at=job.due_at if due_at is None else due_at,
                refund=refund,
                now=now,
                **self._claim_of(job),
            )
            _owned(row, job)
            if state in _TOLD:
                tell(journal, _TOLD[state], job.id, now, reason=reason)
        if state in _TOLD:
            self._ring(REGISTER)

    def _claim_of(self, job: Job) -> dict[str, Any]:
        return {"id": job.id, "worker": job.worker, "attempts": job.attempts}

    def _wait(self, channel: str, due_at: float | None, timeout_s: float) -> bool:
        """Sleep on a doorbell, but not past the next due time; look after the dead now and then."""
        until_due = timeout_s if due_at is None else max(0.0, due_at - self._clock())
        if self._bell(channel).wait(min(timeout_s, until_due)):
            return True
        if time.monotonic() - self._reclaimed > self.RECLAIM_S:
            self.reclaim()
        return until_due <= timeout_s and due_at is not None


def _owned(row: Any, job: Job) -> Any:
    if row is None:
        raise LeaseLost(f"job {job.id} is no longer claimed by this worker; its result is dropped")
    return row
