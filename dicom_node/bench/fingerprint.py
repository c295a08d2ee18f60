"""How well the fingerprint tells an edit from processing: on frames its networks never saw.

Frames are marked as the node marks them, exported, edited, and processed; the result is compared
with the fingerprint that was signed. Frames of ``whole/val`` set the threshold and are left out.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom_node.bench.attacks import PLAIN, SUITE, Picture
from dicom_node.bench.attacks.base import Rng, steady
from dicom_node.bench.edits import EDITS, SIZES
from dicom_node.bench.fingerprint_baseline import signature, signature_scores
from dicom_node.bench.frames import MAX_PIXELS, Sample
from dicom_node.bench.pictures import display_values, eight_bit
from dicom_node.errors import ConfigError, NodeError
from dicom_node.frame_marking import FrameMarker
from dicom_node.inference import open_engine
from dicom_node.inference.fingerprinter import open_fingerprinter
from dicom_node.instance.display import display_of
from dicom_node.instance.frames import open_instance
from dicom_node.keys import KeyRing
from dicom_node.verify.report import outlined
from dicom_node.watermark import fingerprint

Process = Callable[[Picture, Rng], Picture]
Scores = NDArray[np.float32]

LONGEST_PX = 512  # frames are exported no larger
CALIBRATION = "whole/val"
CHANGED, SAME = 0.025, 0.004  # mean change of a cell, of the window: from, and up to, which
REQUIRED = "JPEG 70, scaled x 0.75"
_NAMED = (
    PLAIN, "JPEG 90", "JPEG 70", "JPEG 50", "WebP 80", "JPEG 2000 10:1", "blur 7 x 7",
    "mean 3 x 3", "median 3 x 3", "half size", "scaled x 0.75", "scaled x 1.5", "scaled x 2",
    "gamma 0.5", "gamma 2", "hist. equalised", "CLAHE", "brightness +50", "brightness -50",
    "contrast x 1.5", "contrast x 0.6", "Gaussian noise 0.0005", "Gaussian noise 0.001",
)  # fmt: skip
_EDITED_THEN = (PLAIN, REQUIRED, "JPEG 50", "blur 7 x 7", "gamma 0.5", "hist. equalised")
_PICTURES_A_MODALITY = 2


def processes() -> dict[str, Process]:
    """Return what a picture goes through that leaves its content as it is, by name."""
    named = {attack.name: attack.apply for attack in SUITE if attack.name in _NAMED}
    small, coded = named["scaled x 0.75"], named["JPEG 70"]
    named[REQUIRED] = lambda picture, rng: small(coded(picture, rng), rng)
    named["window 0.7 times as wide"] = steady(lambda p: _windowed(p, 0.15, 0.85))
    named["window 1.5 times as wide"] = steady(lambda p: _windowed(p, -0.25, 1.25))
    return named


def _windowed(picture: Picture, low: float, high: float) -> NDArray[np.floating]:
    return np.rint(np.clip((picture / 255 - low) / (high - low), 0, 1) * 255)


@dataclass(frozen=True)
class Subject:
    """One marked frame: its picture as exported, and its fingerprint."""

    name: str
    modality: str
    picture: Picture
    features: bytes
    signed: bool
    baseline: NDArray[np.bool_]


@dataclass(frozen=True)
class Trial:
    """One comparison.

    Attributes
    ----------
    edit, size
        "" and 0 where nothing was edited.
    scores, baseline
        Of every cell, ``(16, 16)``: by the networks, and by a hand-made signature of equal size.
    marked
        1 for cells that were changed, 0 for untouched ones, -1 for those in between.
    found
        Cells the node calls changed.
    """

    modality: str
    process: str
    edit: str
    size: int
    scores: Scores
    baseline: Scores
    marked: NDArray[np.int8]
    found: NDArray[np.bool_]


@dataclass
class Result:
    """Everything measured."""

    trials: list[Trial] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    signed: int = 0
    frames: dict[str, int] = field(default_factory=dict)
    unseen: int = 0
    left_out: list[str] = field(default_factory=list)

    def some(
        self, *, edited: bool, modality: str = "", process: str = "", edit: str = "", size: int = 0
    ) -> list[Trial]:
        """Return the trials of a kind; "" and 0 stand for any."""
        return [
            t for t in self.trials
            if bool(t.edit) == edited and modality in ("", t.modality)
            and process in ("", t.process) and edit in ("", t.edit) and size in (0, t.size)
        ]  # fmt: skip


def run(
    samples: Sequence[Sample], profile: str, *, pictures: Path | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Result:  # fmt: skip
    """Measure.

    Parameters
    ----------
    profile
        ``[watermark] profile``.
    pictures
        Folder for pictures of edits that were looked for.
    """
    chosen = [each for each in samples if CALIBRATION not in each.path.as_posix()]
    if not chosen:
        raise ConfigError(f"no frame to measure on beside those of {CALIBRATION}")
    result = Result()
    subjects: list[Subject] = []
    with tempfile.TemporaryDirectory(prefix="dicom-node-") as name:
        ring = KeyRing.open(Path(name) / "keys", owner="BENCH", create=True)
        marker = FrameMarker(open_engine("onnx"), profile, ring.current)
        for sample in chosen:
            try:
                subjects += _subjects(sample, marker, Path(name))
            except NodeError as error:
                result.left_out.append(f"{sample.path.name}: {error}")
    for subject in subjects:
        result.frames[subject.modality] = result.frames.get(subject.modality, 0) + 1
        result.sizes.append(len(subject.features))
        result.signed += subject.signed
    step = max(1, len(subjects) // len(chosen))
    for number, subject in enumerate(subjects):
        result.trials += _processed(subject)
        result.trials += _edited(subject, _donor(subjects, number), result, pictures)
        if number % step == 0:
            advance()
    return result


def _subjects(sample: Sample, marker: FrameMarker, folder: Path) -> Iterator[Subject]:
    with closing(open_instance(sample.as_instance(folder), max_pixels=MAX_PIXELS)) as instance:
        display = display_of(instance)
        for index in sample.frames:
            marks = marker.mark(
                instance, display, instance.frame(index), index, (), datetime.now(UTC), {}
            )
            factor = min(1.0, LONGEST_PX / max(marks.shown.shape))
            rows, columns = (max(1, round(side * factor)) for side in marks.shown.shape)
            small = cv2.resize(marks.shown, (columns, rows), interpolation=cv2.INTER_AREA)
            yield Subject(
                f"{sample.path.name}/{index + 1}", sample.modality,
                eight_bit(np.asarray(small, np.float32)), marks.features, marks.features_signed,
                signature(marks.cover),
            )  # fmt: skip


def _donor(subjects: Sequence[Subject], number: int) -> Picture:
    """Return the picture of another file of the same modality, else of the next one."""
    own = subjects[number]
    file = own.name.rpartition("/")[0]
    after = [*subjects[number + 1 :], *subjects[:number]]
    others = [each for each in after if each.name.rpartition("/")[0] != file] or after or [own]
    alike = [each for each in others if each.modality == own.modality]
    return (alike or others)[0].picture


def _processed(subject: Subject) -> Iterator[Trial]:
    marked = np.zeros((16, 16), np.int8)
    for name, process in processes().items():
        rng = np.random.default_rng(20261122)
        yield _trial(subject, process(subject.picture, rng), name, "", 0, marked)


def _edited(
    subject: Subject, donor: Picture, result: Result, pictures: Path | None
) -> Iterator[Trial]:
    chosen = processes()
    for number, (edit, change) in enumerate(EDITS.items()):
        for size in SIZES:
            rng = np.random.default_rng([zlib.crc32(subject.name.encode()), number, size])
            forged = change(subject.picture, donor, size, rng)
            marked = labels(subject.picture, forged)
            if not (marked == 1).any():
                result.unseen += 1
                continue
            for name in _EDITED_THEN:
                seen = chosen[name](forged, rng)
                trial = _trial(subject, seen, name, edit, size, marked)
                yield trial
                if pictures is not None and name == REQUIRED and size == SIZES[1]:
                    _draw(pictures, subject, seen, trial)


def _trial(
    subject: Subject, picture: Picture, process: str, edit: str, size: int,
    marked: NDArray[np.int8],
) -> Trial:  # fmt: skip
    shown = display_values(picture)
    made = fingerprint.compare(subject.features, shown, open_fingerprinter())
    return Trial(
        subject.modality, process, edit, size, made.scores,
        signature_scores(subject.baseline, shown), marked, made.changed,
    )  # fmt: skip


def labels(before: Picture, after: Picture, cells: int = 16) -> NDArray[np.int8]:
    """Return 1 for cells that were changed, 0 for untouched ones, -1 for those in between."""
    change = np.abs(after.astype(np.float32) - before) / 255
    mean = cv2.resize(change, (cells, cells), interpolation=cv2.INTER_AREA)
    return np.where(mean >= CHANGED, 1, np.where(mean <= SAME, 0, -1)).astype(np.int8)


def _draw(folder: Path, subject: Subject, picture: Picture, trial: Trial) -> None:
    stem = f"{subject.modality}-{trial.edit.replace(' ', '-')}"
    folder.mkdir(parents=True, exist_ok=True)
    if len(list(folder.glob(f"{stem}-*.png"))) >= _PICTURES_A_MODALITY:
        return
    made = fingerprint.Comparison(trial.scores, trial.found, np.ones_like(trial.found))
    size = picture.shape[::-1]
    truth = cv2.resize((trial.marked == 1).astype(np.uint8) * 255, size, interpolation=0)
    shown = [cv2.cvtColor(each, cv2.COLOR_GRAY2BGR) for each in (picture, truth)]
    strip = np.hstack([shown[0], outlined(picture, made.boxes(picture.shape)), shown[1]])
    count = len(list(folder.glob(f"{stem}-*.png")))
    if not cv2.imwrite(str(folder / f"{stem}-{count + 1}.png"), strip):
        raise ConfigError(f"{folder}: cannot be written")


def false_alarms(trials: Iterable[Trial]) -> float:
    """Return the share of trials in which some cell is called changed."""
    return float(np.mean([t.found.any() for t in trials]))


def found(trials: Iterable[Trial]) -> float:
    """Return the share of trials in which a changed cell is called changed."""
    return float(np.mean([(t.found & (t.marked == 1)).any() for t in trials]))


def overlap(trials: Iterable[Trial]) -> float:
    """Return the mean intersection over union of cells; what lies in between counts for neither."""
    ratios = []
    for trial in trials:
        asked = trial.marked >= 0
        truth, said = (trial.marked == 1) & asked, trial.found & asked
        ratios.append((truth & said).sum() / max(1, (truth | said).sum()))
    return float(np.mean(ratios))


def area(trials: Sequence[Trial], *, baseline: bool = False) -> float:
    """Return the area under the ROC curve of cells."""
    scores = np.stack([t.baseline if baseline else t.scores for t in trials])
    marked = np.stack([t.marked for t in trials])
    changed, same = scores[marked == 1], np.sort(scores[marked == 0])
    below = np.searchsorted(same, changed, "left") + np.searchsorted(same, changed, "right")
    return float(below.mean() / 2 / len(same))


def baseline_found(result: Result, edited: Sequence[Trial]) -> float:
    """Return what the hand-made signature finds at 1 % false alarms, its threshold set here."""
    highest = [float(t.baseline.max()) for t in result.some(edited=False)]
    limit = float(np.quantile(highest, 0.99))
    hits = [(t.baseline[t.marked == 1] > limit).any() for t in edited]
    return float(np.mean(hits))


def to_json(result: Result) -> dict[str, Any]:
    """Return the figures."""
    edited = result.some(edited=True, process=REQUIRED)
    figures: Mapping[str, Any] = {
        "frames": result.frames,
        "bytes_mean": float(np.mean(result.sizes)),
        "signed_share": result.signed / len(result.sizes),
        "false_alarms": false_alarms(result.some(edited=False)),
        "auc": area(edited), "auc_baseline": area(edited, baseline=True),
        "found": found(edited), "iou": overlap(edited),
        "found_baseline": baseline_found(result, edited),
        "by_process": {
            name: false_alarms(result.some(edited=False, process=name)) for name in processes()
        },
        "left_out": result.left_out,
    }  # fmt: skip
    return dict(figures)
