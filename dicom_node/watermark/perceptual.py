"""What a frame looks like, in 64 bits: the DCT perceptual hash."""

from __future__ import annotations

import cv2
import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

BITS = 64


def perceptual_hash(display: NDArray[np.float32]) -> bytes:
    """Return the 64-bit pHash of a display frame, ``(rows, columns)`` in 0..1, as 8 bytes.

    References
    ----------
    Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010;
    computed by ``imagehash.phash`` (32 x 32 DCT, 8 x 8 low frequencies, median threshold).
    """
    small = np.asarray(display, np.float32)
    if min(display.shape) > 128:
        small = np.asarray(cv2.resize(small, (128, 128), interpolation=cv2.INTER_AREA), np.float32)
    picture = Image.fromarray(np.rint(np.clip(small, 0, 1) * 255).astype(np.uint8))
    return np.packbits(imagehash.phash(picture).hash.reshape(-1)).tobytes()


def distance(a: bytes, b: bytes) -> int:
    """Return how many of the 64 bits differ."""
    return (int.from_bytes(a, "big") ^ int.from_bytes(b, "big")).bit_count()
