"""All shifts of a whitened picture at once.

Soft bits are inner products with the carrier patterns, so those of every shift are correlations:
products of spectra. The patterns are noise of a band (0.27 to 0.47 cycles a sample), and a part of
them tells most shifts from the right one: first some patterns are asked, in their band, at every
shift, then all of them at the likeliest.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dicom_node.inference.base import Float32
from dicom_node.watermark.fourier import chance, evidence

Complex64 = NDArray[np.complex64]

_LIKELIEST = 12  # shifts at which all patterns are asked
_FAR = 7  # parts of the side by which a plane is shifted to look beside every mark
_TOLD = 4  # of these, among the likely and among all
_AT_ONCE = 32  # patterns asked together: what they take stays in the cache
_RUNS = 8  # of columns of the spectrum, each with rows of its own
_IN_BAND = 0.06  # of the most power of a frequency


class Peak(NamedTuple):
    """The likeliest of many shifts.

    Attributes
    ----------
    surprise
        How far its evidence is above what chance finds among so many.
    down, right
        The shift, samples.
    noise
        Mean square of a soft bit at all other shifts.
    """

    surprise: float
    down: float
    right: float
    noise: float


class Shifts(NamedTuple):
    """Every shift of a whitened picture that was asked.

    Attributes
    ----------
    down, right
        The shifts, samples: of the rows and of the columns of what follows.
    likely
        Whether a shift is within reach.
    roughly
        Evidence of the patterns that were asked.
    noise
        Mean square of a soft bit at all other shifts.
    """

    whitened: Float32
    down: Float32
    right: Float32
    likely: NDArray[np.bool_]
    roughly: Float32
    noise: float


class _Run(NamedTuple):
    """Frequencies in the patterns' band: some columns of the half spectrum, and rows of these.

    Attributes
    ----------
    spectra
        Conjugates of the patterns', ``(rows, patterns, columns)``.
    """

    rows: NDArray[np.int64]
    columns: slice
    spectra: Complex64

    def along_rows(self, first: int, last: int, rows: Complex64, spectrum: Complex64) -> Complex64:
        """Return what some patterns give along the rows, ``(shifts down, patterns, columns)``."""
        some = self.spectra[:, first:last]
        product = some * spectrum[self.rows, None, self.columns]
        shifted = rows[:, self.rows] @ product.reshape(len(self.rows), -1)
        return shifted.reshape(len(rows), *some.shape[1:])

    def weighed(self, weights: Float32) -> _Run:
        """Return the run of weighed sums of the first patterns; `weights` ``(n, some)``."""
        some = self.spectra.view(np.float32)[:, : weights.shape[1]]
        return self._replace(spectra=np.matmul(weights, some).view(np.complex64))


class ShiftBank:
    """Soft bits of shifts of a whitened picture, cyclic and by any part of a sample.

    Parameters
    ----------
    patterns
        ``(K, side, side)``, each of norm 1.
    """

    def __init__(self, patterns: Float32) -> None:
        self.bits, self._side = len(patterns), patterns.shape[-1]
        spectra = np.fft.rfft2(patterns).conj().astype(np.complex64)
        power = np.square(np.abs(spectra)).mean(0)
        in_band = power >= _IN_BAND * power.max()
        self._runs = [
            _Run(rows, run, np.ascontiguousarray(spectra[:, rows, run].transpose(1, 0, 2)))
            for run in _runs_of(in_band.any(0))
            for rows in [np.flatnonzero(in_band[:, run].any(1))]
        ]
        # Each column stands for its conjugate, too.
        twice = np.full(power.shape[1], 2.0, np.float32)
        twice[[0, -1]] = 1
        self._power = (power * twice).astype(np.float32)
        self._products = _as_reals(spectra.conj() * (twice / self._side**2))

    def sums(
        self, whitened: Float32, down: Float32, right: Float32, most: int
    ) -> tuple[Float32, Float32]:
        """Return sums of squares and of absolute soft bits, each ``(len(down), len(right))``.

        Entry ``[y, x]`` is of the frame whose origin lies at row ``down[y]``, column ``right[x]``
        of the whitened picture, in samples. The first `most` patterns are asked, in their band.
        Only these shifts are computed, each way by a matrix product: less than a whole transform,
        as most are few.
        """
        rows, parts = self._waves(down, right)
        spectrum = np.fft.rfft2(whitened).astype(np.complex64)
        energy = np.zeros((len(down), len(right)), np.float32)
        size = np.zeros_like(energy)
        for at in range(0, most, _AT_ONCE):
            last = min(at + _AT_ONCE, most)
            along_rows = [run.along_rows(at, last, rows, spectrum) for run in self._runs]
            partial = np.concatenate(along_rows, axis=2)
            soft = partial.view(np.float32).reshape(-1, len(parts)) @ parts
            soft = soft.reshape(len(down), -1, len(right))
            size += np.abs(soft).sum(1)
            energy += np.square(soft, out=soft).sum(1)
        return energy, size

    def _share_in_band(self, whitened: Float32) -> float:
        """Return which part of the mean square of a soft bit lies in the patterns' band."""
        power = np.square(np.abs(np.fft.rfft2(whitened))) * self._power
        in_band = sum(float(power[run.rows, run.columns].sum()) for run in self._runs)
        return in_band / float(power.sum()) if in_band else 1.0

    def soft_bits(self, whitened: Float32, down: Float32, right: Float32) -> Float32:
        """Return the soft bits of some shifts, ``(n, K)``; `down` and `right` are ``(n,)``."""
        per_sample = 2j * np.pi / self._side
        rows = np.exp(per_sample * np.outer(down, np.fft.fftfreq(self._side, 1 / self._side)))
        columns = np.exp(per_sample * np.outer(right, np.arange(self._side // 2 + 1)))
        shifted = rows.astype(np.complex64)[:, :, None] * columns.astype(np.complex64)[:, None]
        shifted *= np.fft.rfft2(whitened).astype(np.complex64)
        # Products with the patterns are those of the spectra: none is transformed back.
        soft: Float32 = _as_reals(shifted) @ self._products.T
        return soft

    def noise(self, whitened: Float32) -> float:
        """Return the mean square of a soft bit beside any mark: the median of far shifts."""
        far = np.arange(1, _FAR, dtype=np.float32) * np.float32(self._side / _FAR)
        energy, _ = self.sums(whitened, far, far, _AT_ONCE)
        return float(np.median(energy)) / _AT_ONCE / self._share_in_band(whitened)

    def ask(
        self, whitened: Float32, reach: tuple[float, float], beyond: float, first: int
    ) -> Shifts:
        """Return what speaks for every shift of a whitened picture within `reach` and `beyond` it.

        Shifts by half samples are asked: the farthest from any is a quarter both ways, where three
        quarters of the evidence are left.

        Parameters
        ----------
        reach
            Farthest likely shift, samples down and right.
        first
            How many patterns are asked at every shift.
        """
        down, right = (_half_samples(each + beyond, self._side) for each in reach)
        likely = (np.abs(down) <= reach[0])[:, None] & (np.abs(right) <= reach[1])
        return self.ask_at(whitened, down, right, first)._replace(likely=likely)

    def ask_at(self, whitened: Float32, down: Float32, right: Float32, first: int) -> Shifts:
        """Return what speaks for some shifts of a whitened picture, all of them within reach."""
        first = min(first, self.bits)
        energy, size = self.sums(whitened, down, right, first)
        noise = float(np.median(energy)) / first
        roughly = evidence(energy, size, first, noise)
        noise /= self._share_in_band(whitened)
        return Shifts(whitened, down, right, np.ones_like(roughly, np.bool_), roughly, noise)

    def peaks(self, asked: Shifts) -> Iterator[Peak]:
        """Yield the likeliest shifts: within reach, and of all; `_LIKELIEST` see all patterns."""
        y, x = _likeliest(asked.roughly)
        down, right = asked.down[y], asked.right[x]
        there = self.evidence_at(asked, down, right)
        for among in (asked.likely, np.ones_like(asked.likely)):
            expected = chance(int(among.sum()) // 4)
            some = np.flatnonzero(among[y, x])
            for one in some[np.argsort(-there[some])][:_TOLD]:
                surprise = float(there[one]) - expected
                yield Peak(surprise, float(down[one]), float(right[one]), asked.noise)

    def evidence_at(self, asked: Shifts, down: Float32, right: Float32) -> Float32:
        """Return the evidence of all patterns at some shifts, ``(n,)`` as they are."""
        soft = self.soft_bits(asked.whitened, down, right)
        energy, size = np.square(soft).sum(1), np.abs(soft).sum(1)
        return evidence(energy, size, self.bits, asked.noise)

    def weighed(self, asked: Shifts, weights: Float32) -> Float32:
        """Return weighed sums of the soft bits of every shift, ``(len(down), n, len(right))``.

        Parameters
        ----------
        weights
            Of the first patterns, ``(n, some)``.
        """
        rows, columns = self._waves(asked.down, asked.right)
        spectrum = np.fft.rfft2(asked.whitened).astype(np.complex64)
        along_rows = [run.weighed(weights).along_rows(0, len(weights), rows, spectrum)
                      for run in self._runs]  # fmt: skip
        partial = np.concatenate(along_rows, axis=2)
        soft: Float32 = partial.view(np.float32).reshape(-1, len(columns)) @ columns
        return soft.reshape(len(asked.down), -1, len(asked.right))

    def _waves(self, down: Float32, right: Float32) -> tuple[Complex64, Float32]:
        """Return what makes shifts of spectra in band: down ``(n, side)``, and right as reals."""
        half = self._side // 2
        per_sample = 2j * np.pi / self._side
        whole = np.fft.fftfreq(self._side, 1 / self._side)
        rows = np.exp(per_sample * np.outer(down, whole)).astype(np.complex64)
        columns = np.exp(per_sample * np.outer(np.arange(half + 1), right)) / self._side**2
        columns[1:half] *= 2  # each stands for its conjugate, too
        # The real part of a complex product is a product of real and imaginary parts.
        parts = np.stack([columns.real, -columns.imag], 1).astype(np.float32)
        in_band = np.concatenate([parts[run.columns] for run in self._runs])
        return rows, in_band.reshape(-1, len(right))


def _as_reals(spectra: Complex64) -> Float32:
    """Return ``(n, ...)`` as ``(n, numbers)``: products of these are real parts of products."""
    return spectra.reshape(len(spectra), -1).view(np.float32)


def _likeliest(there: Float32) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows and columns of the `_LIKELIEST` entries, one of 2 x 2 at most."""
    rows, columns = (-(-n // 2) for n in there.shape)
    even = np.full((2 * rows, 2 * columns), -np.inf, np.float32)
    even[: there.shape[0], : there.shape[1]] = there
    blocks = even.reshape(rows, 2, columns, 2).transpose(0, 2, 1, 3).reshape(-1, 4)
    most = min(_LIKELIEST, len(blocks))
    chosen = np.argpartition(-blocks.max(1), most - 1)[:most]
    within = blocks[chosen].argmax(1)
    return 2 * (chosen // columns) + within // 2, 2 * (chosen % columns) + within % 2


def _runs_of(columns: NDArray[np.bool_]) -> Iterator[slice]:
    """Yield the columns from the first to the last that is in the band, in runs."""
    some = np.flatnonzero(columns)
    ends = np.linspace(some[0], some[-1] + 1, _RUNS + 1).round().astype(int)
    for first, last in pairwise(ends):
        if last > first:
            yield slice(int(first), int(last))


def _half_samples(reach: float, side: int) -> Float32:
    """Return shifts by half samples up to `reach` both ways, each of a whole side once at most."""
    most = min(int(2 * reach), side - 1)
    return np.arange(-most, most + 1, dtype=np.float32) / np.float32(2)
