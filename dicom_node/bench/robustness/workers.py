"""The processes of a run: each opens keys and networks once, then marks samples or attacks frames.

A process has one thread; how many there are is the parallelism.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from dicom_node.bench.attacks import Attack, Pair, Scene, choose, transplanted
from dicom_node.bench.frames import Sample
from dicom_node.bench.robustness.comparing import PeerResult, compare
from dicom_node.bench.robustness.peers import Peer, opened
from dicom_node.bench.robustness.reading import Attacked, Reader, Reading, Strangers
from dicom_node.bench.robustness.remover import Network, train
from dicom_node.bench.robustness.subjects import Exported, Exporter, Subject, Unmarked
from dicom_node.config import WatermarkConfig, environment
from dicom_node.errors import NodeError
from dicom_node.inference import open_engine
from dicom_node.keys import KeyRing
from dicom_node.verify.verdict import SAME_PICTURE_BITS
from dicom_node.watermark import perceptual

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Setting:
    """What every process of a run is told.

    Attributes
    ----------
    folder
        Keys, marked frames and trained removers.
    attacks
        Names.
    search_s
        Budget of one search for a pose, seconds.
    peers
        Names.
    every
        Marks are looked for where there are none after every n-th attack, another of each frame.
    """

    watermark: WatermarkConfig
    folder: Path
    attacks: tuple[str, ...]
    search_s: float
    peers: tuple[str, ...]
    every: int = 1


@dataclass(frozen=True)
class Task:
    """One frame to attack.

    Attributes
    ----------
    others
        Frames of other files, for attackers who collect them.
    remover
        Trained network file; None where there is none.
    moved
        Whether it is one of the frames that attacks are tried on which take a search.
    """

    subject: Subject
    others: tuple[Subject, ...]
    remover: Path | None
    moved: bool


@dataclass(frozen=True)
class Copied:
    """The copy attack: another frame's residual put on this one's cover.

    Attributes
    ----------
    read
        Whether the other frame's message is read in it.
    believed
        Whether its perceptual hash fits as well, so that the copy would pass for marked.
    """

    read: bool
    believed: bool


@dataclass
class FrameResult:
    """Everything read of one frame, by attack; `cpu_s` is what attacking and reading took."""

    subject: Subject
    readings: dict[str, Reading]
    strangers: Strangers
    copied: Copied | None = None
    cpu_s: float = 0.0


class _Worker:
    """What a process keeps between tasks."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        folder = setting.folder
        ring = KeyRing.open(folder / "keys")
        strangers, self._attackers = (
            [KeyRing.open(each).current for each in sorted((folder / kind).iterdir())]
            for kind in ("strangers", "attackers")
        )
        engine = open_engine(setting.watermark.engine)
        self.exporter = Exporter(setting.watermark, ring, engine, folder)
        self._attacks = choose(setting.attacks)
        self._reader = Reader(
            engine, setting.watermark.profile, ring.current, strangers,
            search_s=setting.search_s,
        )  # fmt: skip
        self.peers: list[Peer] = opened(setting.peers)

    def attack(self, task: Task) -> FrameResult:
        """Attack one frame in every way and read it."""
        before, subject = time.process_time(), task.subject
        self._reader.counted = Strangers()
        exports, pair = subject.exports(), subject.pair()
        scene = Scene(
            exports, pair.cover, [_pair_of(other) for other in task.others], self._reader.robust,
            self._attackers, None if task.remover is None else Network.load(task.remover),
        )  # fmt: skip
        tried = (self._attacked(a, scene, subject) for a in self._attacks if self._takes(a, task))
        items = [item for item in tried if item is not None]
        readings = self._reader.read(subject.message, pair.marked, items)
        covers = [a.apply(pair.cover, a.rng(subject.identity)) for a in self._attacks
                  if a.knowing is None and a.source == "plain" and a.family != "video"
                  and self._counts(a, subject)]  # fmt: skip
        self._reader.read_unmarked([pair.cover, *covers])
        if task.moved:
            self._reader.search_unmarked(pair.cover)
        copied = self._copy(subject, pair.cover, task.others) if subject.message else None
        by_name = {reading.attack: reading for reading in readings}
        spent = time.process_time() - before
        return FrameResult(subject, by_name, self._reader.counted, copied, spent)

    def _takes(self, attack: Attack, task: Task) -> bool:
        """Return whether an attack is tried on a frame: searches are dear."""
        return task.moved or not attack.searched or self.setting.search_s <= 0

    def _attacked(self, attack: Attack, scene: Scene, subject: Subject) -> Attacked | None:
        picture = attack.on(scene, attack.rng(subject.identity))
        if picture is None:
            return None
        before = scene.exports[attack.source].shape
        upright = attack.upright(picture, before, attack.rng(subject.identity))
        return Attacked(attack, picture, upright, self._counts(attack, subject))

    def _counts(self, attack: Attack, subject: Subject) -> bool:
        """Return whether marks are looked for, after an attack on a frame, where there are none."""
        named = f"{attack.name}/{subject.identity}".encode()
        return zlib.crc32(named) % self.setting.every == 0

    def _copy(self, subject: Subject, cover: object, others: Sequence[Subject]) -> Copied | None:
        donors = [other for other in others if other.message]
        if not donors:
            return None
        forged = transplanted(_pair_of(donors[0]), np.asarray(cover, np.uint8))
        found = self._reader.decode(forged)
        read = found.decoded and found.message.hex() == donors[0].message
        if not read:
            return Copied(False, False)
        upright = found.pose.upright(np.asarray(forged / np.float32(255), np.float32))
        now = perceptual.perceptual_hash(upright)
        near = perceptual.distance(found.perceptual_hash, now) <= SAME_PICTURE_BITS
        return Copied(True, near)


