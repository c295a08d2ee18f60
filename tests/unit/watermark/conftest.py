"""Keys, frames and the two calls, shared by the tests of W2; W1 and the search's tools."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from dicom_node.inference import open_engine
from dicom_node.keys import KeyRing, KeySet
from dicom_node.watermark import integrity
from dicom_node.watermark.alignment import Tools, tools_of
from dicom_node.watermark.integrity import Bounds, FrameRecord, IntegrityCheck, IntegrityMark
from dicom_node.watermark.robust import RobustWatermark

TWELVE_BITS = Bounds(0, 4095)
UID = "1.2.826.0.1.3680043.8.498.1"


class Marks:
    """`embed` and `check` with one key, one instance and a plain record."""

    def __init__(self, master: bytes = b"k" * 32) -> None:
        self.keys = KeySet.from_master(master, "HOSPITAL", datetime(2026, 11, 21, tzinfo=UTC))
        self.ring = KeyRing((self.keys,))

    def record(self, host: Any, side: Any = None, **changes: Any) -> FrameRecord:
        fields: dict[str, Any] = {
            "owner": "GENERAL-HOSPITAL",
            "sop_instance_uid": UID,
            "frame_number": 1,
            "frame_count": 3,
            "marked_at": 1795000000,
            "original_digest": integrity.frame_digest(host, side),
            "attribute_digests": tuple(bytes([i]) * 4 for i in range(16)),
            "restoration": bytes(range(200)),
            "features": b"f" * 10,
        }
        return FrameRecord(**(fields | changes))

    def embed(
        self, host: Any, side: Any = None, bounds: Bounds = TWELVE_BITS, **changes: Any
    ) -> IntegrityMark:
        return integrity.embed(host, side, bounds, self.record(host, side, **changes), self.keys)

    def check(
        self, host: Any, side: Any = None, bounds: Bounds = TWELVE_BITS, **changes: Any
    ) -> IntegrityCheck:
        asked: dict[str, Any] = {"ring": self.ring, "sop_instance_uid": UID, "frame_number": 1}
        return integrity.check(host, side, bounds, **(asked | changes))


@pytest.fixture(scope="session")
def watermark() -> RobustWatermark:
    return RobustWatermark(open_engine("onnx"))


@pytest.fixture(scope="session")
def tools(watermark: RobustWatermark) -> Tools:
    return tools_of(watermark.engine)


@pytest.fixture(scope="session")
def marks() -> Marks:
    return Marks()


def tissue(rows: int, columns: int, *, seed: int = 0, high: int = 4095, noise: float = 4.0) -> Any:
    """A frame like CT: smooth shapes with noise on them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:rows, :columns]
    smooth = 0.4 + 0.2 * np.sin(x / 23.0 + seed) * np.cos(y / 31.0) + 0.1 * np.sin((x + y) / 57.0)
    return np.clip(np.rint(smooth * high + rng.normal(0, noise, (rows, columns))), 0, high).astype(
        np.int32
    )
