"""One run of the suite: mark every sample once, attack every frame, put the results together."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dicom_node.bench.attacks import Attack
from dicom_node.bench.attacks.video import NOT_MEASURED
from dicom_node.bench.frames import Sample
from dicom_node.bench.pictures import draw
from dicom_node.bench.robustness import workers
from dicom_node.bench.robustness.comparing import PeerResult, comparable
from dicom_node.bench.robustness.peers import available
from dicom_node.bench.robustness.reading import Strangers
from dicom_node.bench.robustness.subjects import Subject, Unmarked
from dicom_node.bench.robustness.temporal import Temporal
from dicom_node.bench.robustness.workers import FrameResult, Setting, Task, Workers
from dicom_node.config import WatermarkConfig
from dicom_node.keys import KeyRing

FALSE_ACCEPTS_OF = 10_000  # decodes without our mark, at least
_TO_SPARE = 1.6  # times as many: not every attack is tried on every frame, or on covers
_MOST_STRANGERS = 8
_ATTACKERS = 3  # keys that attackers mark with: never those that must read nothing
_OTHERS = 10
_OTHERS_MOST_PX = 512 * 512
_TRAINED_ON = 40
_FOLDS = 2

Stage = Callable[[int, str], AbstractContextManager[Callable[[], None]]]


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes
    ----------
    processes
        How many work at once.
    search_s, search_frames
        Budget of one search for a pose, CPU seconds (0 for none), and the most frames of each
        modality that attacks are tried on which need it.
    peer_frames
        Frames of each modality on which the peers are run; 0 for none.
    pictures
        Folder for one picture per modality: cover, marked, difference x 20; None for none.
    """

    attacks: tuple[Attack, ...]
    processes: int
    search_s: float
    search_frames: int
    peer_frames: int
    pictures: Path | None = None


@dataclass
class Result:
    """All frames, and what could not be measured.

    Attributes
    ----------
    explained
        Of the surrogate networks: share of the residual's variance they predict.
    wall_s
        By stage.
    """

    attacks: tuple[Attack, ...]
    frames: list[FrameResult] = field(default_factory=list)
    peers: list[PeerResult] = field(default_factory=list)
    temporal: list[Temporal] = field(default_factory=list)
    unmarked: list[Unmarked] = field(default_factory=list)
    not_measured: list[str] = field(default_factory=list)
    explained: list[float] = field(default_factory=list)
    wall_s: dict[str, float] = field(default_factory=dict)

    @property
    def strangers(self) -> Strangers:
        """Every decode where no message of ours may be found."""
        total = Strangers()
        for frame in self.frames:
            total.add(frame.strangers)
        return total


def run(
    samples: Sequence[Sample], settings: WatermarkConfig, plan: Plan,
    stage: Stage,
) -> Result:  # fmt: skip
    """Measure every sample.

    Parameters
    ----------
    stage
        Called with the number of steps and their name; a context that yields what to call after
        each step.
    """
    result = Result(plan.attacks)
    names, missing = available() if plan.peer_frames else ([], [])
    if any(attack.family == "video" for attack in plan.attacks):
        result.not_measured.append(NOT_MEASURED)
    result.not_measured += [f"peer left out: {reason}" for reason in missing]
    with tempfile.TemporaryDirectory(prefix="dicom-node-bench-") as name:
        folder = Path(name)
        count = sum(len(sample.frames) for sample in samples)
        setting = _prepare(folder, settings, plan, count, tuple(names))
        with workers.workers(plan.processes, setting) as pool:
            bench = _Bench(result, plan, folder, pool, stage)
            subjects = bench.mark(samples)
            bench.attack(subjects, bench.train(subjects))
            if names:
                bench.compare(subjects)
    return result


def _prepare(
    folder: Path, settings: WatermarkConfig, plan: Plan, frames: int, peers: tuple[str, ...]
) -> Setting:
    """Make the keys and decide how many others read along, and how often: enough are counted."""
    KeyRing.open(folder / "keys", owner=settings.owner, create=True)
    each = 2 * max(1, frames) * max(1, len(plan.attacks))  # the marked picture and the cover
    strangers = min(_MOST_STRANGERS, math.ceil(FALSE_ACCEPTS_OF / each))
    every = max(1, int(each / (_TO_SPARE * FALSE_ACCEPTS_OF)))
    for kind, many in (("strangers", strangers), ("attackers", _ATTACKERS)):
        for number in range(many):
            KeyRing.open(folder / kind / f"{number:03}", owner="STRANGER", create=True)
    names = tuple(attack.name for attack in plan.attacks)
    return Setting(settings, folder, names, plan.search_s, peers, every)


