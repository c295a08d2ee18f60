"""A device made of the CPU: the networks really run, in ONNX Runtime, one lane at a time.

What a GPU adds to this is memory, copies and launches (`dicom_node/inference/gpu.py`); everything
that decides what to run, in which order, and what to do when it fails, runs the same on both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from dicom_node.inference.base import Float32
from dicom_node.inference.catalogue import read_card
from dicom_node.inference.lanes import Pipeline
from dicom_node.inference.onnx import OnnxEngine
from dicom_node.inference.tensorrt import STRENGTH, WHITENER, TensorRtEngine


@dataclass
class Device:
    """What happened on it, and when it fails: `fault` sees every batch size before it runs."""

    engine: OnnxEngine
    fault: Callable[[int], None] = lambda frames: None
    rounding: Callable[[Float32], Float32] = lambda values: values
    events: list[tuple[str, int, int]] = field(default_factory=list)

    def run(self, frames: Float32, output: str) -> Float32:
        """Compute one output, as the plan would."""
        ask = {"whitened": self.engine.whiten, "soft": self.engine.decode,
               "strengths": self.engine.strengths}  # fmt: skip
        return self.rounding(ask[output](frames))


class CpuLane:
    """A `Lane` on a `Device`: computes when it is collected, as a stream may."""

    def __init__(self, device: Device, number: int) -> None:
        self.device, self.number = device, number
        self.loaded: tuple[Float32, str] | None = None

    def submit(self, frames: Float32, output: str) -> None:
        assert self.loaded is None, "a lane was loaded again before it was emptied"
        self.device.events.append(("submit", self.number, len(frames)))
        self.loaded = (frames.copy(), output)

    def collect(self) -> Float32:
        assert self.loaded is not None
        (frames, output), self.loaded = self.loaded, None
        self.device.events.append(("collect", self.number, len(frames)))
        self.device.fault(len(frames))
        return self.device.run(frames, output)

    def drain(self) -> None:
        self.loaded = None


def engine_on(device: Device, most: int = 4) -> TensorRtEngine:
    """Return the TensorRT engine with `device` in the place of a GPU."""
    networks = {
        file: Pipeline([CpuLane(device, 0), CpuLane(device, 1)], most)
        for file in (WHITENER, STRENGTH)
    }
    return TensorRtEngine(read_card(), networks, "fp16")


def real_frames() -> Float32:
    """Return the frames that come with the networks, ``(7, 1, 128, 128)``, 0..1."""
    card = read_card()
    frames = np.load(card.folder / "check_frames.npy")
    shown: Float32 = frames[:, None].astype(np.float32) / np.float32(255)
    return shown
