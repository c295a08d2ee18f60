"""W2 on real frames: exact recovery and a change found in its place. Skipped without the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import jpeg_ls
import numpy as np
import pydicom
import pytest

from dicom_node.errors import CapacityError
from dicom_node.watermark import planning
from dicom_node.watermark.integrity import Bounds

from .conftest import Marks

# Mean distortion stays small: root mean square in stored values, as a part of the spread.
_MOST = 1 / 64
_LARGEST_PX = 800


def _round_trip(marks: Marks, host: Any, side: Any, bounds: Bounds) -> str:
    mark = marks.embed(host, side, bounds)
    result = marks.check(mark.marked, side, bounds, header_block=mark.header_block)
    assert result.status == "valid"
    assert (result.recovered == host).all()
    assert result.record is not None
    assert result.record.restoration == bytes(range(200))
    changed = mark.marked.copy()
    row, column = host.shape[0] // 3, host.shape[1] // 5
    changed[row, column] += 1 if changed[row, column] < bounds.high else -1
    after = marks.check(changed, side, bounds, header_block=mark.header_block)
    assert after.status != "valid"
    if mark.profile != "compact":
        residual = (mark.marked - host).astype(np.float64)
        spread = float(np.subtract(*np.percentile(host, (99.7, 0.5))))
        assert np.sqrt((residual**2).mean()) <= max(3.0, spread * _MOST)
    if mark.profile == "tiled" and mark.tile_px and len(after.tampered) == 1:
        [box] = after.tampered
        assert box.row <= row < box.row + box.rows
        assert box.column <= column < box.column + box.columns
    return mark.profile


@pytest.mark.parametrize(
    "kind", ["image_brain_ms", "image_chest", "image_dermoscopy", "image_cell"]
)
def test_crops_come_back_exactly(marks: Marks, shared: Path, kind: str) -> None:
    manifest = (shared / "MANIFEST.csv").read_text().splitlines()
    rows = [r.split(",") for r in manifest if r.startswith("crops/val/") and f",{kind}," in r]
    assert rows
    for row in rows[:4]:
        picture = cv2.imread(str(shared / row[0]), cv2.IMREAD_UNCHANGED)
        assert picture is not None
        if picture.ndim == 3:
            host = np.ascontiguousarray(picture[..., 1], np.int32)
            side = np.ascontiguousarray(picture[..., [2, 0]], np.uint32)
            _round_trip(marks, host, side, Bounds(0, 255))
        else:
            host = picture.astype(np.int32) - int(row[12] or 0)
            low = -32768 if host.min() < 0 else 0
            _round_trip(marks, host, None, Bounds(low, 65535 if low == 0 else 32767))


@pytest.mark.parametrize("kind", ["ct", "ct_series", "mr", "us", "cr_dx", "xa"])
def test_dicom_frames_come_back_exactly(marks: Marks, shared: Path, kind: str) -> None:
    profiles = []
    for path in sorted((shared / "dicom" / kind).rglob("*"))[:6]:
        frame = _frame(path) if path.is_file() else None
        if frame is None:
            continue
        try:
            profiles.append(_round_trip(marks, *frame))
        except CapacityError:
            profiles.append("none")
    assert profiles
    assert profiles.count("none") == 0


def test_no_pixel_is_skipped_where_nearly_all_carry_and_the_archive_grows_less(
    marks: Marks, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _frame(shared / "dicom/ct_enhanced/pydicom-data__eCT_Supplemental.dcm")
    assert found is not None
    host, side, bounds = found
    before, growth = _jpegls_bytes(host), {}
    for dense in (planning._DENSE, 2.0):
        monkeypatch.setattr(planning, "_DENSE", dense)
        growth[dense] = _jpegls_bytes(marks.embed(host, side, bounds).marked) - before
    skipping = growth.pop(2.0)
    [close] = growth.values()
    assert 0 < close < 0.9 * skipping


def _jpegls_bytes(frame: Any) -> int:
    return len(jpeg_ls.encode(frame.astype(np.uint16)))


def _frame(path: Path) -> tuple[Any, Any, Bounds] | None:
    """The first frame of a file, or None where pydicom does not decode it as integers."""
    ds = pydicom.dcmread(path, force=True)
    try:
        pixels = ds.pixel_array
    except Exception:  # noqa: BLE001 - undecodable objects are another test's matter
        return None
    bits = int(ds.BitsStored)
    if pixels.dtype.kind not in "iu" or bits < 8 or pixels.size > 3e7:
        return None
    if int(ds.get("NumberOfFrames", 1) or 1) > 1:
        pixels = pixels[0]
    signed = bool(ds.PixelRepresentation)
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    padding = None
    value = ds.get("PixelPaddingValue")
    if isinstance(value, int):
        limit = int(ds.get("PixelPaddingRangeLimit", value))
        padding = (min(value, limit), max(value, limit))
    if pixels.min() < low or pixels.max() > high or min(pixels.shape[:2]) < 8:
        return None
    bounds = Bounds(low, high, padding)
    pixels = pixels[-_LARGEST_PX:, :_LARGEST_PX]
    if pixels.ndim == 3:
        host = np.ascontiguousarray(pixels[..., 1], np.int32)
        return host, np.ascontiguousarray(pixels[..., [0, 2]], np.uint32), bounds
    return pixels.astype(np.int32), None, bounds
