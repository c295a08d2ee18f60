"""The third backend: ONNX Runtime on a GPU (package onnxruntime-gpu).

Not run on a GPU yet: none was at hand. ONNX Runtime quietly works on the CPU where CUDA does not
load; that is found out and refused here, or "cuda" would be a name for the slow way.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime as ort

from dicom_node.errors import EngineError
from dicom_node.inference.base import Float32, Int8, RobustEngine
from dicom_node.inference.catalogue import Card, load_patterns, patterns_id
from dicom_node.inference.lanes import DeviceLost, OutOfDeviceMemory
from dicom_node.inference.sessions import expect

CUDA = "CUDAExecutionProvider"
_MEMORY_WORDS = ("out of memory", "failed to allocate memory", "bfcarena", "cuda failure 2:")


class OnnxCudaEngine(RobustEngine):
    """Both networks of W1 in ONNX Runtime on `provider`.

    Raises
    ------
    EngineError
        The provider is not part of this ONNX Runtime, or finds no device.
    """

    name = "cuda"

    def __init__(self, card: Card, provider: str = CUDA) -> None:
        self.side, self.code_bits, self.grid = card.side, card.code_bits, card.grid
        self.loop = card.loop
        self._card = card
        frame, samples = (1, card.side, card.side), (card.side**2,)
        self._whitener = open_on(card.path("d1.onnx"), provider)
        expect(self._whitener, card.folder / "d1.onnx", frame, samples)
        self._strength = open_on(card.path("strength.onnx"), provider)
        expect(self._strength, card.folder / "strength.onnx", frame, (card.grid, card.grid))

    @cached_property
    def patterns(self) -> Int8:
        """Carrier patterns, see `RobustEngine`."""
        return load_patterns(self._card)

    @cached_property
    def model_id(self) -> bytes:
        """Which patterns a record refers to."""
        return patterns_id(self.patterns)

    def whiten(self, frames: Float32) -> Float32:
        """Run D1's whitener, see `RobustEngine`."""
        return _run(self._whitener, frames)

    def strengths(self, frames: Float32) -> Float32:
        """Run E1's strength network, see `RobustEngine`."""
        return np.rint(_run(self._strength, frames))


def open_on(path: Path, provider: str) -> ort.InferenceSession:
    """Open a network, checked against its card, on `provider` and on no other.

    Raises
    ------
    EngineError
        The provider is not part of this ONNX Runtime, or finds no device; the file is no network.
    """
    if provider not in ort.get_available_providers():
        raise EngineError(
            f"this ONNX Runtime has no {provider}; in place of onnxruntime install onnxruntime-gpu"
        )
    if provider == CUDA:
        with redirect_stdout(sys.stderr):  # it prints, and standard output is for results
            ort.preload_dlls()  # finds CUDA and cuDNN in their own packages, else in the system
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # TF32 would halve the digits of what is compared with the CPU.
    asked = (provider, {"use_tf32": "0"}) if provider == CUDA else provider
    try:
        session = ort.InferenceSession(str(path), options, providers=[asked])
    except Exception as error:  # onnxruntime raises its own, undocumented classes
        raise _ours(f"{path}: ONNX Runtime cannot load it", error) from error
    if provider not in session.get_providers():
        raise EngineError(f"{provider} found no device it can use and fell back to the CPU")
    return session


def _run(session: ort.InferenceSession, frames: Float32) -> Float32:
    try:
        result: Float32 = session.run(None, {"frame": frames})[0]
    except Exception as error:  # the same
        raise _ours("ONNX Runtime failed on the device", error) from error
    return result


def _ours(what: str, error: Exception) -> EngineError:
    """Return our error for one of ONNX Runtime's, which differ in their text alone."""
    said = str(error)
    if "INVALID_ARGUMENT" in said:  # what was asked is at fault, not the device
        return EngineError(f"{what}: {said}")
    if any(word in said.lower() for word in _MEMORY_WORDS):
        return OutOfDeviceMemory(f"{what}: {said}")
    return DeviceLost(f"{what}: {said}")
