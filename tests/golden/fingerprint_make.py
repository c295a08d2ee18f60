"""Write the golden fingerprints, model 1, and a frame whose W2 carries one.

Run once; what is committed must stay readable.

PYTHONPATH=. python tests/golden/fingerprint_make.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
from w2_make import FOLDER, KEYS, UID, frame

from dicom_node.watermark import fingerprint, integrity
from dicom_node.watermark.integrity import Bounds, FrameRecord

MODEL = 1


def codes() -> dict[str, Any]:
    """Return a code of noise throughout (kept plain), and one of a round body in air (deflated)."""
    rng = np.random.default_rng(16)
    noise = rng.random((8, 16, 16)) < 0.5
    y, x = np.mgrid[:16, :16] - 7.5
    body = np.where(np.hypot(x, y) < 5, noise, np.arange(8)[:, None, None] % 3 == 0)
    return {"plain": noise, "deflated": body}


def main() -> None:
    """Write ``fingerprint.npz``: codes and their bytes, and a marked frame with its original."""
    made = codes()
    packed = {name: fingerprint.pack(code, MODEL) for name, code in made.items()}
    host = frame(256, 256, 3.0)
    record = FrameRecord(
        "GOLDEN", UID, 1, 1, 1790000000, integrity.frame_digest(host, None), (b"attr",),
        bytes(i % 251 for i in range(200)), packed["deflated"],
    )  # fmt: skip
    mark = integrity.embed(host, None, Bounds(0, 4095, (0, 0)), record, KEYS)
    if mark.profile != "tiled" or not mark.features:
        raise SystemExit(f"became {mark.profile}, features: {bool(mark.features)}")
    np.savez_compressed(
        FOLDER / "fingerprint.npz",
        marked=mark.marked.astype(np.int16),
        original=host.astype(np.int16),
        **{f"code_{name}": code for name, code in made.items()},
        **{f"bytes_{name}": np.frombuffer(data, np.uint8) for name, data in packed.items()},
    )


if __name__ == "__main__":
    main()
