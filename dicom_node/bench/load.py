"""What a throughput run sends: many CT instances, made from a few slices with real texture.

Where no real slice is at hand there is a made-up one, which is always called that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from dicom_node.errors import ConfigError, NodeError
from dicom_node.instance.frames import Instance, open_instance

SIDE_PX = 512
_CT = UID("1.2.840.10008.5.1.4.1.1.2")
_SHIFT_PX = (7, 11)
_MAX_PIXELS = 1 << 24
_AIR_HU, _INTERCEPT_HU = -1000, -1024
# Ellipses of the phantom, one over another: centre and half axes (rows, columns; 1 is half a side),
# HU. Skin and fat, muscle, lungs, heart, spine, sternum.
_PHANTOM = (
    (0.00, 0.00, 0.66, 0.88, -100), (0.00, 0.00, 0.60, 0.82, 55), (-0.05, -0.40, 0.42, 0.30, -840),
    (-0.05, 0.40, 0.42, 0.30, -840), (-0.10, 0.06, 0.30, 0.22, 45), (0.42, 0.00, 0.12, 0.10, 400),
    (-0.52, 0.00, 0.04, 0.10, 300),
)
_NOISE_HU = 18.0


def ct_slices(sources: Sequence[Path]) -> list[Path]:
    """Return the CT slices of 512 x 512 with 16 bits allocated below `sources`, no picture twice.

    Raises
    ------
    ConfigError
        If there is none.
    """
    found: dict[bytes, Path] = {}
    for source in sources:
        paths = sorted(source.rglob("*")) if source.is_dir() else [source]
        for path in (p for p in paths if p.is_file()):
            try:
                instance = open_instance(path, max_pixels=_MAX_PIXELS)
            except (NodeError, OSError):
                continue  # a source folder may hold anything
            try:
                if _fits(instance):
                    found.setdefault(instance.frame(0).values.tobytes(), path)
            except NodeError:
                continue
            finally:
                instance.close()
    if not found:
        raise ConfigError(
            f"no CT slice of {SIDE_PX} x {SIDE_PX} with 16 bits in "
            f"{', '.join(map(str, sources))}; name a folder that has some with --source"
        )
    return list(found.values())


def phantom(path: Path) -> Path:
    """Write one made-up CT slice of a chest, with noise as a scanner's; return `path`."""
    row, column = np.mgrid[-1 : 1 : SIDE_PX * 1j, -1 : 1 : SIDE_PX * 1j]
    hounsfield = np.full((SIDE_PX, SIDE_PX), float(_AIR_HU))
    for at_row, at_column, rows, columns, value in _PHANTOM:
        inside = ((row - at_row) / rows) ** 2 + ((column - at_column) / columns) ** 2 < 1
        hounsfield[inside] = value
    noise = np.random.default_rng(1).normal(0.0, _NOISE_HU, hounsfield.shape)
    # Reconstruction makes neighbours alike.
    noise += 0.5 * (np.roll(noise, 1, 0) + np.roll(noise, 1, 1))
    stored = np.clip(np.rint(hounsfield + noise) - _INTERCEPT_HU, 0, 4095).astype(np.uint16)
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = _CT, generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.PatientID, ds.PatientName, ds.Modality = "PHANTOM", "PHANTOM", "CT"
    ds.Rows = ds.Columns = SIDE_PX
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.RescaleIntercept, ds.RescaleSlope = _INTERCEPT_HU, 1
    ds.WindowCenter, ds.WindowWidth = 40, 400
    ds.PixelData = stored.tobytes()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.save_as(path, enforce_file_format=True)
    return path


def make_instances(slices: Sequence[Path], count: int, out: Path) -> None:
    """Write `count` CT instances, each with a SOP Instance UID of its own, into `out`.

    Instance i is slice i (counted round) in one of its eight poses (quarter turns, flips), and from
    the second time through shifted by 7 rows and 11 columns more, wrapping round: real texture and
    real noise, every one another picture. Explicit VR Little Endian.
    """
    out.mkdir(parents=True)
    study, series = generate_uid(), generate_uid()
    originals = [_read(path) for path in slices]
    for number in range(count):
        header, values, meta = originals[number % len(originals)]
        turn = number // len(originals)
        varied = _varied(values, turn)
        uid = generate_uid()
        header.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = uid
        header.StudyInstanceUID, header.SeriesInstanceUID = study, series
        header.InstanceNumber = number + 1
        header.PixelData = varied.astype(np.uint16).tobytes()
        header.save_as(out / f"{number:05d}.dcm", enforce_file_format=True)


def _varied(values: NDArray[np.int32], turn: int) -> NDArray[np.int32]:
    posed = np.rot90(values[:, ::-1] if turn & 4 else values, turn & 3)
    down, right = (step * (turn // 8) for step in _SHIFT_PX)
    return np.roll(posed, (down, right), (0, 1))


def _fits(instance: Instance) -> bool:
    return (
        instance.sop_class_uid == _CT
        and (instance.rows, instance.columns) == (SIDE_PX, SIDE_PX)
        and instance.bits_allocated == 16
        and instance.frame_count == 1
        and instance.frame(0).high_bits is None
    )


def _read(path: Path) -> tuple[Dataset, NDArray[np.int32], FileMetaDataset]:
    instance = open_instance(path, max_pixels=_MAX_PIXELS)
    try:
        header, values = instance.read_header(), instance.frame(0).values
        # Containers hold the low bits of the two's complement value.
        values = values & ((1 << instance.bits_stored) - 1 if not instance.signed else 0xFFFF)
    finally:
        instance.close()
    source = header
    header = Dataset()
    header.update(source)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = _CT
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta = meta
    return header, values, meta