_worker: list[_Worker] = []  # the one of this process


@lru_cache(maxsize=32)
def _pair_of(subject: Subject) -> Pair:
    return subject.pair()


def _start(setting: Setting) -> None:
    cv2.setNumThreads(1)
    _worker.append(_Worker(setting))


def export(numbered: tuple[int, Sample]) -> Exported | Unmarked:
    """Mark and export one sample, in a worker process."""
    return _worker[0].exporter.export(*numbered)


def attack(task: Task) -> FrameResult:
    """Attack and read one frame, in a worker process."""
    return _worker[0].attack(task)


def compare_peers(subject: Subject) -> list[PeerResult]:
    """Mark and attack one frame with every peer, in a worker process."""
    worker = _worker[0]
    attacks = [a for a in choose(worker.setting.attacks) if a.knowing is None]
    return compare(subject, worker.peers, attacks)


def train_remover(fold: tuple[int, tuple[Subject, ...], Path]) -> float:
    """Train one surrogate network into a file; return what it explains of the residual."""
    seed, subjects, path = fold
    network = train([subject.pair() for subject in subjects], seed)
    network.save(path)
    return network.explained


class Workers:
    """A pool of such processes."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def each(
        self, function: Callable[[T], R], tasks: Sequence[T], advance: Callable[[], None]
    ) -> list[R]:
        """Return the results in the order of the tasks; the first tasks are begun first.

        Raises
        ------
        NodeError
            What a task raised, or that a process died.
        """
        futures: list[Future[R]] = [self._pool.submit(function, task) for task in tasks]
        try:
            for future in as_completed(futures):
                future.result()
                advance()
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise NodeError("a process of the benchmark died; is there enough memory?") from error
        finally:
            for future in futures:
                future.cancel()


@contextmanager
def workers(count: int, setting: Setting) -> Iterator[Workers]:
    """Start `count` processes; they end with the block."""
    before = dict(os.environ)
    os.environ.update(environment())  # what a spawned interpreter starts with
    try:
        with ProcessPoolExecutor(
            count, multiprocessing.get_context("spawn"), _start, (setting,)
        ) as pool:
            yield Workers(pool)
    finally:
        os.environ.clear()
        os.environ.update(before)
