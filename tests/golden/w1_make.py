"""Write the golden marked objects of today's model, ``w1_<model>_*.dcm``. Run once for each model.

What a model marked must come off, and be read, with every later version: marks are in archives for
decades. Run before new patterns are exported, never for patterns that were.

python tests/golden/w1_make.py
"""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pydicom

from dicom_node.config import WatermarkConfig
from dicom_node.inference import open_engine
from dicom_node.keys import KeyRing, KeySet
from dicom_node.marking import Marker

FOLDER = Path(__file__).parent
SAMPLE = FOLDER.parents[1] / "demo" / "mr_brain" / "brain_012.dcm"
AT = datetime(2026, 12, 1, 1, 0, tzinfo=UTC)
RING = KeyRing((KeySet.from_master(bytes(range(32)), "GOLDEN", datetime(2026, 1, 1, tzinfo=UTC)),))
SIDES = {"whole": 256, "small": 64}  # pixels; the carrier of the small one is folded


def original(size: str) -> pydicom.Dataset:
    """Return the sample, or its means over 4 x 4 pixels."""
    data = pydicom.dcmread(SAMPLE)
    pixels, side = data.pixel_array, SIDES[size]
    if side != data.Rows:
        means = pixels.reshape(side, data.Rows // side, side, -1).mean((1, 3))
        data.Rows = data.Columns = side
        data.PixelData = np.rint(means).astype(pixels.dtype).tobytes()
    return data


def main() -> None:
    """Mark both with a fixed key."""
    engine = open_engine("onnx")
    marker = Marker(WatermarkConfig(), RING, engine)
    for size in SIDES:
        with tempfile.TemporaryDirectory() as name:
            source = Path(name) / "original.dcm"
            original(size).save_as(source)
            out = FOLDER / f"w1_{engine.model_id.hex()}_{size}.dcm"
            marker.mark(source, out, marked_at=AT)


if __name__ == "__main__":
    main()
