"""A GPU may vanish or run out of memory in mid-run: nothing is lost, and it is said once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cpu_lanes import Device, engine_on, real_frames
from structlog.testing import capture_logs

from dicom_node.inference.catalogue import read_card
from dicom_node.inference.lanes import DeviceLost, OutOfDeviceMemory
from dicom_node.inference.onnx import OnnxEngine
from dicom_node.inference.resilient import ResilientEngine

FRAMES = real_frames()


@pytest.fixture(scope="module")
def reference() -> OnnxEngine:
    return OnnxEngine(read_card())


class Unplugged:
    """Answers `good` batches, then never again."""

    def __init__(self, good: int) -> None:
        self.good, self.asked_in_vain = good, 0

    def __call__(self, frames: int) -> None:
        if self.good:
            self.good -= 1
            return
        self.asked_in_vain += 1
        raise DeviceLost("CUDA error 719")


class Room:
    """Has memory for `most` frames at a time."""

    def __init__(self, most: int) -> None:
        self.most = most

    def __call__(self, frames: int) -> None:
        if frames > self.most:
            raise OutOfDeviceMemory(f"no room for {frames}")


@pytest.mark.parametrize("good", [0, 1, 2, 3])
def test_a_gpu_that_disappears_in_mid_run_loses_no_frame(reference: OnnxEngine, good: int) -> None:
    device = Device(reference, Unplugged(good))
    engine = ResilientEngine(engine_on(device, most=2), reference)
    with capture_logs() as said:
        np.testing.assert_allclose(engine.decode(FRAMES), reference.decode(FRAMES), atol=1e-4)
        again = engine.decode(FRAMES)
    np.testing.assert_array_equal(again, reference.decode(FRAMES))
    assert [line["event"] for line in said] == ["device_lost"]
    assert (said[0]["engine"], said[0]["instead"]) == ("tensorrt fp16", "onnx")
    assert "719" in said[0]["reason"]
    assert engine.name == "onnx"


@pytest.mark.parametrize("good", range(5))
def test_a_mark_begun_on_the_gpu_is_chosen_to_the_end(reference: OnnxEngine, good: int) -> None:
    engine = ResilientEngine(engine_on(Device(reference, Unplugged(good)), most=8), reference)
    words = np.sign(np.random.default_rng(3).normal(size=(7, 160))).astype(np.float32)
    rms = np.full((7, 1), 0.007, np.float32)
    amplitudes, grids = engine.encode(FRAMES, words, rms)
    expected, cells = reference.encode(FRAMES, words, rms)
    np.testing.assert_array_equal(grids, cells)
    assert np.abs(amplitudes - expected).max() <= 1  # another batch size sums in another order


def test_many_threads_lose_the_gpu_together_and_it_is_said_once(reference: OnnxEngine) -> None:
    fault = Unplugged(3)
    engine = ResilientEngine(engine_on(Device(reference, fault), most=1), reference)
    with capture_logs() as said, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda at: engine.decode(FRAMES[at % 7][None]), range(40)))
    expected = reference.decode(FRAMES)
    for at, answer in enumerate(answers):
        np.testing.assert_allclose(answer[0], expected[at % 7], atol=1e-4)
    assert [line["event"] for line in said] == ["device_lost"]
    assert fault.asked_in_vain <= 8  # each thread at most once


def test_too_large_a_batch_is_halved_until_it_fits(reference: OnnxEngine) -> None:
    device = Device(reference, Room(2))
    engine = ResilientEngine(engine_on(device, most=64), reference)
    with capture_logs() as said:
        np.testing.assert_allclose(engine.decode(FRAMES), reference.decode(FRAMES), atol=1e-4)
    assert [(line["event"], line["frames"]) for line in said] == [
        ("batch_halved", 3), ("batch_halved", 1),
    ]  # fmt: skip
    assert engine.name == "tensorrt fp16"
    device.events.clear()
    engine.decode(FRAMES)
    assert max(frames for _, _, frames in device.events) == 1  # it is remembered


def test_a_gpu_without_room_for_one_frame_is_given_up(reference: OnnxEngine) -> None:
    engine = ResilientEngine(engine_on(Device(reference, Room(0)), most=64), reference)
    with capture_logs() as said:
        np.testing.assert_array_equal(engine.strengths(FRAMES), reference.strengths(FRAMES))
    assert [line["event"] for line in said][-1] == "device_lost"
    assert engine.name == "onnx"


def test_a_fault_of_the_spare_is_not_hidden(reference: OnnxEngine) -> None:
    engine = ResilientEngine(
        engine_on(Device(reference, Unplugged(0))), engine_on(Device(reference, Unplugged(0)))
    )
    with pytest.raises(DeviceLost):
        engine.whiten(FRAMES)
