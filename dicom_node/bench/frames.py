"""What fidelity is measured on: real frames that the networks were not trained on."""

from __future__ import annotations

import csv
import hashlib
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicom_node.errors import ConfigError, PixelError
from dicom_node.instance.frames import open_instance

MAX_PIXELS = 1 << 28
_MANIFEST = "MANIFEST.csv"
_PICTURES = frozenset((".webp", ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"))
_SECONDARY_CAPTURE = UID("1.2.840.10008.5.1.4.1.1.7")
_LEAST_SIDE_PX = 48


@dataclass(frozen=True)
class Sample:
    """One file of the test set.

    Attributes
    ----------
    modality
        As the manifest says it, else the header, else ``picture``.
    frames
        Indexes (from 0) of the frames that are measured.
    """

    path: Path
    modality: str
    group: str
    frames: tuple[int, ...]

    @property
    def is_picture(self) -> bool:
        """Whether it is an 8-bit picture that `as_instance` has to wrap."""
        return self.path.suffix.lower() in _PICTURES

    def as_instance(self, folder: Path) -> Path:
        """Return a DICOM file of it: itself, or a Secondary Capture of the picture in `folder`."""
        return wrap_picture(self.path, folder / "cover.dcm") if self.is_picture else self.path


def select(folders: Sequence[Path], *, limit: int | None = None) -> list[Sample]:
    """Return the files to measure, no pixels twice.

    A folder with a ``MANIFEST.csv`` gives those of its files that ``testset.toml`` names; any other
    folder gives everything that can be decoded.

    Parameters
    ----------
    limit
        Most frames of a modality, evenly taken from what there is.

    Raises
    ------
    ConfigError
        If there is nothing to measure.
    """
    rules = _rules()
    candidates: list[tuple[Path, str, str]] = []
    for folder in folders:
        if not folder.exists():
            raise ConfigError(f"{folder}: no such file or folder")
        listed = (folder / _MANIFEST).is_file()
        candidates += _listed(folder, rules) if listed else _unlisted(folder)
    seen: set[bytes] = set()
    samples = []
    for path, modality, group in candidates:
        sample = _sample(path, modality, group, int(rules["frames_per_object"]), seen)
        if sample is not None:
            samples.append(sample)
    if not samples:
        named = ", ".join(map(str, folders))
        raise ConfigError(f"{named}: no frame of at least {_LEAST_SIDE_PX} pixels to measure")
    return samples if limit is None else list(_limited(samples, limit))


def wrap_picture(path: Path, out: Path) -> Path:
    """Write an 8-bit picture as a Secondary Capture object (ConfigError if it cannot be read)."""
    values = _picture(path)
    colour = values.ndim == 3
    digest = int.from_bytes(hashlib.sha3_256(values.tobytes()).digest()[:12], "big")
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = _SECONDARY_CAPTURE
    meta.MediaStorageSOPInstanceUID = UID(f"2.25.{digest}")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = Dataset()
    ds.file_meta = meta
    ds.SOPClassUID, ds.SOPInstanceUID = _SECONDARY_CAPTURE, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"2.25.{digest}.1", f"2.25.{digest}.2"
    ds.Modality, ds.ConversionType, ds.PatientID = "OT", "WSD", "BENCH"
    ds.Rows, ds.Columns = values.shape[:2]
    ds.SamplesPerPixel = 3 if colour else 1
    ds.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        ds.PlanarConfiguration = 0
    else:  # the whole range is the window: the picture is in display values already
        ds.WindowCenter, ds.WindowWidth = "128", "256"
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ds.PixelData = values.tobytes() + bytes(values.size % 2)
    ds.save_as(out, enforce_file_format=True)
    return out


def _rules() -> dict[str, Any]:
    text = resources.files("dicom_node.bench").joinpath("testset.toml").read_text("utf-8")
    return tomllib.loads(text)


def _listed(folder: Path, rules: Mapping[str, Any]) -> Iterator[tuple[Path, str, str]]:
    """Yield what the rules select from a manifest, as (path, modality, group)."""
    dicom, pictures = rules["dicom"], rules["pictures"]
    groups, held_out = set(dicom["groups"]), set(pictures["held_out"])
    place: Counter[str] = Counter()
    with (folder / _MANIFEST).open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            path, group = row["path"], row["group"]
            if path.startswith("dicom/"):
                wanted, every = group in groups, dicom["every"].get(group, 1)
            else:
                whole = any(path.startswith(f"{each}/") for each in pictures["whole_folders"])
                wanted = whole or (path.startswith("whole/") and group in held_out)
                every = pictures["every"].get(group, 1)
            if not wanted:
                continue
            place[group] += 1
            if (place[group] - 1) % every == 0 and (folder / path).is_file():
                yield folder / path, row["modality"] or "OT", group


def _unlisted(folder: Path) -> Iterator[tuple[Path, str, str]]:
    paths = sorted(folder.rglob("*")) if folder.is_dir() else [folder]
    for path in paths:
        if path.is_file():
            picture = path.suffix.lower() in _PICTURES
            yield path, "picture" if picture else "", ""


def _sample(
    path: Path, modality: str, group: str, most: int, seen: set[bytes]
) -> Sample | None:
    """Return the sample, or None where there is nothing to decode, or nothing new."""
    if path.suffix.lower() in _PICTURES:
        picture = _picture(path)
        found: tuple[bytes, int, int] = picture.tobytes(), 1, min(picture.shape[:2])
    else:
        try:
            with closing(open_instance(path, max_pixels=MAX_PIXELS)) as instance:
                pixels = instance.frame(0).values.tobytes()
                found = pixels, instance.frame_count, min(instance.rows, instance.columns)
                modality = modality or instance.modality or "OT"
        except PixelError:
            return None
    pixels, count, side = found
    digest = hashlib.sha3_256(pixels).digest()
    if side < _LEAST_SIDE_PX or digest in seen:
        return None
    seen.add(digest)
    return Sample(path, modality, group, _spread(count, most))


def _spread(count: int, most: int) -> tuple[int, ...]:
    """Return at most `most` of ``range(count)``, evenly spread."""
    if count <= most:
        return tuple(range(count))
    return tuple(int(i) for i in np.linspace(0, count - 1, most).round())


def _limited(samples: Sequence[Sample], limit: int) -> Iterator[Sample]:
    """Yield samples with at most `limit` frames of each modality, taken from all over the list."""
    by_modality: dict[str, list[Sample]] = {}
    for sample in samples:
        by_modality.setdefault(sample.modality, []).append(sample)
    for some in by_modality.values():
        left = limit
        chosen = [some[i] for i in _spread(len(some), limit)]
        for number, sample in enumerate(chosen):
            share = -(-left // (len(chosen) - number))
            picked = [sample.frames[i] for i in _spread(len(sample.frames), share)]
            left -= len(picked)
            yield replace(sample, frames=tuple(picked))


def _picture(path: Path) -> NDArray[np.uint8]:
    """Return ``(rows, columns)`` uint8, or ``(rows, columns, 3)`` RGB where there is colour."""
    read = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if read is None:
        raise ConfigError(f"{path}: not a picture that can be read")
    rgb = np.asarray(read[..., ::-1], np.uint8)
    grey = bool((rgb == rgb[..., :1]).all())
    return np.ascontiguousarray(rgb[..., 0] if grey else rgb)
