"""The GPU module against emulated rules of CUDA and TensorRT: order, memory, faults; no speed.

No GPU has run it yet. What is held here is that every call is one CUDA allows, that answers are
right when work is done as late as a stream may do it, and that each fault becomes ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from cpu_lanes import Device, real_frames
from emulated_gpu import Driver, GraphDriver, Runtime
from structlog.testing import capture_logs

from dicom_node.errors import EngineError
from dicom_node.inference import (
    catalogue,
    cuda_graph,
    gpu,
    opening,
    plans,
    tensorrt,
    tensorrt_compiler,
)
from dicom_node.inference.lanes import DeviceLost, OutOfDeviceMemory
from dicom_node.inference.onnx import OnnxEngine
from dicom_node.inference.resilient import ResilientEngine
from dicom_node.inference.tensorrt_compiler import Compiled, Precision, Tensor

MOST = 4
FRAMES = real_frames()


def plan_of(file: str, precision: Precision) -> Compiled:
    """Return what the compiler says of a network, with a plan only the emulation reads."""
    shapes = tuple((frames, 1, 128, 128) for frames in (1, 2, MOST))
    frame = Tensor("frame", "FLOAT", (-1, 1, 128, 128), shapes)
    plan = f"{file} {precision}".encode()
    if file == tensorrt.STRENGTH:
        return Compiled(plan, (frame,), (Tensor("strengths", "FLOAT", (-1, 16, 16)),))
    dtype = "HALF" if precision == "fp16" else "FLOAT"
    outputs = (Tensor("whitened", "FLOAT", (-1, 16384)), Tensor("soft", "FLOAT", (-1, 160)))
    return Compiled(plan, (frame, Tensor("patterns", dtype, (160, 16384))), outputs)


@dataclass
class Emulation:
    driver: Driver
    trt: Runtime

    def engine(self, precision: Precision = "fp16") -> tensorrt.TensorRtEngine:
        """Open the engine the way `open_tensorrt` does, from plans that are there."""
        card, device = catalogue.read_card(), gpu.Gpu()
        constants = {tensorrt.WHITENER: {"patterns": tensorrt.unit_patterns(card)}}
        networks = {
            file: device.load(plan_of(file, precision), constants.get(file, {}), MOST)
            for file in tensorrt.NETWORKS
        }
        return tensorrt.TensorRtEngine(card, networks, precision)


@pytest.fixture(scope="module")
def reference() -> OnnxEngine:
    return OnnxEngine(catalogue.read_card())


@pytest.fixture(params=["RTX", "data centre"])
def emulation(
    request: pytest.FixtureRequest, reference: OnnxEngine, monkeypatch: pytest.MonkeyPatch
) -> Emulation:
    driver = Driver()
    plans = [plan_of(f, p) for f in tensorrt.NETWORKS for p in tensorrt_compiler.PRECISIONS]
    trt = Runtime(driver, Device(reference), {c.plan: c for c in plans}, rtx=request.param == "RTX")
    graphs = GraphDriver(driver)
    monkeypatch.setattr(gpu, "_driver", lambda: driver)
    monkeypatch.setattr(gpu, "runtime", lambda: trt)
    monkeypatch.setattr(gpu, "logger", lambda messages: messages)
    monkeypatch.setattr(cuda_graph, "_driver", lambda: graphs)
    return Emulation(driver, trt)


@pytest.mark.parametrize("precision", tensorrt_compiler.PRECISIONS)
@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_every_answer_is_the_reference_s(
    emulation: Emulation, reference: OnnxEngine, precision: Precision, count: int
) -> None:
    engine, frames = emulation.engine(precision), FRAMES[:count]
    for _ in range(3):  # the first time, captured, replayed
        np.testing.assert_allclose(engine.whiten(frames), reference.whiten(frames), atol=1e-4)
        np.testing.assert_allclose(engine.decode(frames), reference.decode(frames), atol=0.02)
        np.testing.assert_array_equal(engine.strengths(frames), reference.strengths(frames))
    assert emulation.driver.current == 0, "a context was left current"


def test_it_passes_the_check_and_names_the_gpu(emulation: Emulation, reference: OnnxEngine) -> None:
    device = gpu.Gpu()
    assert (device.name, device.capability) == ("Emulated L4", "SM89")
    engine = opening.passing(lambda card: emulation.engine(), catalogue.read_card(), reference)
    assert engine.name == "tensorrt fp16"


def test_batches_of_changing_size_are_each_answered_rightly(
    emulation: Emulation, reference: OnnxEngine
) -> None:
    engine, expected = emulation.engine(), reference.whiten(FRAMES)
    for turn, count in enumerate((1, 1, 4, 4, 1, 3, 2, 2, 7, 1, 1)):
        at = (np.arange(count) + turn) % len(FRAMES)  # never what the lane answered before
        np.testing.assert_allclose(engine.whiten(FRAMES[at]), expected[at], atol=1e-4)


def test_a_repeated_size_is_launched_as_a_graph(emulation: Emulation) -> None:
    engine = emulation.engine()
    for _ in range(5):
        engine.strengths(FRAMES[:2])
    done = emulation.driver.done
    assert done.count("compute") == 5
    if emulation.trt.captures_itself:
        assert (done.count("enqueue"), done.count("launch")) == (5, 0)
    else:  # one plain run, one capture, the rest launches
        assert (done.count("enqueue"), done.count("launch")) == (2, 4)


@pytest.mark.parametrize("operation", ["enqueue", "synchronize"])
@pytest.mark.parametrize("good", [0, 1, 2])
def test_a_gpu_lost_at_any_step_costs_no_answer(
    emulation: Emulation, reference: OnnxEngine, operation: str, good: int
) -> None:
    engine = ResilientEngine(emulation.engine(), reference)
    emulation.driver.faults[operation] = good
    with capture_logs() as said:
        for _ in range(3):
            np.testing.assert_allclose(engine.whiten(FRAMES), reference.whiten(FRAMES), atol=1e-4)
    assert [line["event"] for line in said] == ["device_lost"]
    assert emulation.driver.current == 0


def test_a_graph_that_does_not_launch_is_a_lost_gpu(emulation: Emulation) -> None:
    if emulation.trt.captures_itself:
        return
    engine = emulation.engine()
    engine.whiten(FRAMES[:1])
    emulation.driver.faults["launch"] = 0
    with pytest.raises(DeviceLost, match="cuGraphLaunch: CUDA error 719"):
        engine.whiten(FRAMES[:1])


def test_no_memory_for_the_buffers_is_said_so(emulation: Emulation) -> None:
    emulation.driver.faults["mem_alloc"] = 2
    with pytest.raises(OutOfDeviceMemory, match="mem_alloc"):
        emulation.engine()
    assert emulation.driver.current == 0


def test_no_memory_for_a_context_is_said_so(emulation: Emulation) -> None:
    emulation.trt.no_room = True
    with pytest.raises(OutOfDeviceMemory, match="no execution context"):
        emulation.engine()


def test_a_plan_that_tensorrt_refuses_is_said_so(emulation: Emulation) -> None:
    stranger = replace(plan_of(tensorrt.STRENGTH, "fp32"), plan=b"another version's")
    with pytest.raises(EngineError, match=r"Emulated L4: the plan cannot be loaded.*version"):
        gpu.Gpu().load(stranger, {}, MOST)


def test_a_plan_in_the_cache_that_tensorrt_refuses_is_built_anew_and_replaced(
    emulation: Emulation, reference: OnnxEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an update of the driver: what the cache keeps is right, but for another one."""
    card, built = catalogue.read_card(), []

    def build(card: catalogue.Card, key: tensorrt.PlanKey) -> Compiled:
        built.append(key.network)
        return plan_of(key.network, key.precision)

    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(tensorrt, "runtime_name", lambda: "emulated 1.0")
    monkeypatch.setattr(tensorrt, "compile_network", build)
    monkeypatch.setattr(tensorrt, "BATCHES", tensorrt_compiler.Batches(1, 2, MOST))
    key = tensorrt.plan_key(card, tensorrt.STRENGTH, "fp16", "Emulated L4", "SM89")
    stranger = replace(plan_of(tensorrt.STRENGTH, "fp16"), plan=b"another driver's")
    plans.write_plan(plans.cache_folder() / key.file, key, stranger)
    with capture_logs() as said:
        engine = tensorrt.open_tensorrt(card, "fp16")
    assert [line["event"] for line in said] == ["plan_refused"]
    assert "another version" in said[0]["reason"]
    np.testing.assert_array_equal(engine.strengths(FRAMES), reference.strengths(FRAMES))
    with capture_logs() as said:
        tensorrt.open_tensorrt(card, "fp16")
    assert said == []
    assert sorted(built) == sorted(tensorrt.NETWORKS)


