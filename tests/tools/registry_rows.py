"""Instances as a node registers them, made up."""

import hashlib

from dicom_node.registry import DeliveryEntry, MarkedFrame, MarkedInstance

CT = "1.2.840.10008.5.1.4.1.1.2"


def digest(*words):
    return hashlib.blake2b(repr(words).encode(), digest_size=32).digest()


def frame(*words):
    return MarkedFrame(
        digest("original", *words), digest("marked", *words), digest("look", *words)[:8],
        digest("message", *words)[:12], digest("f", *words) * 4,
    )  # fmt: skip


def instance(number, *, series=1, study=1, frames=1, version=0, **more):
    uid = f"1.2.826.{study}.{series}.{number}"
    values = {
        "sop_instance_uid": uid,
        "series_instance_uid": f"1.2.826.{study}.{series}",
        "study_instance_uid": f"1.2.826.{study}",
        "sop_class_uid": CT,
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "action": "marked",
        "received_digest": digest("received", uid, version),
        "delivered_digest": digest("delivered", uid, version),
        "key_id": bytes.fromhex("3f9a000000000001"),
        "marked_at": 1_790_000_000 + number,
        "received_at": 1_790_000_000.25 + number,
        "calling_ae": "CT1",
        "modality": "CT",
        "instance_number": number,
        "frame_count": frames,
        "frames": tuple(frame(uid, version, index) for index in range(frames)),
    }
    return MarkedInstance(**(values | more))


def delivery(reference, destination="pacs", status=0, at=1_790_000_100.5):
    return DeliveryEntry(destination, status, at, reference)
