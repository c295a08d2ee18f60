"""What the spool hands out: frozen rows of the journal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

JOB_STATES: Final[dict[str, str]] = {
    "received": "is durable and waits for a mark worker",
    "marking": "is claimed by a mark worker until its lease ends",
    "marked": "is ready, and at least one destination does not have it yet",
    "delivered": "was taken by every destination; its files are removed",
    "held": "waits for an administrator; `queue release` brings it back",
    "rejected": "is refused by on_unmarkable = reject; kept until dropped or released",
    "dropped": "was given up by an administrator; its files are removed",
}

DELIVERY_STATES: Final[dict[str, str]] = {
    "waiting": "is sent as soon as it is due",
    "sending": "is claimed by a forwarder until its lease ends",
    "delivered": "was answered with success or a warning",
    "held": "was refused for good; `queue release` brings it back",
    "dropped": "was given up by an administrator",
}


@dataclass(frozen=True, slots=True)
class Receipt:
    """What `Spool.receive` promises: the instance is durable as job `job_id`.

    `duplicate_of` is the undelivered job with the same bytes that this one was merged into (then it
    equals `job_id`), `restored` says that it took the place of that job's lost file; `repeat_of`
    the delivered job with the same bytes; `conflicts_with` the latest job with *other* bytes under
    the same SOP Instance UID.
    """

    job_id: int
    duplicate_of: int | None = None
    repeat_of: int | None = None
    conflicts_with: int | None = None
    restored: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """One SOP instance on its way. Times are Unix seconds; `path` is the file as received.

    `result_instance_uid` is the SOP Instance UID it is sent under where that is another one than it
    came with, else "". `released`: an administrator has let it go, whatever the policy says.
    """

    id: int
    state: str
    path: Path
    size: int
    digest: bytes
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae: str
    called_ae: str
    received_at: float
    due_at: float
    attempts: int
    crashes: int
    coalesced: int
    reason: str
    worker: str
    marked_at: int | None
    key_id: bytes | None
    repeat_of: int | None
    conflicts_with: int | None
    differs_from_repeat: bool
    action: str
    result: Path | None
    result_digest: bytes | None
    study_instance_uid: str
    series_instance_uid: str
    updated_at: float
    result_instance_uid: str = ""
    released: bool = False

    @property
    def sent_instance_uid(self) -> str:
        """The SOP Instance UID that destinations know it by."""
        return self.result_instance_uid or self.sop_instance_uid


@dataclass(frozen=True, slots=True)
class Fate:
    """What is known of an instance that another one refers to.

    `sent_as` is the SOP Instance UID it is sent under, None as long as nobody knows; `pending` says
    that it is here and will be known once a mark worker has looked at it.
    """

    sent_as: str | None
    pending: bool


@dataclass(frozen=True, slots=True)
class Delivery:
    """One SOP instance for one destination. `path` is the file to send, marked or as received."""

    id: int
    job_id: int
    destination: str
    state: str
    path: Path
    size: int
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae: str
    due_at: float
    attempts: int
    reason: str
    status: int | None
    worker: str
    updated_at: float


@dataclass(frozen=True, slots=True)
class Recovery:
    """What `Spool.recover` found after an unclean end."""

    requeued_jobs: int = 0
    requeued_deliveries: int = 0
    held_jobs: int = 0
    removed_files: int = 0
