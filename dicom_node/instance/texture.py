"""A small picture made here: what a worker marks before the first real one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

SIDE_PX = 256
_UID = UID("2.25.314159265358979323846")


def write_texture(path: Path) -> None:
    """Write a Secondary Capture of `SIDE_PX` x `SIDE_PX`, 12 of 16 bits, smooth with some grain."""
    rng = np.random.default_rng(1)
    row, column = np.mgrid[:SIDE_PX, :SIDE_PX] / SIDE_PX
    values = 2000 + 800 * np.sin(9 * row) * np.cos(7 * column) + rng.normal(0, 20, row.shape)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = SecondaryCaptureImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = _UID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.StudyInstanceUID = ds.SeriesInstanceUID = _UID
    ds.Modality, ds.PhotometricInterpretation, ds.SamplesPerPixel = "OT", "MONOCHROME2", 1
    ds.Rows = ds.Columns = SIDE_PX
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.WindowCenter, ds.WindowWidth = 2000, 2400
    ds.PixelData = values.astype("<u2").tobytes()
    ds.save_as(path, enforce_file_format=True)
