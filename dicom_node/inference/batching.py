"""Dynamic batching: questions of many threads become one batch on the device."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition, Thread
from time import monotonic
from types import TracebackType
from typing import Literal

import numpy as np

from dicom_node.errors import EngineError
from dicom_node.inference.base import Float32, Int8, RobustEngine

Network = Literal["whiten", "strengths", "decode"]


@dataclass(eq=False)
class _Question:
    network: Network
    frames: Float32
    due: float
    answer: Future[Float32] = field(default_factory=Future)


class BatchingEngine(RobustEngine):
    """An engine for many threads: it waits a little for others that ask for the same.

    Parameters
    ----------
    engine
        Asked by one thread only, ours.
    most
        Frames in a batch; a longer question is asked by itself.
    wait_ms
        How long the first question of a batch waits for others.
    askers
        How many could be asking now: when all of them wait, nobody else is waited for.
    steady
        Every batch is run as `most` frames. A device may choose another kernel, and so round
        otherwise, for every size: what one is answered must not hang on who else asked.
    """

    def __init__(
        self, engine: RobustEngine, *, most: int = 32, wait_ms: float = 2.0,
        askers: Callable[[], int] = lambda: sys.maxsize, steady: bool = False,
    ) -> None:  # fmt: skip
        if most < 1 or wait_ms < 0:
            raise EngineError(f"batches of {most} frames after {wait_ms} ms make no sense")
        self.name, self.loop = engine.name, engine.loop
        self.side, self.code_bits, self.grid = engine.side, engine.code_bits, engine.grid
        self._engine, self._most, self._wait_s = engine, most, wait_ms / 1000
        self._askers, self._steady = askers, steady
        self._waiting: deque[_Question] = deque()
        self._changed = Condition()
        self._open = True
        self._began: float | None = None
        self._thread = Thread(target=self._serve, name="batching", daemon=True)
        self._thread.start()

    def __enter__(self) -> BatchingEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def close(self) -> None:
        """Answer what was asked, then stop; what is asked later gets an EngineError."""
        with self._changed:
            self._open = False
            self._changed.notify_all()
        self._thread.join()

    @property
    def busy_s(self) -> float:
        """Seconds that the batch on the device has taken so far, 0 if there is none."""
        began = self._began
        return 0.0 if began is None else monotonic() - began

    @property
    def patterns(self) -> Int8:
        """Carrier patterns, see `RobustEngine`."""
        return self._engine.patterns

    @property
    def model_id(self) -> bytes:
        """Which patterns a record refers to."""
        return self._engine.model_id

    def whiten(self, frames: Float32) -> Float32:
        """Run D1's whitener, see `RobustEngine`."""
        return self._ask("whiten", frames)

    def strengths(self, frames: Float32) -> Float32:
        """Run E1's strength network, see `RobustEngine`."""
        return self._ask("strengths", frames)

    def decode(self, frames: Float32) -> Float32:
        """Run D1, see `RobustEngine`."""
        return self._ask("decode", frames)

    def _ask(self, network: Network, frames: Float32) -> Float32:
        """Wait for the answer to one question; its error is the asker's."""
        wanted = (1, self.side, self.side)
        if frames.shape[1:] != wanted or not len(frames):  # it would spoil the others' batch
            raise EngineError(f"asked with {frames.shape}, expected (frames, {wanted})")
        question = _Question(network, frames, monotonic() + self._wait_s)
        with self._changed:
            if not self._open:
                raise EngineError("the batching engine was closed")
            self._waiting.append(question)
            self._changed.notify_all()
        return question.answer.result()

    def _serve(self) -> None:
        while batch := self._next_batch():
            self._began = monotonic()
            try:
                frames = np.concatenate([question.frames for question in batch])
                whole: Float32 = self._run(batch[0].network, frames)
            except BaseException as error:  # noqa: BLE001  # whatever it is, the askers get it
                for question in batch:
                    question.answer.set_exception(error)
            else:
                ends = np.cumsum([len(question.frames) for question in batch])[:-1]
                for question, own in zip(batch, np.split(whole, ends), strict=True):
                    question.answer.set_result(own)
            finally:
                self._began = None

    def _run(self, network: Network, frames: Float32) -> Float32:
        """Ask the engine; a steady batch is filled up with copies of its first frame."""
        missing = self._most - len(frames) if self._steady else 0
        if missing > 0:
            filled = np.concatenate([frames, np.repeat(frames[:1], missing, axis=0)])
            answer: Float32 = getattr(self._engine, network)(filled)[: len(frames)]
        else:
            answer = getattr(self._engine, network)(frames)
        return answer

    def _next_batch(self) -> list[_Question]:
        """Wait for a batch of one kind of question; empty when closed and all are answered."""
        with self._changed:
            while not self._waiting:
                if not self._open:
                    return []
                self._changed.wait()
            first = self._waiting[0]
            while self._open and sum(len(q.frames) for q in self._alike(first)) < self._most:
                left_s = first.due - monotonic()
                if left_s <= 0 or len(self._waiting) >= self._askers():
                    break
                self._changed.wait(left_s)
            return self._taken(first)

    def _taken(self, first: _Question) -> list[_Question]:
        """Take as many questions like the first as fit into a batch, in their order."""
        batch: list[_Question] = []
        frames = 0
        for question in self._alike(first):
            if batch and frames + len(question.frames) > self._most:
                break
            batch.append(question)
            frames += len(question.frames)
        self._waiting = deque(question for question in self._waiting if question not in batch)
        return batch

    def _alike(self, first: _Question) -> list[_Question]:
        return [question for question in self._waiting if question.network == first.network]
