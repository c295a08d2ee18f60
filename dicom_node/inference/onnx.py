"""The default backend: ONNX Runtime on one CPU thread."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dicom_node.inference.base import Float32, Int8, RobustEngine
from dicom_node.inference.catalogue import Card, load_patterns, patterns_id
from dicom_node.inference.sessions import expect, open_session

if TYPE_CHECKING:
    import onnxruntime as ort


class OnnxEngine(RobustEngine):
    """Both networks of W1 in ONNX Runtime."""

    name = "onnx"

    def __init__(self, card: Card) -> None:
        self.side, self.code_bits, self.grid = card.side, card.code_bits, card.grid
        self.loop = card.loop
        self._card = card
        frame, samples = (1, card.side, card.side), (card.side**2,)
        self._strength = _opened(card, "strength.onnx", frame, (card.grid, card.grid))
        self._whitener = _opened(card, "d1.onnx", frame, samples)

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


def _opened(
    card: Card, file: str, takes: tuple[int, ...], gives: tuple[int, ...]
) -> ort.InferenceSession:
    path = card.path(file)
    session = open_session(path)
    expect(session, path, takes, gives)
    return session
