"""Write the golden frames of W2, payload version 1. Run once; what is committed must stay readable.

"compact" was written by the release before "noted" came, which such a frame gets now.

python tests/golden/w2_make.py
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from dicom_node.keys import KeySet
from dicom_node.watermark import integrity
from dicom_node.watermark.integrity import Bounds, FrameRecord

FOLDER = Path(__file__).parent
KEYS = KeySet.from_master(bytes(range(32)), "GOLDEN", datetime(2026, 1, 1, tzinfo=UTC))
UID = "1.2.826.0.1.3680043.8.498.7"


def frame(rows: int, columns: int, noise: float) -> Any:
    """Smooth shapes in 12 bits with noise on them, and a corner of padding (0)."""
    rng = np.random.default_rng(rows * columns)
    y, x = np.mgrid[:rows, :columns]
    smooth = 1500 + 700 * np.sin(x / 19.0) * np.cos(y / 27.0)
    host = np.rint(smooth + rng.normal(0, noise, (rows, columns))).astype(np.int32)
    host[: rows // 3, : columns // 3] = 0
    return host


CASES: dict[str, tuple[Any, int]] = {
    "tiled": (frame(200, 264, 3.0), 200),
    "header": (frame(64, 64, 3.0), 900),
    "noted": (frame(24, 24, 60.0), 200),
}


def main() -> None:
    """Write ``w2_<profile>.npz``: original, marked, header block."""
    for profile, (host, length) in CASES.items():
        side = np.full((*host.shape, 1), 5, np.uint32) if profile == "header" else None
        record = FrameRecord(
            "GOLDEN", UID, 2, 7, 1790000000, integrity.frame_digest(host, side),
            (b"attr", b"ibut"), bytes(i % 251 for i in range(length)), b"features",
        )  # fmt: skip
        mark = integrity.embed(host, side, Bounds(0, 4095, (0, 0)), record, KEYS)
        if mark.profile != profile:
            raise SystemExit(f"{profile}: became {mark.profile}")
        np.savez_compressed(
            FOLDER / f"w2_{profile}.npz",
            original=host.astype(np.int16),
            marked=mark.marked.astype(np.int16),
            header_block=np.frombuffer(mark.header_block, np.uint8),
        )


if __name__ == "__main__":
    main()
