"""Frames marked by the first release of payload version 1 must be readable for ever."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from dicom_node.keys import KeyRing, KeySet
from dicom_node.watermark import integrity
from dicom_node.watermark.integrity import Bounds

GOLDEN = Path(__file__).parents[2] / "golden"
UID = "1.2.826.0.1.3680043.8.498.7"


@pytest.mark.parametrize(
    ("profile", "length"), [("tiled", 200), ("header", 900), ("compact", 200), ("noted", 200)]
)
def test_golden_frames_are_read_and_restored(profile: str, length: int) -> None:
    keys = KeySet.from_master(bytes(range(32)), "GOLDEN", datetime(2026, 1, 1, tzinfo=UTC))
    stored = np.load(GOLDEN / f"w2_{profile}.npz")
    original = stored["original"].astype(np.int32)
    side = np.full((*original.shape, 1), 5, np.uint32) if profile == "header" else None
    for ring in (KeyRing((keys,)), KeyRing.from_public_pem(KeyRing((keys,)).export_public())):
        result = integrity.check(
            stored["marked"].astype(np.int32), side, Bounds(0, 4095, (0, 0)), ring=ring,
            sop_instance_uid=UID, frame_number=2, header_block=stored["header_block"].tobytes(),
        )  # fmt: skip
        assert (result.status, result.signature_valid, result.bound) == ("valid", True, True)
        assert result.profile == profile
        assert (result.recovered == original).all()
        record = result.record
        assert record is not None
        assert (record.owner, record.frame_number, record.frame_count) == ("GOLDEN", 2, 7)
        assert (record.marked_at, record.features) == (1790000000, b"features")
        assert record.attribute_digests == (b"attr", b"ibut")
        assert record.original_digest == integrity.frame_digest(original, side)
        if ring.current.has_secrets:
            assert record.restoration == bytes(i % 251 for i in range(length))
        else:
            assert record.restoration is None


def test_derived_keys_stay_what_they_are() -> None:
    keys = KeySet.from_master(bytes(range(32)), "GOLDEN", datetime(2026, 1, 1, tzinfo=UTC))
    assert keys.key_id.hex() == "eaf24268b7b60ad7"
    assert keys.mac_key.hex()[:16] == "57bcf4c13230ee97"
    assert keys.restore_key.hex()[:16] == "7f016dc8a7922309"
    assert keys.robust_key.hex()[:16] == "a9751a8ba6c6a801"
