"""The outbox: what became of instances, told to the registrar in the order it happened.

A row is written in the same transaction as the change it tells of, and removed when the registry
and the audit trail have it. Nobody on an image's way waits for either of them: while they are away
the outbox grows. A crash between telling and removing tells a row again, under the same reference.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

from dicom_node.facts import InstanceFacts, MarkedFrame
from dicom_node.spool.base import SpoolBase
from dicom_node.spool.journal import Journal

Kind = Literal["marked", "delivered", "held", "refused", "dropped"]
REGISTER: Final = "register"
FORMAT: Final = 1
BATCH_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """One thing that happened to one job.

    Attributes
    ----------
    reference
        ``<spool>:<row>``, for good the same for this row.
    kind
        ``marked`` (finished: marked, sealed or untouched), ``delivered``, ``held``, ``refused``,
        ``dropped``.
    at
        When, Unix seconds.
    sop_instance_uid
        As the destinations know it.
    received_sop_instance_uid
        As it came; "" in a row of a release that knew only this one.
    transfer_syntax_uid
        Of the job's result.
    destination, status
        Of a delivery; "" and None where it is the job itself.
    delivered_syntax_uid
        What a delivery was sent in; "" in a row of a release that did not say.
    """

    id: int
    reference: str
    kind: Kind
    at: float
    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    calling_ae: str
    received_at: float
    received_digest: bytes
    action: str = ""
    delivered_digest: bytes = b""
    key_id: bytes = b""
    marked_at: int | None = None
    reason: str = ""
    destination: str = ""
    status: int | None = None
    facts: InstanceFacts = field(default_factory=InstanceFacts)
    received_sop_instance_uid: str = ""
    delivered_syntax_uid: str = ""


def tell(
    journal: Journal, kind: Kind, job_id: int, at: float, *, reason: str = "",
    destination: str = "", status: int | None = None, facts: InstanceFacts | None = None,
    delivered_syntax_uid: str = "",
) -> None:  # fmt: skip
    """Write one row, inside the caller's transaction."""
    job = journal.row("told_of", job_id=job_id)
    assert job is not None, "told of in the transaction that changed it"
    body = encode(
        job, reason=reason, destination=destination, status=status,
        facts=facts or InstanceFacts(), delivered_syntax_uid=delivered_syntax_uid,
    )  # fmt: skip
    journal.rows("tell", kind=kind, at=at, body=body)


def encode(
    job: sqlite3.Row, *, reason: str, destination: str, status: int | None, facts: InstanceFacts,
    delivered_syntax_uid: str = "",
) -> str:  # fmt: skip
    """Return the body of a row: JSON that any later release reads."""
    body: dict[str, Any] = {
        "format": FORMAT,
        "job": job["id"],
        "sop_class_uid": job["sop_class_uid"],
        "sop_instance_uid": job["result_instance_uid"] or job["sop_instance_uid"],
        "received_sop_instance_uid": job["sop_instance_uid"],
        "study_instance_uid": job["study_instance_uid"],
        "series_instance_uid": job["series_instance_uid"],
        "transfer_syntax_uid": job["result_syntax_uid"] or job["transfer_syntax_uid"],
        "calling_ae": job["calling_ae"],
        "received_at": job["received_at"],
        "received_digest": job["digest"].hex(),
        "action": job["action"],
        "delivered_digest": (job["result_digest"] or b"").hex(),
        "key_id": (job["key_id"] or b"").hex(),
        "marked_at": job["marked_at"],
        "reason": reason,
        "destination": destination,
        "status": status,
        "delivered_syntax_uid": delivered_syntax_uid,
        "modality": facts.modality,
        "instance_number": facts.instance_number,
        "frame_count": facts.frame_count,
        "frames": [_frame_json(frame) for frame in facts.frames],
    }
    return json.dumps(body, separators=(",", ":"))


def decode(row: sqlite3.Row, spool: str) -> OutboxRow:
    """Return a row as `encode` wrote it, in this release or an earlier one."""
    body = json.loads(row["body"])
    facts = InstanceFacts(
        body["modality"], body["instance_number"], body["frame_count"],
        tuple(MarkedFrame(*map(bytes.fromhex, frame)) for frame in body["frames"]),
    )  # fmt: skip
    return OutboxRow(
        id=row["id"],
        reference=f"{spool}:{row['id']}",
        kind=cast(Kind, row["kind"]),
        at=row["at"],
        sop_class_uid=body["sop_class_uid"],
        sop_instance_uid=body["sop_instance_uid"],
        study_instance_uid=body["study_instance_uid"],
        series_instance_uid=body["series_instance_uid"],
        transfer_syntax_uid=body["transfer_syntax_uid"],
        calling_ae=body["calling_ae"],
        received_at=body["received_at"],
        received_digest=bytes.fromhex(body["received_digest"]),
        action=body["action"],
        delivered_digest=bytes.fromhex(body["delivered_digest"]),
        key_id=bytes.fromhex(body["key_id"]),
        marked_at=body["marked_at"],
        reason=body["reason"],
        destination=body["destination"],
        status=body["status"],
        facts=facts,
        received_sop_instance_uid=body.get("received_sop_instance_uid", ""),
        delivered_syntax_uid=body.get("delivered_syntax_uid", ""),
    )


def _frame_json(frame: MarkedFrame) -> list[str]:
    return [
        frame.original_digest.hex(), frame.marked_digest.hex(), frame.perceptual_hash.hex(),
        frame.message.hex(), frame.fingerprint.hex(),
    ]  # fmt: skip


class Outbox(SpoolBase):
    """What the journal's other parts tell, and what the registrar reads."""

    _name = ""

    @property
    def name(self) -> str:
        """The spool's own name, 16 hex digits: the first half of every reference."""
        if not self._name:
            row = self._journal.row("spool_name")
            assert row is not None, "made with the journal"
            self._name = str(row["name"])
        return self._name

    def outbox(self, limit: int = 1000) -> list[OutboxRow]:
        """Return the oldest rows, in order: at most `limit`, and about `BATCH_BYTES` of them."""
        rows = self._journal.rows("outbox", limit=limit, bytes=BATCH_BYTES)
        return [decode(row, self.name) for row in rows]

    def forget(self, last: OutboxRow) -> None:
        """Remove a row and all before it: the registry and the audit trail have them."""
        # Told again after a power cut, they are known there already.
        with self._journal.transaction(durable=False) as journal:
            journal.rows("forget", id=last.id)

    def outbox_depth(self) -> tuple[int, float | None]:
        """Return how many rows wait, and when the oldest was written (Unix seconds)."""
        row = self._journal.row("outbox_depth")
        assert row is not None, "counting gives a row"
        return int(row[0]), row[1]

    @property
    def disk_is_full(self) -> bool:
        """Whether the reserve was given up: what room there is belongs to images on their way."""
        return not self._reserve.kept

    def wait_for_news(self, timeout_s: float) -> bool:
        """Sleep until there may be a new row, at most `timeout_s`; False if nothing happened."""
        return self._bell(REGISTER).wait(timeout_s)
