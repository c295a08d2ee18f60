"""What a forger does, with the tools a forger has: pydicom, and nothing of ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom

_RADIUS_PX = 5
FORGED_PATIENT_ID = "SOMEBODY-ELSE"

Place = tuple[int, int]


def paint_lesion(source: Path, out: Path, centre: Place) -> list[Place]:
    """Darken a small disc around `centre` (row, column) of a monochrome single-frame instance.

    Returns
    -------
    list
        Row and column of every pixel that was changed.
    """
    ds = pydicom.dcmread(source)
    if ds.file_meta.TransferSyntaxUID.is_encapsulated:
        ds.decompress(generate_instance_uid=False)
    pixels = ds.pixel_array.copy()
    row, column = np.ogrid[: ds.Rows, : ds.Columns]
    disc = (row - centre[0]) ** 2 + (column - centre[1]) ** 2 <= _RADIUS_PX**2
    pixels[disc] = pixels[disc] * 3 // 4
    changed = np.argwhere(pixels != ds.pixel_array)
    ds.PixelData = pixels.tobytes()
    ds.save_as(out)
    return [(int(row), int(column)) for row, column in changed]


def change_patient_id(source: Path, out: Path) -> None:
    """Save the instance under another Patient ID."""
    ds = pydicom.dcmread(source)
    ds.PatientID = FORGED_PATIENT_ID
    ds.save_as(out)
