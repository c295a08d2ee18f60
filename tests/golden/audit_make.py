"""Write the golden audit trail, format 1. Run once; what is committed must stay readable.

python tests/golden/audit_make.py
"""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

from dicom_node.audit import events
from dicom_node.audit.log import AuditLog
from dicom_node.keys import KeyRing, KeySet

FOLDER = Path(__file__).parent / "audit"
KEYS = KeySet.from_master(bytes(range(32)), "GOLDEN", datetime(2026, 1, 1, tzinfo=UTC))
AT = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)
UID = "1.2.826.0.1.3680043.8.498"

EVENTS: tuple[events.Event, ...] = (
    events.Activity(at=AT, action="start", version="0.3"),
    events.Marked(at=AT, sop_instance_uid=f"{UID}.1", sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
                  study_instance_uid=f"{UID}.2", series_instance_uid=f"{UID}.3", frames=1,
                  key_id="eaf24268b7b60ad7", digest="ab" * 32, source_ae="CT1"),
    events.Forwarded(at=AT, sop_instance_uid=f"{UID}.1", study_instance_uid=f"{UID}.2",
                     destination="pacs", ae_title="ORTHANC", status=0xB000),
    events.Refused(at=AT, stage="mark", outcome="held", reason="the lamp is out", peer_ae="CT1"),
    events.Queried(at=AT, client_ae="AUDITOR", level="STUDY", keys=("00100020", "0020000D"),
                   study_instance_uid=f"{UID}.2", matches=1),
    events.Retrieved(at=AT, client_ae="AUDITOR", destination_ae="WS", instances=3, failed=1,
                     study_instance_uid=f"{UID}.2", status=0xB000),
    events.Verified(at=AT, sop_instance_uid=f"{UID}.1", verdict="tampered", checked_by="AUDITOR",
                    changed=("PatientID", "Laterality")),
    events.VerdictGiven(at=AT, given_to="AUDITOR", verdict="tampered",
                        counts={"authentic": 2, "tampered": 1}),
    events.Restored(at=AT, sop_instance_uid=f"{UID}.1", by="root@node", exact=True),
    events.KeyUsed(at=AT, use="rotate", key_id="eaf24268b7b60ad7", by="root@node"),
    events.Recovered(at=AT, size=17, digest="cd" * 32, kept_as="torn-5.bin"),
    events.Activity(at=AT, action="stop"),
)  # fmt: skip


def main() -> None:
    """Write the trail: two segments, a checkpoint every five entries."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    log = AuditLog.open(FOLDER, KeyRing((KEYS,)), checkpoint_every=5, segment_bytes=3000)
    for number, event in enumerate(EVENTS):
        log.append(event, f"golden:{number}")
    log.close()
    (FOLDER / "lock").unlink()


if __name__ == "__main__":
    main()