class _Bench:
    def __init__(
        self, result: Result, plan: Plan, folder: Path, pool: Workers,
        stage: Stage,
    ) -> None:  # fmt: skip
        self._result, self._plan, self._folder = result, plan, folder
        self._pool, self._stage = pool, stage

    def mark(self, samples: Sequence[Sample]) -> list[Subject]:
        """Mark and export every sample."""
        subjects: list[Subject] = []
        # Multi-frame objects take longest: first.
        order = sorted(enumerate(samples), key=lambda each: -len(each[1].frames))
        with self._timed(len(order), "marking") as advance:
            for outcome in self._pool.each(workers.export, order, advance):
                if isinstance(outcome, Unmarked):
                    self._result.unmarked.append(outcome)
                else:
                    subjects += outcome.subjects
                    self._result.temporal += outcome.temporal
        if self._plan.pictures is not None:
            _draw(subjects, self._plan.pictures)
        return subjects

    def train(self, subjects: Sequence[Subject]) -> list[Path | None]:
        """Train a remover on each half of the files, for use on the other half."""
        if not any(attack.name.startswith("surrogate network") for attack in self._plan.attacks):
            return [None] * _FOLDS
        carrying = [each for each in subjects if each.message]
        folds = []
        for fold in range(_FOLDS):
            chosen = [each for each in carrying if _fold(each) != fold]
            spread = chosen[:: max(1, len(chosen) // _TRAINED_ON)][:_TRAINED_ON]
            folds.append((fold, tuple(spread), self._folder / f"remover-{fold}.npz"))
        if not all(chosen for _, chosen, _ in folds):
            self._result.not_measured.append("surrogate network: needs marked frames of two files")
            return [None] * _FOLDS
        with self._timed(len(folds), "training surrogates") as advance:
            self._result.explained = self._pool.each(workers.train_remover, folds, advance)
        return [path for _, _, path in folds]

    def attack(self, subjects: Sequence[Subject], removers: Sequence[Path | None]) -> None:
        """Attack every frame, the largest first."""
        ordered = sorted(subjects, key=lambda each: -each.pixels)
        small = [s for s in subjects if s.message and s.pixels <= _OTHERS_MOST_PX]
        moved = {id(s) for s in _some(subjects, self._plan.search_frames)}
        tasks = [
            Task(s, _others(s, small), removers[_fold(s)], id(s) in moved) for s in ordered
        ]
        with self._timed(len(tasks), "attacking") as advance:
            results = self._pool.each(workers.attack, tasks, advance)
        place = {id(task.subject): result for task, result in zip(tasks, results, strict=True)}
        self._result.frames = [place[id(subject)] for subject in subjects]

    def compare(self, subjects: Sequence[Subject]) -> None:
        """Run the peers on some frames of each modality."""
        fit = [each for each in subjects if each.message and comparable(each)]
        ordered = sorted(_some(fit, self._plan.peer_frames), key=lambda each: -each.pixels)
        with self._timed(len(ordered), "peers") as advance:
            for results in self._pool.each(workers.compare_peers, ordered, advance):
                self._result.peers += results

    @contextmanager
    def _timed(self, steps: int, name: str) -> Iterator[Callable[[], None]]:
        before = time.monotonic()
        with self._stage(steps, name) as advance:
            yield advance
        self._result.wall_s[name] = round(time.monotonic() - before, 1)


def _some(subjects: Sequence[Subject], most: int) -> list[Subject]:
    """Return at most `most` frames of each modality, from all over the list."""
    chosen: list[Subject] = []
    for modality in dict.fromkeys(each.modality for each in subjects):
        of_it = [each for each in subjects if each.modality == modality]
        places = np.linspace(0, len(of_it) - 1, min(most, len(of_it))).round().astype(int)
        chosen += [of_it[place] for place in places]
    return chosen


def _others(subject: Subject, pool: Sequence[Subject]) -> tuple[Subject, ...]:
    """Return some frames of other files, the same for every run over the same data."""
    others = [each for each in pool if each.path != subject.path]
    return tuple(others[:: max(1, len(others) // _OTHERS)][:_OTHERS])


def _fold(subject: Subject) -> int:
    """Return which half of the files a frame belongs to; all frames of a file to the same."""
    return int(subject.file.parent.name) % _FOLDS


def _draw(subjects: Sequence[Subject], folder: Path) -> None:
    """Draw the first marked frame of each modality (ConfigError if it cannot be written)."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn: set[str] = set()
    for subject in subjects:
        if subject.message and subject.modality not in drawn:
            drawn.add(subject.modality)
            pair = subject.pair()
            draw(folder / f"{subject.modality}.png", pair.cover, pair.marked)


def to_json(result: Result) -> dict[str, Any]:
    """Return every frame's figures, for machines."""
    strangers = result.strangers
    return {
        "attacks": [
            {"name": a.name, "family": a.family, "target": a.target, "paper": a.paper,
             "curve": a.curve} for a in result.attacks
        ],
        "frames": [_frame_json(frame) for frame in result.frames],
        "peers": [asdict(each) for each in result.peers],
        "frame_order": [asdict(each) for each in result.temporal],
        "without_our_mark": {**asdict(strangers), "decodes": strangers.decodes},
        "surrogates_explain": result.explained,
        "not_marked": [asdict(each) for each in result.unmarked],
        "not_measured": result.not_measured,
        "wall_s": result.wall_s,
    }  # fmt: skip


def _frame_json(frame: FrameResult) -> dict[str, Any]:
    subject = asdict(frame.subject)
    del subject["file"]
    readings = [asdict(reading) for reading in frame.readings.values()]
    copied = None if frame.copied is None else asdict(frame.copied)
    return {**subject, "readings": readings, "copied": copied, "cpu_s": round(frame.cpu_s, 2)}
