"""What a frame looks like, in 64 bits: the DCT perceptual hash."""

from __future__ import annotations

from functools import cache

import cv2
import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

BITS = 64
_SIDE, _FACTOR = 8, 4  # of imagehash.phash
SMALL_SIDE = _SIDE * _FACTOR
# Nearer the median than this, how a transform rounds decides a bit, so imagehash's own has to. It
# is not used for every frame because it loads scipy: 0.15 s of every process.
_ROUNDING = 1e-3


def perceptual_hash(display: NDArray[np.float32]) -> bytes:
    """Return the 64-bit pHash of a display frame, ``(rows, columns)`` in 0..1, as 8 bytes.

    References
    ----------
    Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010;
    as ``imagehash.phash`` computes it (32 x 32 DCT, 8 x 8 low frequencies, median threshold).
    """
    picture = _picture(display)
    low = _low_frequencies(picture)
    above = low - np.median(low)
    if np.abs(above).min() < _ROUNDING:
        return np.packbits(imagehash.phash(picture).hash.reshape(-1)).tobytes()
    return np.packbits((above > 0).reshape(-1)).tobytes()


def coefficients(display: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return what the bits of the hash are decided by, ``(8, 8)``: 1 above their median."""
    return _low_frequencies(_picture(display))


def small(display: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the grey levels 0..255 that the hash is made of, ``(SMALL_SIDE, SMALL_SIDE)``."""
    return _small(_picture(display))


@cache
def waves() -> NDArray[np.float64]:
    """Return what makes coefficients of these grey levels, ``(64, SMALL_SIDE**2)``."""
    basis = _cosines(SMALL_SIDE)[:_SIDE]
    both: NDArray[np.float64] = np.einsum("ai,bj->abij", basis, basis).reshape(BITS, -1)
    return both


def _low_frequencies(picture: Image.Image) -> NDArray[np.float64]:
    basis = _cosines(SMALL_SIDE)[:_SIDE]
    low: NDArray[np.float64] = basis @ _small(picture) @ basis.T
    return low


def _small(picture: Image.Image) -> NDArray[np.float64]:
    sides = (SMALL_SIDE, SMALL_SIDE)
    return np.asarray(picture.resize(sides, Image.Resampling.LANCZOS), np.float64)


def _picture(display: NDArray[np.float32]) -> Image.Image:
    small = np.asarray(display, np.float32)
    if min(display.shape) > 128:
        small = np.asarray(cv2.resize(small, (128, 128), interpolation=cv2.INTER_AREA), np.float32)
    return Image.fromarray(np.rint(np.clip(small, 0, 1) * 255).astype(np.uint8))


@cache
def _cosines(side: int) -> NDArray[np.float64]:
    """Return the DCT-II as a matrix, unnormalised, as imagehash takes it from scipy."""
    sample, frequency = np.arange(side), np.arange(side)[:, None]
    waves: NDArray[np.float64] = 2 * np.cos(np.pi * frequency * (2 * sample + 1) / (2 * side))
    return waves


def distance(a: bytes, b: bytes) -> int:
    """Return how many of the 64 bits differ."""
    return (int.from_bytes(a, "big") ^ int.from_bytes(b, "big")).bit_count()
