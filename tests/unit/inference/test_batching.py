"""Questions of many threads in one batch: each asker gets its own answer, and its own error."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from time import monotonic

import numpy as np
import pytest
from cpu_lanes import Device, engine_on, real_frames

from dicom_node.errors import EngineError
from dicom_node.inference.base import Float32
from dicom_node.inference.batching import BatchingEngine
from dicom_node.inference.catalogue import read_card
from dicom_node.inference.lanes import DeviceLost
from dicom_node.inference.onnx import OnnxEngine
from dicom_node.inference.resilient import ResilientEngine

FRAMES = real_frames()


class Counting(OnnxEngine):
    """Notes how many frames it is asked at a time; waits for `gate` first."""

    def __init__(self) -> None:
        super().__init__(read_card())
        self.batches: list[tuple[str, int]] = []
        self.gate = Event()
        self.gate.set()

    def _noted(self, name: str, ask: Callable[[Float32], Float32], frames: Float32) -> Float32:
        self.gate.wait()
        self.batches.append((name, len(frames)))
        return ask(frames)

    def decode(self, frames: Float32) -> Float32:
        return self._noted("decode", super().decode, frames)

    def strengths(self, frames: Float32) -> Float32:
        return self._noted("strengths", super().strengths, frames)


def test_threads_that_ask_together_are_answered_together_and_each_rightly() -> None:
    inner = Counting()
    expected = OnnxEngine(read_card()).decode(FRAMES)
    with BatchingEngine(inner, most=7, wait_ms=2000) as engine, ThreadPoolExecutor(7) as pool:
        answers = list(pool.map(lambda at: engine.decode(FRAMES[at : at + 1]), range(7)))
    assert inner.batches == [("decode", 7)]
    for at, answer in enumerate(answers):
        np.testing.assert_allclose(answer, expected[at : at + 1], atol=1e-4)


def test_a_full_batch_does_not_wait() -> None:
    with BatchingEngine(Counting(), most=2, wait_ms=60_000) as engine:
        started = monotonic()
        engine.decode(FRAMES[:2])
        assert monotonic() - started < 30


def test_one_alone_waits_only_as_long_as_it_was_told() -> None:
    with BatchingEngine(Counting(), most=64, wait_ms=1) as engine:
        assert engine.decode(FRAMES[:1]).shape == (1, 160)


def test_different_networks_are_never_mixed_and_no_batch_is_too_large() -> None:
    inner = Counting()
    inner.gate.clear()
    with BatchingEngine(inner, most=4, wait_ms=20) as engine, ThreadPoolExecutor(12) as pool:
        asked = [
            pool.submit(engine.decode if at % 2 else engine.strengths, FRAMES[:2])
            for at in range(12)
        ]
        inner.gate.set()
        shapes = {future.result().shape for future in asked}
    assert shapes == {(2, 160), (2, 16, 16)}
    assert sum(count for name, count in inner.batches if name == "decode") == 12
    assert max(count for _, count in inner.batches) <= 4


def test_a_mark_chosen_through_batches_is_the_one_chosen_alone() -> None:
    alone = OnnxEngine(read_card())
    words = np.sign(np.random.default_rng(5).normal(size=(7, 160))).astype(np.float32)
    rms = np.full((1, 1), 0.007, np.float32)
    with BatchingEngine(Counting(), most=7, wait_ms=50) as engine, ThreadPoolExecutor(7) as pool:
        chosen = list(
            pool.map(lambda at: engine.encode(FRAMES[at][None], words[at][None], rms), range(7))
        )
    for at, (amplitudes, grids) in enumerate(chosen):
        expected, cells = alone.encode(FRAMES[at][None], words[at][None], rms)
        np.testing.assert_array_equal(grids, cells)
        assert np.abs(amplitudes - expected).max() <= 1  # another batch size sums in another order


def test_a_misshapen_question_is_refused_and_harms_nobody_else() -> None:
    with BatchingEngine(Counting(), most=8, wait_ms=1) as engine:
        for wrong in (FRAMES[:, :, :64], FRAMES[:0], FRAMES[0]):
            with pytest.raises(EngineError, match="expected"):
                engine.decode(wrong)
        assert engine.decode(FRAMES[:1]).shape == (1, 160)


def test_an_error_of_the_engine_reaches_every_asker_of_that_batch_and_no_later_one() -> None:
    reference = OnnxEngine(read_card())
    device = Device(reference)

    def unplugged(frames: int) -> None:
        raise DeviceLost("unplugged")

    device.fault = unplugged
    with BatchingEngine(engine_on(device), most=2, wait_ms=500) as engine:
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(engine.decode, FRAMES[:1]) for _ in range(2)]
        for future in asked:
            with pytest.raises(DeviceLost, match="unplugged"):
                future.result()
        device.fault = lambda frames: None
        assert engine.decode(FRAMES[:1]).shape == (1, 160)


def test_in_front_of_a_resilient_engine_a_lost_gpu_costs_no_asker_its_answer() -> None:
    reference = OnnxEngine(read_card())

    def unplugged(frames: int) -> None:
        raise DeviceLost("unplugged")

    inner = ResilientEngine(engine_on(Device(reference, unplugged)), reference)
    with BatchingEngine(inner, most=7, wait_ms=50) as engine, ThreadPoolExecutor(7) as pool:
        answers = list(pool.map(lambda at: engine.decode(FRAMES[at : at + 1]), range(7)))
    np.testing.assert_allclose(np.concatenate(answers), reference.decode(FRAMES), atol=1e-4)


def test_what_was_asked_before_the_end_is_answered_and_nothing_after() -> None:
    inner = Counting()
    inner.gate.clear()
    engine = BatchingEngine(inner, most=4, wait_ms=60_000)
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(engine.decode, FRAMES[:3]) for _ in range(2)]
        while not engine._waiting and not inner.batches:
            pass
        closing = pool.submit(engine.close)
        inner.gate.set()
        answered = [future.exception() for future in asked]
        closing.result()
    assert answered == [None, None]
    with pytest.raises(EngineError, match="closed"):
        engine.decode(FRAMES[:1])


def test_batches_that_make_no_sense_are_refused() -> None:
    with pytest.raises(EngineError, match="make no sense"):
        BatchingEngine(Counting(), most=0)