def test_a_plan_that_no_building_anew_helps_is_an_error_and_not_a_loop(
    emulation: Emulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []

    def build(card: catalogue.Card, key: tensorrt.PlanKey) -> Compiled:
        built.append(key.network)
        return replace(plan_of(key.network, key.precision), plan=b"never known")

    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(tensorrt, "runtime_name", lambda: "emulated 1.0")
    monkeypatch.setattr(tensorrt, "compile_network", build)
    with pytest.raises(EngineError, match="the plan cannot be loaded"):
        tensorrt.open_tensorrt(catalogue.read_card(), "fp16")
    assert len(built) == 2


def test_a_plan_that_is_not_what_its_header_says_is_refused(emulation: Emulation) -> None:
    said = plan_of(tensorrt.STRENGTH, "fp32")
    wrong = replace(said, outputs=(Tensor("strengths", "FLOAT", (-1, 8, 8)),))
    with pytest.raises(EngineError, match="its header says"):
        gpu.Gpu().load(wrong, {}, MOST)


def test_a_machine_without_a_gpu_is_said_so(emulation: Emulation) -> None:
    emulation.driver.gpus = 0
    with pytest.raises(EngineError, match="CUDA finds no GPU"):
        gpu.Gpu()


def test_the_whole_way_from_card_to_engine_uses_the_cache(
    emulation: Emulation, reference: OnnxEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`open_engine("tensorrt")`: plans are compiled once, loaded, checked, and answered for."""
    built: list[str] = []

    def build(card: catalogue.Card, key: tensorrt.PlanKey) -> Compiled:
        built.append(key.network)
        assert (key.gpu, key.capability) == ("Emulated L4", "SM89")
        return plan_of(key.network, key.precision)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CACHE_DIRECTORY", raising=False)
    monkeypatch.setattr(tensorrt, "runtime_name", lambda: "emulated 1.0")
    monkeypatch.setattr(tensorrt, "compile_network", build)
    monkeypatch.setattr(tensorrt, "BATCHES", tensorrt_compiler.Batches(1, 2, MOST))
    for _ in range(2):
        engine = opening.open_engine("tensorrt")
        assert engine.name == "tensorrt fp16"
        np.testing.assert_allclose(engine.decode(FRAMES), reference.decode(FRAMES), atol=0.02)
    assert sorted(built) == sorted(tensorrt.NETWORKS)
