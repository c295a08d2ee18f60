"""What the watermark asks of a backend, and E1's loop, which is the same on all of them.

A backend runs two small networks: D1's whitener and E1's strength network. Correlating with the
carrier patterns and the closed loop are a few passes over 16,384 samples, cheapest where the
frame is: on the CPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom_node.inference.correlator import correlate, lay_over, superpose

Float32 = NDArray[np.float32]
Int8 = NDArray[np.int8]

AMPLITUDE = 31  # largest amplitude
CREST = 2.6  # where the carrier is cut, in standard deviations
_LEAST_SOFTNESS = 0.05


class Loop(NamedTuple):
    """The numbers of E1's loop, one of each a turn.

    Attributes
    ----------
    step
        How far an amplitude moves when its bit is wholly unread.
    softness
        Soft-bit value by which a bit's need falls from 0.5 to 0.27.
    """

    step: tuple[float, ...]
    softness: tuple[float, ...]


class RobustEngine(ABC):
    """Both networks of W1 on one backend.

    Frames are *display* values 0..1, ``(batch, 1, side, side)``; code words are -1/+1,
    ``(batch, code_bits)``. What comes back only *chooses* integers: no bit of a restored image
    depends on the backend, its precision or its rounding.
    """

    name: str
    side: int
    code_bits: int
    grid: int
    loop: Loop

    @property
    @abstractmethod
    def patterns(self) -> Int8:
        """Carrier patterns, -127..127, ``(code_bits, side * side)``."""

    @property
    @abstractmethod
    def model_id(self) -> bytes:
        """First four bytes of the SHA-256 of the patterns: which patterns a record refers to."""

    @abstractmethod
    def whiten(self, frames: Float32) -> Float32:
        """Run D1 up to its correlators: ``(batch, side * side)``, of unit power times a gain."""

    @abstractmethod
    def strengths(self, frames: Float32) -> Float32:
        """Run E1's strength network: whole numbers 0..7, ``(batch, grid, grid)``."""

    @cached_property
    def _norms(self) -> Float32:
        norms: Float32 = np.linalg.norm(self.patterns.astype(np.float32), axis=1)
        return norms

    def decode(self, frames: Float32) -> Float32:
        """Run D1: soft bits ``(batch, code_bits)``; sign is the bit, size how sure it is."""
        return self.soft_bits(self.whiten(frames))

    def soft_bits(self, whitened: Float32) -> Float32:
        """Return the products of whitened pictures with the patterns of norm 1, ``(batch, K)``."""
        soft: Float32 = np.stack([correlate(row, self.patterns) for row in whitened])
        soft /= self._norms
        return soft

    def encode(
        self, frames: Float32, code_words: Float32, rms: Float32, *,
        before: Float32 | None = None, softness: float | None = None,
    ) -> tuple[Float32, Float32]:  # fmt: skip
        """Run E1: look through D1, raise what is not read yet, and look again.

        Parameters
        ----------
        frames, code_words
            The covers and what to put in.
        rms
            Budget: root mean square of the residual over the frame, display values,
            ``(batch, 1)``.
        before
            Soft bits of the covers ``(batch, code_bits)``, where the caller has them. Those of the
            covers through a blur make the mark survive blurs better, at no cost to the rest.
        softness
            Instead of the loop's own, to choose otherwise than before: less of it gives more to
            the bits that read worst.

        Returns
        -------
        amplitudes, strengths
            ``(batch, code_bits)`` in -31..31 and ``(batch, grid, grid)`` in 0..7, whole numbers.
        """
        grids = self.strengths(frames)
        amplitudes = np.zeros_like(code_words)
        soft = self.decode(frames) if before is None else before
        for turn, (step, own) in enumerate(zip(*self.loop, strict=True)):
            if turn:
                soft = self.decode(self.picture(frames, amplitudes, grids, rms))
            soft = code_words * soft
            need = 1 / (1 + np.exp(soft / max(softness or own, _LEAST_SOFTNESS)))
            amplitudes = amplitudes + np.float32(step) * code_words * need
        return np.stack([_whole(row) for row in amplitudes]).astype(np.float32), grids

    def picture(
        self, frames: Float32, amplitudes: Float32, grids: Float32, rms: Float32
    ) -> Float32:
        """Return the frames with what the loop has chosen so far on them."""
        size = (self.side, self.side)
        marked = np.empty_like(frames)
        for index, row in enumerate(amplitudes):
            strength = cv2.resize(grids[index], size, interpolation=cv2.INTER_LINEAR)
            marked[index, 0] = lay_over(
                frames[index, 0].reshape(-1), superpose(_whole(row), self.patterns),
                strength.reshape(-1), CREST, float(rms[index, 0]),
            ).reshape(size)  # fmt: skip
        return marked


def _whole(amplitudes: Float32) -> NDArray[np.int32]:
    """Return amplitudes as they are recorded: whole, the largest of them `AMPLITUDE`."""
    largest = max(float(np.abs(amplitudes).max()), 1e-6)
    whole: NDArray[np.int32] = np.rint(amplitudes * (AMPLITUDE / largest)).astype(np.int32)
    return whole
