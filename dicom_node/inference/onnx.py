"""The default backend: ONNX Runtime on one CPU thread."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import onnxruntime as ort

from dicom_node.errors import EngineError
from dicom_node.inference.base import Float32, Int8, RobustEngine
from dicom_node.inference.catalogue import Card, load_patterns, patterns_id

# The published wheels carry an uploader; a node in a hospital sends nothing it was not told to.
ort.disable_telemetry_events()


class OnnxEngine(RobustEngine):
    """Both networks of W1 in ONNX Runtime.

    One thread a session: the workers are the parallelism, and spinning thread pools on shared
    cores cost a factor of six (measured).
    """

    name = "onnx"

    def __init__(self, card: Card) -> None:
        self.side, self.code_bits, self.grid = card.side, card.code_bits, card.grid
        self.loop = card.loop
        self._card = card
        self._strength = _session(card, "strength.onnx")
        self._whitener = _session(card, "d1.onnx")
        self._expect()

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
        whitened: Float32 = self._whitener.run(None, {"frame": frames})[0]
        return whitened

    def strengths(self, frames: Float32) -> Float32:
        """Run E1's strength network, see `RobustEngine`."""
        grids: Float32 = np.rint(self._strength.run(None, {"frame": frames})[0])
        return grids

    def _expect(self) -> None:
        """Refuse networks of another shape than the card says (EngineError)."""
        frame = [self.side, self.side]
        for session in (self._strength, self._whitener):
            shape = session.get_inputs()[0].shape
            if shape[-2:] != frame:
                raise EngineError(
                    f"{self._card.folder}: a network takes {shape}, the card says {frame}"
                )
        width = self._whitener.get_outputs()[0].shape[-1]
        if width != self.side**2 or self._strength.get_outputs()[0].shape[-1] != self.grid:
            raise EngineError(f"{self._card.folder}: the networks do not fit their card: reinstall")


def _session(card: Card, file: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    path = card.path(file)
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own, undocumented classes
        raise EngineError(f"{path}: ONNX Runtime cannot load it: {error}") from error
