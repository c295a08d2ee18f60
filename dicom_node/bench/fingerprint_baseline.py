"""What a fingerprint would be without a network: signs of a few DCT coefficients of every cell.

Of the same size as f, and compared as softly: a sign counts by how far the picture is past it.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

SIDE, CELLS = 128, 16
# Row and column of the coefficients kept of a block of 16 x 16 around a cell of 8 x 8.
_KEPT = ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1), (2, 2))
_FLOOR = 0.02  # display values: less contrast than this says little


def signature(display: Float32) -> NDArray[np.bool_]:
    """Return the signs, ``(cells, cells, 8)``, of a display frame 0..1."""
    return _coefficients(display) > 0


def signature_scores(signs: NDArray[np.bool_], display: Float32) -> Float32:
    """Return how much each cell of a display frame disagrees with `signs`, ``(cells, cells)``."""
    now = _coefficients(display)
    scores: Float32 = np.where((now > 0) == signs, 0, np.abs(now)).sum(-1)
    return scores


def _coefficients(display: Float32) -> Float32:
    """Return the coefficients of every cell over the energy of its block, ``(cells, cells, 8)``."""
    how = cv2.INTER_AREA if min(display.shape) >= SIDE else cv2.INTER_LINEAR
    small = cv2.resize(display, (SIDE, SIDE), interpolation=how)
    width = SIDE // CELLS
    padded = np.pad(small, width // 2, "symmetric")
    blocks = np.lib.stride_tricks.sliding_window_view(padded, (2 * width, 2 * width))
    blocks = blocks[::width, ::width][:CELLS, :CELLS]
    waves = np.cos(np.pi / (2 * width) * np.outer(np.arange(3), np.arange(2 * width) + 0.5))
    kept = np.stack(
        [np.einsum("abij,i,j->ab", blocks, waves[u], waves[v]) for u, v in _KEPT], -1
    )  # fmt: skip
    energy = blocks.std((-2, -1)) + _FLOOR
    coefficients: Float32 = (kept / energy[..., None] / (2 * width)).astype(np.float32)
    return coefficients
