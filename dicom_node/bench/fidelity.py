"""What the marks cost an image and what they stand: measured frame by frame, told by modality.

Every file is marked by `Marker` as the node does it, the written file is read back and restored,
and each chosen frame is exported to 8 bits through its window, attacked, and decoded blind.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from dicom_node.bench.attacks import ATTACKS, Picture
from dicom_node.bench.frames import MAX_PIXELS, Sample
from dicom_node.bench.measures import (
    CapacityPoint,
    Quality,
    capacity_curve,
    lossless_bytes,
    quality_of,
    same,
)
from dicom_node.bench.pictures import display_values, draw, eight_bit
from dicom_node.config import WatermarkConfig
from dicom_node.errors import PixelError
from dicom_node.inference import RobustEngine, open_engine
from dicom_node.instance.block import read_block
from dicom_node.instance.display import display_of
from dicom_node.instance.frames import Instance, open_instance
from dicom_node.keys import KeyRing, KeySet
from dicom_node.marking import Marker, MarkOutcome, restore
from dicom_node.planes import bounds_of, split
from dicom_node.watermark import integrity, robust


@dataclass(frozen=True)
class Reading:
    """One attacked picture: was the message recovered, and how many code bits were right."""

    recovered: bool
    bit_accuracy: float | None


@dataclass
class FrameResult:
    """Everything measured on one frame; `readings` by attack.

    `message` is "" where the node put no robust mark in: such a frame counts as not recovered.
    """

    path: str
    modality: str
    frame: int
    rows: int
    columns: int
    bits: int
    samples: int
    quality: Quality
    jpegls_bytes: tuple[int, int]
    jpeg2000_bytes: tuple[int, int] | None
    profile: str
    message: str
    readings: dict[str, Reading]
    false_accepts: int
    capacity: list[CapacityPoint]


@dataclass
class Result:
    """All frames; the objects restored exactly and not; what could not be marked, and why."""

    frames: list[FrameResult] = field(default_factory=list)
    exact: dict[str, int] = field(default_factory=dict)
    inexact: list[tuple[str, str]] = field(default_factory=list)
    unmarked: list[tuple[str, str]] = field(default_factory=list)
    strangers: int = 0


def run(
    samples: Sequence[Sample],
    settings: WatermarkConfig,
    *,
    pictures: Path | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Result:
    """Mark and measure every sample with keys made for the occasion.

    Parameters
    ----------
    pictures
        Folder for one picture per modality: cover, marked, difference amplified.
    """
    result = Result()
    with tempfile.TemporaryDirectory(prefix="dicom-node-bench-") as name:
        bench = _Bench(settings, Path(name), pictures)
        for sample in samples:
            bench.measure(sample, result)
            advance()
    return result


class _Bench:
    def __init__(self, settings: WatermarkConfig, folder: Path, pictures: Path | None) -> None:
        self._folder = folder
        self._pictures = pictures
        self._shown: set[str] = set()
        self._ring = KeyRing.open(folder / "keys", owner=settings.owner, create=True)
        self._stranger = KeyRing.open(folder / "stranger", owner="STRANGER", create=True).current
        engine: RobustEngine = open_engine(settings.engine)
        self._engine = engine
        self._marker = Marker(settings, self._ring, engine)
        self._robust = robust.RobustWatermark(engine, settings.profile)
        if pictures is not None:
            pictures.mkdir(parents=True, exist_ok=True)

    @property
    def _keys(self) -> KeySet:
        return self._ring.current

    def measure(self, sample: Sample, result: Result) -> None:
        """Mark, restore and measure one file."""
        source = sample.as_instance(self._folder)
        out, back = self._folder / "marked.dcm", self._folder / "restored.dcm"
        outcome = self._marker.mark(source, out, marked_at=datetime.now(UTC))
        if outcome.action != "marked":
            result.unmarked.append((str(sample.path), f"{outcome.action}: {outcome.reason}"))
            return
        restored = restore(out, back, self._ring)
        with (
            closing(open_instance(source, max_pixels=MAX_PIXELS)) as cover,
            closing(open_instance(out, max_pixels=MAX_PIXELS)) as marked,
        ):
            self._judge_restored(sample, cover, back, restored.exact, restored.reason, result)
            block = read_block(marked.header)
            blocks = block.frames if block and block.frames else ()
            for index in sample.frames:
                header_block = blocks[index] if blocks else b""
                frame = self._frame(sample, cover, marked, index, outcome, header_block)
                result.frames.append(frame)
                result.strangers += 2

    def _judge_restored(
        self, sample: Sample, cover: Instance, back: Path, exact: bool, reason: str, result: Result
    ) -> None:
        """Believe nothing: compare the restored file's pixels with the source's."""
        if exact:
            try:
                with closing(open_instance(back, max_pixels=MAX_PIXELS)) as restored:
                    exact = same(cover, restored)
                    reason = "" if exact else "the pixels differ"
            except PixelError as error:
                exact, reason = False, str(error)
        if exact:
            result.exact[sample.modality] = result.exact.get(sample.modality, 0) + 1
        else:
            result.inexact.append((str(sample.path), reason))

    def _frame(
        self, sample: Sample, cover: Instance, marked: Instance, index: int, outcome: MarkOutcome,
        header_block: bytes,
    ) -> FrameResult:  # fmt: skip
        before, after = cover.frame(index), marked.frame(index)
        display = display_of(cover)
        shown = display.image(before, index)
        planes = split(after, marked.host_index)
        check = integrity.check(
            planes.host, planes.side, bounds_of(marked), ring=self._ring,
            sop_instance_uid=marked.sop_instance_uid, frame_number=index + 1,
            header_block=header_block,
        )  # fmt: skip
        # What a viewer exports, which knows nothing of the cover.
        exported = eight_bit(display_of(marked).image(after, index))
        message = outcome.message[index]
        sizes = [lossless_bytes(cover, each) for each in (before, after)]
        second = [each[1] for each in sizes]
        if self._pictures is not None and sample.modality not in self._shown:
            self._shown.add(sample.modality)
            draw(self._pictures / f"{sample.modality}.png", eight_bit(shown), exported)
        return FrameResult(
            path=str(sample.path), modality=sample.modality, frame=index + 1, rows=cover.rows,
            columns=cover.columns, bits=cover.bits_stored, samples=cover.samples,
            quality=quality_of(cover, display, index, before, after),
            jpegls_bytes=(sizes[0][0], sizes[1][0]),
            jpeg2000_bytes=None if None in second else (second[0] or 0, second[1] or 0),
            profile=check.profile or "none", message=message,
            readings=dict(self._readings(exported, message)),
            false_accepts=self._false_accepts(eight_bit(shown), exported),
            capacity=list(capacity_curve(cover, display, index, before)),
        )  # fmt: skip

    def _readings(self, exported: Picture, message: str) -> Iterator[tuple[str, Reading]]:
        word, folds = None, 1
        if message:
            coded, shown = bytes.fromhex(message), display_values(exported)
            word, folds = self._robust.word_in(shown, coded, self._keys)
        for attack in ATTACKS:
            picture = attack.apply(exported, attack.rng())
            if word is None:
                yield attack.name, Reading(False, None)
                continue
            upright = attack.upright(picture, exported.shape, attack.rng())
            soft = self._robust.look(display_values(upright), folds)[0]
            accuracy = float(np.mean((soft > 0) == (word > 0)))
            found = self._read(picture, self._keys)
            yield attack.name, Reading(found.decoded and found.message.hex() == message, accuracy)

    def _false_accepts(self, cover: Picture, exported: Picture) -> int:
        """Count marks found where there are none: our key on the cover, another's on the marked."""
        ours, others = self._read(cover, self._keys), self._read(exported, self._stranger)
        return int(ours.decoded) + int(others.decoded)

    def _read(self, picture: Picture, keys: KeySet) -> robust.Detection:
        """Read as `verify` and `trace` do: all eight poses, and what is too weak to be decoded."""
        return self._robust.detect(display_values(picture), [keys], dihedral=True, weak=True)


def to_json(result: Result) -> dict[str, Any]:
    """Return every frame's figures, for machines."""
    return {
        "frames": [asdict(frame) for frame in result.frames],
        "objects_exact": result.exact,
        "objects_not_exact": result.inexact,
        "not_marked": result.unmarked,
        "decodes_without_our_mark": result.strangers,
        "false_accepts": sum(frame.false_accepts for frame in result.frames),
    }
