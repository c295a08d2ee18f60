"""What is tampered with: five real objects, marked by the node, and another picture for each."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
import pydicom
from pydicom.pixels import pixel_array
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from dicom_node.config import WatermarkConfig
from dicom_node.inference import open_engine
from dicom_node.instance.display import display_of
from dicom_node.instance.frames import open_instance
from dicom_node.keys import KeyRing, KeySet
from dicom_node.marking import Marker
from dicom_node.registry.records import DeliveryEntry, MarkedInstance
from dicom_node.verify.check import check_instance

WHEN = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)
LATER = datetime(2026, 11, 22, 9, 0, tzinfo=UTC)
# name: the object, whose picture is pasted from, frames kept of a loop
OBJECTS = {
    "CT": ("ct_series/liver_3slice_GE_LightSpeedUltra/01.dcm",
           "ct_tcia_covid/A002304/19010112-124.dcm", 1),
    "MR": ("mr_series/brain_GE_SIGNA_19slices/brain_010.dcm",
           "mr_series/brain_GE_SIGNA_19slices/brain_004.dcm", 1),
    "CR": ("cr_dx/pylibjpeg-data__RG3_J2KR.dcm", "cr_dx/pylibjpeg-data__RG2_JLSN.dcm", 1),
    "US colour": ("us/pydicom__examples_rgb_color.dcm", "us/pydicom__examples_ybr_color.dcm", 1),
    "multi-frame": ("us/pydicom__examples_ybr_color.dcm", "us/pydicom__examples_rgb_color.dcm", 10),
}  # fmt: skip


def samples(path):
    """Return stored values, ``(frames, rows, columns[, samples])``, in no other colour space."""
    ds = pydicom.dcmread(path)
    values = pixel_array(ds, raw=True)
    return values if int(ds.get("NumberOfFrames") or 1) > 1 else values[None]


def rewritten(path, out, values=None, change=None):
    """Write an object natively, with other stored values or another header."""
    ds = pydicom.dcmread(path)
    values = samples(path) if values is None else values
    ds.PixelData = np.ascontiguousarray(values).tobytes() + bytes(values.nbytes % 2)
    ds["PixelData"].VR = "OB" if values.dtype.itemsize == 1 else "OW"
    ds["PixelData"].is_undefined_length = False
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if len(values) > 1 or "NumberOfFrames" in ds:
        ds.NumberOfFrames = len(values)
    if values.ndim == 4:
        ds.PlanarConfiguration = 0
        if "422" in ds.PhotometricInterpretation:
            ds.PhotometricInterpretation = "YBR_FULL"
    if change is not None:
        change(ds)
    ds.save_as(out, enforce_file_format=True)
    return out


def with_header(path, out, change):
    """Write an object with another header and the pixel data as they lie there."""
    ds = pydicom.dcmread(path)
    change(ds)
    ds.save_as(out)
    return out


class Bench:
    """A node's marker and keys, and the verdict of its check."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Always the same: what the robust mark survives hangs on its message.
        keys = KeySet.from_master(bytes(range(32)), "TEST-HOSPITAL", WHEN)
        self.ring = KeyRing((keys,))
        self.engine = open_engine("onnx")
        self._marker = Marker(WatermarkConfig(), self.ring, self.engine)
        self._fingerprints = {}
        self.entries = {}

    def mark(self, source, out, when=WHEN):
        """Mark, and remember what the registry does; return where the result is."""
        entry = self.entries[out] = self.delivered(source, out, when)
        for frame in entry.frames:
            if frame.message and frame.fingerprint:
                self._fingerprints.setdefault(frame.message, []).append(frame.fingerprint)
        return out

    def delivered(self, source, out, when):
        """Mark, and return what the registry keeps once it is delivered."""
        outcome = self._marker.mark(source, out, marked_at=when)
        assert outcome.action == "marked", outcome.reason
        at = when.timestamp()
        return MarkedInstance(
            outcome.sop_instance_uid, outcome.series_instance_uid, outcome.study_instance_uid,
            outcome.sop_class_uid, outcome.transfer_syntax_uid, outcome.action,
            sha256(source.read_bytes()).digest(), sha256(out.read_bytes()).digest(),
            self.ring.current.key_id, int(at), at, "MODALITY", frames=outcome.facts.frames,
            deliveries=(DeliveryEntry("pacs", 0, at + 1),),
        )  # fmt: skip

    def known(self, message):
        """Answer as the registry does: the fingerprints of the frames with this message."""
        return self._fingerprints.get(message, ())

    def verdict(self, path, *, registry=True):
        known = self.known if registry else None
        return check_instance(path, self.ring, self.engine, known=known)


