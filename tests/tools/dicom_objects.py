"""Small DICOM objects of any form, written by pydicom."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID

EXPLICIT = "1.2.840.10008.1.2.1"


@dataclass
class Making:
    """What `make` writes; every field can be overridden."""

    codes: np.ndarray
    bits_stored: int = 0
    signed: bool = False
    photometric: str = ""
    planar: int = 0
    syntax: str = EXPLICIT
    frames: int = 1
    pixel_data: bytes | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def data_set(self) -> Dataset:
        codes = self.codes
        ds = Dataset()
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.ImageType = ["ORIGINAL", "PRIMARY"]
        ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
        ds.SOPInstanceUID = "1.2.3.4.5"
        ds.StudyDate = "20260102"
        ds.Modality = "OT"
        ds.PatientName = "Ångström^Anders"
        ds.PatientID = "P1"
        ds.StudyInstanceUID = "1.2.3"
        ds.SeriesInstanceUID = "1.2.3.4"
        colour = codes.ndim - (self.frames > 1) == 3
        ds.SamplesPerPixel = 3 if colour else 1
        ds.PhotometricInterpretation = self.photometric or ("RGB" if colour else "MONOCHROME2")
        if colour:
            ds.PlanarConfiguration = self.planar
        if self.frames > 1:
            ds.NumberOfFrames = self.frames
        shape = codes.shape[1:] if self.frames > 1 else codes.shape
        ds.Rows, ds.Columns = shape[:2]
        ds.BitsAllocated = 8 * codes.dtype.itemsize
        ds.BitsStored = self.bits_stored or ds.BitsAllocated
        ds.HighBit = ds.BitsStored - 1
        ds.PixelRepresentation = int(self.signed)
        data = codes.tobytes() if self.pixel_data is None else self.pixel_data
        ds.PixelData = data + bytes(len(data) % 2)
        ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 else "OW"
        for keyword, value in self.extra.items():
            if value is None:
                del ds[keyword]
            else:
                setattr(ds, keyword, value)
        return ds

    def save(self, path: Path) -> Path:
        ds = self.data_set()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = UID(self.syntax)
        ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", "1.2")
        ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID", "1.2")
        pydicom.dcmwrite(path, ds, enforce_file_format=True)
        return path


def noise(*shape: int, bits: int = 12, seed: int = 0) -> np.ndarray:
    """Return smooth-ish unsigned samples: noise is the worst case of every encoder."""
    kind = np.uint8 if bits <= 8 else np.uint16
    return np.random.default_rng(seed).integers(0, 1 << bits, shape).astype(kind)
