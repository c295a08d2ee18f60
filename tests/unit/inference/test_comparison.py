"""A backend is used only if it chooses and reads as ONNX Runtime on the CPU does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cpu_lanes import Device, engine_on, real_frames

from dicom_node.errors import EngineError
from dicom_node.inference.base import Float32, RobustEngine
from dicom_node.inference.catalogue import Card, read_card
from dicom_node.inference.comparison import Comparison, compare
from dicom_node.inference.onnx import OnnxEngine
from dicom_node.inference.onnx_cuda import OnnxCudaEngine
from dicom_node.inference.opening import passing
from dicom_node.instance.display import display_of
from dicom_node.instance.frames import open_instance
from dicom_node.watermark.robust import RobustWatermark


@pytest.fixture(scope="module")
def reference() -> OnnxEngine:
    return OnnxEngine(read_card())


def half(values: Float32) -> Float32:
    return values.astype(np.float16).astype(np.float32)


def opener(reference: OnnxEngine, rounding: Callable[[Float32], Float32]) -> object:
    return lambda card: engine_on(Device(reference, rounding=rounding))


def test_half_precision_results_pass(reference: OnnxEngine) -> None:
    engine = passing(opener(reference, half), read_card(), reference)
    assert engine.name == "tensorrt fp16"


def test_the_same_networks_through_another_session_pass(reference: OnnxEngine) -> None:
    other = OnnxCudaEngine(read_card(), provider="CPUExecutionProvider")
    assert compare(other, reference, real_frames()).ok


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda values: np.full_like(values, np.nan), "returns what is no number"),
        (lambda values: np.zeros_like(values), "soft bits off by [23]"),
        (lambda values: values * np.float32(1.1), "soft bits off"),
        (lambda values: np.roll(values, 1, axis=0), "soft bits off"),  # a neighbour's answer
        (lambda values: np.round(values), "soft bits off by 0.2"),
    ],
    ids=["not a number", "zeros", "a tenth too large", "frames mixed up", "coarse"],
)
def test_an_engine_out_of_tolerance_is_refused(
    reference: OnnxEngine, fault: Callable[[Float32], Float32], words: str
) -> None:
    with pytest.raises(EngineError, match=f"tensorrt fp16 (is out of tolerance: .*)?{words}"):
        passing(opener(reference, fault), read_card(), reference)


WITHIN = Comparison(soft=0.02, cells=0.02, largest_cell=1, amplitude=0.25, agreement=0.01)


@pytest.mark.parametrize(
    ("figure", "beyond"),
    [("soft", 0.021), ("cells", 0.021), ("largest_cell", 2.0), ("amplitude", 0.26),
     ("agreement", 0.011)],
)  # fmt: skip
def test_each_figure_alone_can_refuse_an_engine(figure: str, beyond: float) -> None:
    assert WITHIN.ok
    assert not replace(WITHIN, **{figure: beyond}).ok
    assert not replace(WITHIN, **{figure: np.nan}).ok


class Shifted(OnnxCudaEngine):
    """Finds every strength one cell to the left of where it belongs."""

    def strengths(self, frames: Float32) -> Float32:
        return np.roll(super().strengths(frames), 1, axis=2)


class Careless(OnnxCudaEngine):
    """Leaves a quarter of the bits as the cover has them."""

    def encode(
        self, frames: Float32, code_words: Float32, rms: Float32, *, before: Float32 | None = None
    ) -> tuple[Float32, Float32]:
        amplitudes, grids = super().encode(frames, code_words, rms, before=before)
        amplitudes[:, ::4] = 0
        return amplitudes, grids


def test_each_figure_is_measured(reference: OnnxEngine) -> None:
    shifted = compare(Shifted(read_card(), "CPUExecutionProvider"), reference, real_frames())
    assert shifted.soft < 0.001
    assert shifted.cells > 0.2
    assert shifted.largest_cell >= 3
    careless = compare(Careless(read_card(), "CPUExecutionProvider"), reference, real_frames())
    assert (careless.soft < 0.001, careless.cells) == (True, 0)
    assert careless.amplitude > 0.25
    assert careless.agreement > 0.01


def test_a_backend_that_cannot_run_is_refused_with_its_reason(reference: OnnxEngine) -> None:
    def broken(card: Card) -> RobustEngine:
        raise EngineError("no such GPU")

    with pytest.raises(EngineError, match="no such GPU"):
        passing(broken, read_card(), reference)


def test_the_frames_compared_are_those_of_the_demo(reference: OnnxEngine) -> None:
    """The shipped array is made from the sample studies: nothing else, nothing synthetic."""
    paths = sorted((Path(__file__).parents[3] / "demo").rglob("*.dcm"))
    frames, watermark = real_frames(), RobustWatermark(reference)
    assert len(frames) == len(paths) >= 7
    for path, frame in zip(paths, frames, strict=True):
        with closing(open_instance(path, max_pixels=1 << 28)) as instance:
            shown = display_of(instance).image(instance.frame(0), 0)
        np.testing.assert_allclose(frame[0], watermark.resample(shown), atol=0.51 / 255)
