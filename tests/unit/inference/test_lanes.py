"""Batches through two lanes: in order, overlapping, and usable again after a fault."""

from __future__ import annotations

import numpy as np
import pytest
from cpu_lanes import CpuLane, Device, engine_on, real_frames

from dicom_node.errors import EngineError
from dicom_node.inference.catalogue import read_card
from dicom_node.inference.lanes import DeviceLost, Pipeline, bucket
from dicom_node.inference.onnx import OnnxEngine


@pytest.fixture(scope="module")
def reference() -> OnnxEngine:
    return OnnxEngine(read_card())


@pytest.mark.parametrize("frames", [1, 3, 4, 5, 7])
def test_every_frame_gets_its_own_answer_in_order(reference: OnnxEngine, frames: int) -> None:
    pictures = real_frames()[:frames]
    engine = engine_on(Device(reference), most=2)
    np.testing.assert_allclose(engine.decode(pictures), reference.decode(pictures), atol=1e-4)
    np.testing.assert_allclose(engine.whiten(pictures), reference.whiten(pictures), atol=1e-4)
    np.testing.assert_array_equal(engine.strengths(pictures), reference.strengths(pictures))


def test_one_lane_is_loaded_while_the_other_computes(reference: OnnxEngine) -> None:
    device = Device(reference)
    engine_on(device, most=2).whiten(real_frames())
    assert device.events == [
        ("submit", 0, 2), ("submit", 1, 2),
        ("collect", 0, 2), ("submit", 0, 2),
        ("collect", 1, 2), ("submit", 1, 1),
        ("collect", 0, 2), ("collect", 1, 1),
    ]  # fmt: skip


def test_after_a_fault_both_lanes_are_empty_and_answer_again(reference: OnnxEngine) -> None:
    device = Device(reference)
    pipeline = Pipeline([CpuLane(device, 0), CpuLane(device, 1)], 1)
    frames, broken = real_frames()[:3], DeviceLost("unplugged")

    def fail(count: int) -> None:
        raise broken

    device.fault = fail
    with pytest.raises(DeviceLost, match="unplugged"):
        pipeline.run(frames, "soft")
    device.fault = lambda count: None
    np.testing.assert_allclose(pipeline.run(frames, "soft"), reference.decode(frames), atol=1e-4)


@pytest.mark.parametrize("wrong", [(0, 1, 128, 128), (1, 1, 1, 128), (1, 128, 128), (1, 1, 64, 64)])
def test_a_misshapen_question_reaches_no_device(
    reference: OnnxEngine, wrong: tuple[int, ...]
) -> None:
    device = Device(reference)
    with pytest.raises(EngineError, match="expected"):
        engine_on(device).whiten(np.zeros(wrong, np.float32))
    assert device.events == []


@pytest.mark.parametrize(("frames", "size"), [(1, 1), (2, 2), (3, 4), (5, 8), (33, 48), (48, 48)])
def test_a_device_runs_few_batch_sizes_and_none_above_its_most(frames: int, size: int) -> None:
    assert bucket(frames, 48) == size
