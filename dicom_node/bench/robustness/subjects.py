"""Frames to attack: marked by the node's own code, exported as a viewer does it, kept in files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom_node.bench.attacks.base import Pair, Picture, Source
from dicom_node.bench.frames import MAX_PIXELS, Sample
from dicom_node.bench.pictures import eight_bit
from dicom_node.bench.robustness.temporal import Temporal, changed_and_checked
from dicom_node.config import WatermarkConfig
from dicom_node.inference import RobustEngine
from dicom_node.instance.display import display_of
from dicom_node.instance.frames import Instance, open_instance
from dicom_node.instance.model import StoredFrame
from dicom_node.keys import KeyRing
from dicom_node.marking import Marker
from dicom_node.watermark import quality

_STORED_RATIO = 20
_LEAST_UNSATURATED = 64


@dataclass(frozen=True)
class Subject:
    """One marked frame.

    Attributes
    ----------
    file
        Its exports and cover, for `exports` and `pair`.
    message
        What W1 says, hex; "" where the node put none in.
    psnr_db, ssim
        Marked against cover in the display window, peak 1.
    """

    file: Path
    path: str
    modality: str
    frame: int
    rows: int
    columns: int
    message: str
    psnr_db: float
    ssim: float

    @property
    def pixels(self) -> int:
        """Pixels of the frame."""
        return self.rows * self.columns

    @property
    def identity(self) -> str:
        """What seeds the attacks on it."""
        return f"{Path(self.path).name}/{self.frame}"

    def exports(self) -> dict[Source, Picture]:
        """Read the pictures of the marked frame."""
        names: tuple[Source, ...] = ("plain", "wide", "narrow", "shifted", "stored")
        with np.load(self.file) as kept:
            return {name: np.asarray(kept[name], np.uint8) for name in names}

    def pair(self) -> Pair:
        """Read the plain export and the cover's."""
        with np.load(self.file) as kept:
            return Pair(np.asarray(kept["plain"], np.uint8), np.asarray(kept["cover"], np.uint8))


@dataclass(frozen=True)
class Unmarked:
    """A file the node would not mark, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Exported:
    """The marked frames of a file, and what `verify` says when their order is changed."""

    subjects: list[Subject]
    temporal: list[Temporal]


class Exporter:
    """Marks samples and keeps the exports of their frames in a folder."""

    def __init__(
        self, settings: WatermarkConfig, ring: KeyRing, engine: RobustEngine, folder: Path
    ) -> None:
        self._marker = Marker(settings, ring, engine)
        self._ring, self._engine = ring, engine
        self._folder = folder

    def export(self, number: int, sample: Sample) -> Exported | Unmarked:
        """Mark one sample; `number` keeps its files apart from those of the others."""
        work = self._folder / f"{number:05}"
        work.mkdir(parents=True, exist_ok=True)
        source, out = sample.as_instance(work), work / "marked.dcm"
        outcome = self._marker.mark(source, out, marked_at=datetime.now(UTC))
        if outcome.action != "marked":
            return Unmarked(str(sample.path), f"{outcome.action}: {outcome.reason}")
        with (
            closing(open_instance(source, max_pixels=MAX_PIXELS)) as cover,
            closing(open_instance(out, max_pixels=MAX_PIXELS)) as marked,
        ):
            subjects = list(_subjects(sample, cover, marked, outcome.message, work))
        temporal = changed_and_checked(out, str(sample.path), self._ring, self._engine, work)
        out.unlink()
        return Exported(subjects, temporal)


def _subjects(
    sample: Sample, cover: Instance, marked: Instance, messages: tuple[str, ...], work: Path
) -> Iterator[Subject]:
    display, seen = display_of(cover), display_of(marked)
    for index in sample.frames:
        before, after = cover.frame(index), marked.frame(index)
        shown = display.image(before, index)
        # What a viewer exports, which knows nothing of the cover.
        plain = seen.image(after, index)
        wide = unclipped(marked, after, plain)
        coded = seen.image(compressed(marked, after), index, like=after)
        file = work / f"{index:05}.npz"
        np.savez(
            file, cover=eight_bit(shown), plain=eight_bit(plain), stored=eight_bit(coded),
            wide=_through(wide, 0.5, 1.5), narrow=_through(wide, 0.5, 0.6),
            shifted=_through(wide, 0.75, 1.0),
        )  # fmt: skip
        compared = display.image(after, index, like=before)
        yield Subject(
            file=file, path=str(sample.path), modality=sample.modality, frame=index + 1,
            rows=cover.rows, columns=cover.columns, message=messages[index],
            psnr_db=quality.psnr_db(shown, compared), ssim=quality.ssim(shown, compared),
        )  # fmt: skip


def _through(shown: NDArray[np.float32], centre: float, width: float) -> Picture:
    """Return what another window shows; its middle and width are shares of the first one's."""
    return eight_bit(np.clip((shown - centre) / np.float32(width) + np.float32(0.5), 0, 1))


def unclipped(
    instance: Instance, frame: StoredFrame, shown: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return display values with what the window cut off, by the line through those it shows.

    Colour, and a frame with hardly an unsaturated pixel, come back as they are. Padding stays 0.
    """
    if instance.samples != 1:
        return shown
    inside = (shown > 0) & (shown < 1)
    if int(inside.sum()) < _LEAST_UNSATURATED or np.ptp(frame.values[inside]) == 0:
        return shown
    slope, offset = np.polyfit(frame.values[inside].astype(np.float64), shown[inside], 1)
    wide: NDArray[np.float32] = (frame.values * slope + offset).astype(np.float32)
    if instance.padding is not None:
        low, high = instance.padding
        wide[(frame.values >= low) & (frame.values <= high)] = 0
    return wide


def compressed(instance: Instance, frame: StoredFrame, ratio: int = _STORED_RATIO) -> StoredFrame:
    """Return the stored values after irreversible JPEG 2000, `ratio` to 1 of the bits stored."""
    wide = instance.bits_stored > 8
    container = 16 if wide else 8
    raised = frame.values - instance.low
    codes: NDArray[np.integer] = raised.astype(np.uint16 if wide else np.uint8)
    share = round(1000 / ratio * instance.bits_stored / container)
    done, code = cv2.imencode(".jp2", codes, [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, share])
    assert done, "OpenCV writes JPEG 2000"
    read = np.asarray(cv2.imdecode(code, cv2.IMREAD_UNCHANGED)).reshape(codes.shape)
    values = np.clip(read.astype(np.int32) + instance.low, instance.low, instance.high)
    return StoredFrame(values)
