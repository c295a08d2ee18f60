"""What the watermark asks of a backend."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


class RobustEngine(Protocol):
    """Both networks of W1 on one backend.

    Frames are *display* values 0..1, ``(batch, 1, side, side)``; code words are -1/+1,
    ``(batch, code_bits)``. What comes back only *chooses* integers: no bit of a restored image
    depends on the backend, its precision or its rounding.
    """

    name: str
    side: int
    code_bits: int
    grid: int

    @property
    def patterns(self) -> Float32:
        """Carrier patterns, integers -127..127 held as float32, ``(code_bits, side * side)``."""
        ...

    @property
    def model_id(self) -> bytes:
        """First four bytes of the SHA-256 of the patterns: which patterns a record refers to."""
        ...

    def encode(self, frames: Float32, code_words: Float32, rms: Float32) -> tuple[Float32, Float32]:
        """Run E1.

        Parameters
        ----------
        frames, code_words
            The covers and what to put in.
        rms
            Budget: root mean square of the residual over the frame, display values,
            ``(batch, 1)``.

        Returns
        -------
        amplitudes, strengths
            ``(batch, code_bits)`` in -31..31 and ``(batch, grid, grid)`` in 0..7, whole numbers.
        """
        ...

    def decode(self, frames: Float32) -> Float32:
        """Run D1: soft bits ``(batch, code_bits)``; sign is the bit, size how sure it is."""
        ...
