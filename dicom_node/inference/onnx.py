"""The default backend: ONNX Runtime on one CPU thread."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import onnxruntime as ort

from dicom_node.errors import EngineError
from dicom_node.inference.base import Float32
from dicom_node.inference.catalogue import Card, load_patterns, patterns_id

# The published wheels carry an uploader; a node in a hospital sends nothing it was not told to.
ort.disable_telemetry_events()


class OnnxEngine:
    """Both networks of W1 in ONNX Runtime.

    One thread a session: the workers are the parallelism, and spinning thread pools on shared
    cores cost a factor of six (measured).
    """

    name = "onnx"

    def __init__(self, card: Card) -> None:
        self.side, self.code_bits, self.grid = card.side, card.code_bits, card.grid
        self._card = card
        self._encoder = _session(card, "e1.onnx")
        self._decoder = _session(card, "d1.onnx")
        self._expect()

    @cached_property
    def patterns(self) -> Float32:
        """Carrier patterns, see `RobustEngine`."""
        return load_patterns(self._card)

    @cached_property
    def model_id(self) -> bytes:
        """Which patterns a record refers to."""
        return patterns_id(self.patterns)

    @cached_property
    def _norms(self) -> Float32:
        norms: Float32 = np.linalg.norm(self.patterns, axis=1).astype(np.float32)
        return norms

    def encode(self, frames: Float32, code_words: Float32, rms: Float32) -> tuple[Float32, Float32]:
        """Run E1, see `RobustEngine`."""
        amplitudes, strengths = self._encoder.run(
            None,
            {"frame": frames, "bits": code_words, "rms": rms, "patterns": self.patterns,
             "norms": self._norms},
        )  # fmt: skip
        return np.rint(amplitudes), np.rint(strengths[:, 0])

    def decode(self, frames: Float32) -> Float32:
        """Run D1, see `RobustEngine`."""
        whitened = self._decoder.run(None, {"frame": frames})[0]
        soft: Float32 = (whitened @ self.patterns.T) / self._norms
        return soft

    def _expect(self) -> None:
        """Refuse networks of another shape than the card says (EngineError)."""
        frame = [self.side, self.side]
        for session in (self._encoder, self._decoder):
            shape = session.get_inputs()[0].shape
            if shape[-2:] != frame:
                raise EngineError(
                    f"{self._card.folder}: a network takes {shape}, the card says {frame}"
                )
        width = self._decoder.get_outputs()[0].shape[-1]
        if width != self.side**2 or self._encoder.get_inputs()[1].shape[-1] != self.code_bits:
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