@dataclass
class Subject:
    """One object: as it was, as it left the node, and the same of another picture of its size.

    `twin` is another patient's, `sibling` the next instance of the same series.
    """

    name: str
    folder: Path
    bench: Bench
    source: Path
    marked: Path
    twin_source: Path
    twin: Path
    sibling: Path

    @property
    def loop(self):
        return len(self.values) > 1

    @cached_property
    def values(self):
        return samples(self.marked)

    @cached_property
    def display(self):
        """The first frame of the source in its display window, 8 bit."""
        instance = open_instance(self.source, max_pixels=1 << 28)
        try:
            return display_of(instance).export_8bit(instance.frame(0), 0)
        finally:
            instance.close()

    @cached_property
    def spot(self):
        """Row and column of the middle of a place with structure, off the edges of the tiles."""
        grey = self.display if self.display.ndim == 2 else self.display.mean(axis=2)
        grey = grey.astype(np.float32)
        mean = cv2.blur(grey, (41, 41))
        spread = cv2.blur(grey * grey, (41, 41)) - mean * mean
        rows, columns = grey.shape
        spread[: rows // 4] = spread[-(rows // 4) :] = -1
        spread[:, : columns // 4] = spread[:, -(columns // 4) :] = -1
        return tuple(map(int, np.unravel_index(np.argmax(spread), spread.shape)))

    def ellipse(self):
        """Return the mask of an ellipse about `spot`, a tenth of the picture across."""
        rows, columns = self.display.shape[:2]
        radius = max(min(rows, columns) // 20, 8)
        mask = np.zeros((rows, columns), np.uint8)
        cv2.ellipse(mask, self.spot[::-1], (radius, int(radius * 0.7)), 20, 0, 360, 1, -1)
        return mask.astype(bool)


def subject(name, bench, data):
    """Mark one of `OBJECTS` and its twin: another picture under UIDs and a patient of its own."""
    path, other, frames = OBJECTS[name]
    folder = bench.folder / name.replace(" ", "-")
    folder.mkdir()
    source = data / "dicom" / path
    if frames > 1:
        source = rewritten(source, folder / "source.dcm", samples(source)[:frames])
    values = samples(source)
    picture = _fitted(samples(data / "dicom" / other)[0], values[0])

    def another(ds):
        ds.SOPInstanceUID = generate_uid(entropy_srcs=[name, "instance"])
        ds.SeriesInstanceUID = generate_uid(entropy_srcs=[name, "series"])
        ds.StudyInstanceUID = generate_uid(entropy_srcs=[name, "study"])
        ds.PatientID, ds.PatientName = "OTHER", "OTHER^PATIENT"

    # A loop's twin moves: every frame is another view of the picture.
    moved = np.stack([np.roll(picture, 3 * k, axis=1) for k in range(len(values))])
    def next_one(ds):
        ds.SOPInstanceUID = generate_uid(entropy_srcs=[name, "sibling"])

    twin_source = rewritten(source, folder / "twin-source.dcm", moved, another)
    sibling = rewritten(source, folder / "sibling-source.dcm", moved[:, ::-1], next_one)
    return Subject(
        name, folder, bench, source, bench.mark(source, folder / "marked.dcm"), twin_source,
        bench.mark(twin_source, folder / "twin.dcm"), bench.mark(sibling, folder / "sibling.dcm"),
    )  # fmt: skip


def _fitted(picture, like):
    """Return a picture in the size, range and type of another one."""
    if picture.ndim > like.ndim:
        picture = picture[..., 0]
    fitted = cv2.resize(picture.astype(np.float32), like.shape[1::-1], interpolation=cv2.INTER_AREA)
    low, high = np.percentile(fitted, (0.1, 99.9))
    to = np.percentile(like, (0.1, 99.9))
    scaled = (fitted - low) / max(high - low, 1) * (to[1] - to[0]) + to[0]
    return np.clip(np.rint(scaled), like.min(), like.max()).astype(like.dtype)
