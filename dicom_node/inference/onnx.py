"""The default backend: ONNX Runtime on one CPU thread."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from dicom_node.errors import EngineError
from dicom_node.inference.base import Float32, Int8, RobustEngine
from dicom_node.inference.catalogue import Card, load_patterns, patterns_id
from dicom_node.inference.sessions import open_session


class OnnxEngine(RobustEngine):
    """Both networks of W1 in ONNX Runtime."""

    name = "onnx"

    def __init__(self, card: Card) -> None:
        self.side, self.code_bits, self.grid = card.side, card.code_bits, card.grid
        self.loop = card.loop
        self._card = card
        self._strength = open_session(card.path("strength.onnx"))
        self._whitener = open_session(card.path("d1.onnx"))
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
