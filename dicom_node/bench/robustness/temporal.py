"""Frames dropped, inserted, repeated and swapped in a marked multi-frame object.

Every frame carries its own robust mark, so none of this removes one; the question is whether the
node notices, from the frame numbers and counts that the integrity marks have signed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.encaps import encapsulate, generate_frames

from dicom_node.inference import RobustEngine
from dicom_node.keys import KeyRing
from dicom_node.verify.check import check_instance

_LEAST_FRAMES = 3
Frames = list[bytes]


@dataclass(frozen=True)
class Temporal:
    """What `verify` says after one change to the order of frames."""

    path: str
    change: str
    verdict: str
    reason: str


def _dropped(frames: Frames) -> Frames:
    middle = len(frames) // 2
    return frames[:middle] + frames[middle + 1 :]


def _repeated(frames: Frames) -> Frames:
    return [*frames[:2], *frames[1:]]


def _swapped(frames: Frames) -> Frames:
    return [frames[1], frames[0], *frames[2:]]


def _replaced(frames: Frames) -> Frames:
    return [*frames[:-1], frames[0]]


CHANGES: dict[str, Callable[[Frames], Frames]] = {
    "none": lambda frames: frames,
    "a frame dropped": _dropped,
    "a frame inserted (a repetition)": _repeated,
    "two frames swapped": _swapped,
    "the last frame replaced by the first": _replaced,
}


def changed_and_checked(
    marked: Path, source: str, ring: KeyRing, engine: RobustEngine, work: Path
) -> list[Temporal]:
    """Change the order of frames in each way and let `verify` judge; none below three frames."""
    ds = pydicom.dcmread(marked)
    count = int(ds.get("NumberOfFrames") or 1)
    if count < _LEAST_FRAMES:
        return []
    frames = _frames(ds, count)
    judged = []
    for change, function in CHANGES.items():
        path = _written(ds, function(frames), work / "reordered.dcm")
        verdict = check_instance(path, ring, engine)
        said = verdict.reason or next((f.reason for f in verdict.frames if f.reason), "")
        judged.append(Temporal(source, change, verdict.verdict, said))
        path.unlink()
    return judged


def _frames(ds: pydicom.Dataset, count: int) -> Frames:
    data = ds.PixelData
    if ds.file_meta.TransferSyntaxUID.is_encapsulated:
        return list(generate_frames(data, number_of_frames=count))
    size = len(data) // count
    return [data[at : at + size] for at in range(0, size * count, size)]


def _written(ds: pydicom.Dataset, frames: Sequence[bytes], path: Path) -> Path:
    """Write the object with other frames; its functional groups stay as they were signed."""
    element = ds["PixelData"]
    kept, count = element.value, ds.NumberOfFrames
    encapsulated = ds.file_meta.TransferSyntaxUID.is_encapsulated
    try:
        ds.NumberOfFrames = len(frames)
        plain = b"".join(frames)
        ds.PixelData = encapsulate(list(frames)) if encapsulated else plain + bytes(len(plain) % 2)
        ds["PixelData"].is_undefined_length = encapsulated
        ds.save_as(path)
    finally:
        ds.PixelData, ds.NumberOfFrames = kept, count
    return path
