"""All angles of a whitened picture at once, and what speaks for one of them.

Soft bits are inner products with the carrier patterns, so those of every angle are correlations
along the circles around the centre: one Fourier transform instead of a resampling per hypothesis
(all shifts: :mod:`shifts`). Which hypothesis is right is told without
knowing the message: at the frame's true place the soft bits are larger than elsewhere, and, since
E1 gave each what it needed and no more, of nearly equal size.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom_node.inference.base import Float32

Complex64 = NDArray[np.complex64]

ANGLES = 1024
_SAMPLED = 512  # angles of a circle that are sampled: between them, soft bits are interpolated
_INNER, _OUTER, _RADIAL_STEP = 3.0, 88.0, 0.8  # samples of 128; nothing is told nearer the centre
_MEAN_RATIO = float(np.sqrt(2 / np.pi))  # mean size over rms, of normal soft bits
_RATIO_SPREAD = float(np.sqrt(1 - 3 / np.pi))  # standard deviation of that, times sqrt(K)


def evidence(energy: Float32, size: Float32, bits: int, noise: float) -> Float32:
    """Return how unlike chance soft bits are, in standard deviations, two of them added.

    Parameters
    ----------
    energy, size
        Sums over `bits` soft bits of their squares and absolute values, any shape.
    noise
        Mean square of a soft bit where nothing is marked.
    """
    power = (energy / noise - bits) / np.sqrt(2.0 * bits)
    ratio = size / np.sqrt(bits * energy + np.float32(1e-9))
    evenness = (ratio - _MEAN_RATIO) * (np.sqrt(bits) / _RATIO_SPREAD)
    both: Float32 = (power + evenness).astype(np.float32)
    return both


def chance(places: int) -> float:
    """Return about the most evidence that chance finds in so many places (two normal variables)."""
    return float(np.sqrt(4 * np.log(max(places, 2))))


def enlarged(plane: Float32, times: int) -> Float32:
    """Return ``(n, n)`` at ``(times n, times n)``, interpolated in the frequency domain.

    Sample i becomes sample ``times * i``. The patterns reach 0.47 cycles a sample, where bilinear
    interpolation alone halves them.
    """
    n = plane.shape[-1]
    half = n // 2
    spectrum = np.fft.rfft2(plane)
    spectrum[:, half] /= 2  # the highest frequency is shared between both signs
    wide = np.zeros((times * n, times * half + 1), np.complex64)
    wide[:half, : half + 1] = spectrum[:half]
    wide[-half:, : half + 1] = spectrum[half:]
    wide[-half] /= 2
    wide[half] = wide[-half]
    return (np.fft.irfft2(wide, s=(times * n, times * n)) * times**2).astype(np.float32)


class Turns(NamedTuple):
    """What speaks for every angle of a whitened picture.

    Attributes
    ----------
    soft
        Soft bits, ``(ANGLES, K)``.
    there
        Evidence, ``(ANGLES,)``.
    noise
        Mean square of a soft bit at most angles.
    """

    soft: Float32
    there: Float32
    noise: float


class TurnBank:
    """Soft bits of every angle of whitened pictures, around their middle.

    Parameters
    ----------
    doubled
        Patterns, each of norm 1 and then `enlarged` twice, ``(K, 2 side, 2 side)``.
    aspect
        Columns over rows of the frame: it was marked at ``side x side``, and turned at its own.
    """

    def __init__(self, doubled: Float32, aspect: float) -> None:
        self.bits, self._side = len(doubled), doubled.shape[-1] // 2
        self.aspect = aspect
        bank = np.empty((_SAMPLED // 2 + 1, self.bits, len(self._radii)), np.complex64)
        # Sums over circles become sums over samples, so that both banks' soft bits compare.
        area = self._radii * np.float32(2 * np.pi / _SAMPLED * (self._radii[1] - self._radii[0]))
        around = self._around(1.0, np.sqrt(aspect))
        for number, pattern in enumerate(doubled):
            circles = _sampled(pattern, *around)
            bank[:, number] = np.fft.rfft(circles, axis=1).conj().T * area
        self._bank: Complex64 = bank

    @cached_property
    def _radii(self) -> Float32:
        factor = self._side / 128
        return np.arange(_INNER, _OUTER, _RADIAL_STEP, dtype=np.float32) * np.float32(factor)

    def _around(self, size: float, stretch: float) -> tuple[Float32, Float32]:
        """Return columns and rows of the circles' samples in a doubled plane."""
        angle = np.arange(_SAMPLED, dtype=np.float32) * np.float32(2 * np.pi / _SAMPLED)
        radius = (2 * size * self._radii)[:, None]
        across = self._side - 1 + radius * np.cos(angle) / np.float32(stretch)
        down = self._side - 1 + radius * np.sin(angle) * np.float32(stretch)
        return across.astype(np.float32), down.astype(np.float32)

    def soft_bits(self, planes: list[tuple[Float32, float]]) -> Float32:
        """Return soft bits ``(ANGLES, K, len(planes))`` by angle, anticlockwise.

        Parameters
        ----------
        planes
            Whitened pictures, doubled, of square samples; with each the side of a frame of equal
            area, as a part of the picture's side.
        """
        circles = np.stack([_sampled(plane, *self._around(size, 1.0)) for plane, size in planes])
        turning = np.fft.rfft(circles, axis=2).astype(np.complex64).transpose(2, 1, 0)
        both = np.matmul(self._bank, np.ascontiguousarray(turning))
        # A turn against the clock is one towards smaller angles where y points down.
        soft = np.fft.irfft(both.conj(), n=ANGLES, axis=0) * (ANGLES / _SAMPLED)
        return soft.astype(np.float32)

    def ask(self, planes: list[tuple[Float32, float]]) -> list[Turns]:
        """Return what speaks for every angle of each plane, as `soft_bits` takes them."""
        soft = self.soft_bits(planes)
        energy, size = np.square(soft).sum(1).T, np.abs(soft).sum(1).T
        noises = [float(np.median(each)) / self.bits for each in energy]
        return [
            Turns(soft[:, :, n], evidence(energy[n], size[n], self.bits, noise), noise)
            for n, noise in enumerate(noises)
        ]


def _sampled(plane: Float32, across: Float32, down: Float32) -> Float32:
    return np.asarray(cv2.remap(plane, across, down, cv2.INTER_LINEAR,
                                borderMode=cv2.BORDER_CONSTANT))  # fmt: skip
