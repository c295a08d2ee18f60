"""The report as JSON: the check as ``audit --json`` prints it, with its evidence."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from dicom_node.verify.report_facts import StudyFacts
from dicom_node.verify.study import StudyCheck

if TYPE_CHECKING:
    from dicom_node.registry.records import MarkedInstance

FORMAT = "dicom-node study report 1"


def report_json(check: StudyCheck, facts: StudyFacts) -> dict[str, Any]:
    """Return the report as JSON values; of the patient it holds the values of changed attributes.

    ``header.attributes`` of a finding has what changed under its seal; ``chain`` every instance's
    record from the registry; ``keys`` the public keys of the marks.
    """
    said = check.to_json()
    for each in facts.findings:
        # By place: two files may have one SOP Instance UID, and differ.
        said["instances"][each.place]["header"]["attributes"] = [
            {"attribute": line.name, "tag": line.tag, "signed_digest": line.before,
             "digest": line.now, "value": line.value, "signed_value": line.original or None}
            for line in each.header
        ]  # fmt: skip
    return {
        "format": FORMAT,
        "written_by": f"dicom-node {facts.version}",
        "headline": facts.headline,
        "sentences": list(facts.sentences),
        "caveats": list(facts.caveats),
        **said,
        "chain": [_chain(entry) for entry in check.entries],
        "keys": [
            {"key_id": key.key_id, "owner": key.owner, "created": key.created or None,
             "sha256": key.fingerprint or None, "pem": key.pem or None}
            for key in facts.keys
        ],
    }  # fmt: skip


def _chain(entry: MarkedInstance) -> Mapping[str, Any]:
    return {
        "sop_instance_uid": entry.sop_instance_uid,
        "received_at": _time(entry.received_at),
        "received_from": entry.calling_ae,
        "received_digest": entry.received_digest.hex(),
        "action": entry.action,
        "marked_at": _time(entry.marked_at),
        "key_id": entry.key_id.hex() or None,
        "delivered_digest": entry.delivered_digest.hex(),
        "frames": [
            {"original_digest": frame.original_digest.hex(),
             "marked_digest": frame.marked_digest.hex(),
             "message": frame.message.hex() or None}
            for frame in entry.frames
        ],
        "delivered": [
            {"destination": each.destination, "status": f"0x{each.status:04X}",
             "at": _time(each.delivered_at)}
            for each in entry.deliveries
        ],
    }  # fmt: skip


def _time(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
