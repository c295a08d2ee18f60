"""Places where soft bits agree with the hash that the frame would have there.

Which place is right is told without the key by `fourier.evidence`; but a weak mark looks no more
like one than chance does. The first 64 bits of a code word are the frame's hash, hidden by signs of
the key, and the picture tells most of it wherever the frame may lie: at the right place both agree
by three to seven standard deviations. A hash changes little from shift to shift, so a sum of
patterns stands for many of them, and every shift costs a correlation, not 160.

False accepts: a place that was chosen so proves less. As many places as the key chose from are
counted as attempts wherever a message is recognised; tags say nothing of a place, so that a word
which decodes proves as much as anywhere. Where a place is moved to must not depend on the key then,
but on the picture alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom_node.inference.base import Float32
from dicom_node.watermark import corners, perceptual
from dicom_node.watermark.fourier import ANGLES, Turns
from dicom_node.watermark.placement import Placement
from dicom_node.watermark.shifts import ShiftBank, Shifts
from dicom_node.watermark.words import RobustKey, whitening

_WEIGHT = 1.6  # of agreement against evidence, both in standard deviations
_LONGEST_PX = 96  # side to which a picture is shrunk: hashes are made of 32 x 32
# Of a frame's side between frames whose hashes are computed; where weak marks are looked for.
_APART, _FINELY = 9.0 / 128, 6.0 / 128
_TURNS = 64  # frames around a picture whose hashes are
_TYPICAL, _SUREST = 1.5, 2.25  # half of the log-likelihood ratios of `expecting.told`
_EACH = 2  # best places of a size and key that are kept
_BESIDE = 2  # half samples around a place that belong to it
_KEPT = 64


class Favoured:
    """The places of one picture that the key favours, the best first.

    Parameters
    ----------
    picture
        Display values 0..1, ``(rows, columns)``.
    bank
        Asks all shifts of whitened pictures, ``(side, side)``.
    keys
        Whose marks are looked for: what every one of them favours is noted.
    ways
        In how many ways the code word may have been whitened.

    Attributes
    ----------
    among
        Of how many places they are the best so far.
    """

    def __init__(
        self, picture: Float32, bank: ShiftBank, side: int, keys: Sequence[RobustKey],
        ways: int = 1,
    ) -> None:  # fmt: skip
        self._bank, self._side = bank, side
        self._small = _thumbnail(picture)
        smaller = zip(self._small.shape[::-1], picture.shape[::-1], strict=True)
        self._scale = np.diag([pixels / before for pixels, before in smaller])
        self._signs = [
            whitening(key, way)[: perceptual.BITS] for key in keys for way in range(ways)
        ]
        self.among = 1
        self._noted: list[tuple[float, Placement, float]] = []
        self._taken: list[Placement] = []

    def best(self, most: int, least: float) -> Iterator[tuple[Placement, float]]:
        """Yield the best places not yet taken and the noise there, with a score of `least`."""
        self._noted = sorted(self._noted, key=lambda each: -each[0])[:_KEPT]
        while most and self._noted and self._noted[0][0] >= least:
            _, place, noise = self._noted.pop(0)
            if not any(place.is_near(other) for other in self._taken):
                self._taken.append(place)
                most -= 1
                yield place, noise

    def score(self, soft: Float32, there: float, place: Placement, noise: float) -> float:
        """Return what evidence and agreement come to where soft bits ``(K,)`` were judged."""
        return there + _WEIGHT * self.agreement(soft, place, noise)

    def agreement(self, soft: Float32, place: Placement, noise: float) -> float:
        """Return by how many standard deviations soft bits ``(K,)`` agree with a place's hash.

        Parameters
        ----------
        noise
            Mean square of a soft bit elsewhere.
        """
        said = self._beliefs([place])[0] * soft[: perceptual.BITS]
        return max(float(said @ signs) for signs in self._signs) / float(np.sqrt(noise))

    def shifted(self, place: Placement, asked: Shifts, *, finely: bool = False) -> None:
        """Note the best shifts of `place`.

        Parameters
        ----------
        finely
            Hashes are computed at more of them: between two, less of one is left than a weak mark
            can spare.
        """
        self.among += asked.roughly.size
        apart = (_FINELY if finely else _APART) * self._side
        down, right = _grid(asked.down, apart), _grid(asked.right, apart)
        beliefs = self._beliefs(
            [place.moved(float(x), float(y), self._side) for y in down for x in right]
        )
        for signs in self._signs:
            sums = self._bank.weighed(asked, beliefs * signs)
            agreed = _between(sums.reshape(len(asked.down), len(down), len(right), -1))
            score = asked.roughly + _WEIGHT / np.float32(np.sqrt(asked.noise)) * agreed
            for _ in range(_EACH):
                y, x = np.unravel_index(int(score.argmax()), score.shape)
                there = place.moved(float(asked.right[x]), float(asked.down[y]), self._side)
                self._noted.append((float(score[y, x]), there, asked.noise))
                around = np.s_[max(0, y - _BESIDE) : y + _BESIDE + 1,
                               max(0, x - _BESIDE) : x + _BESIDE + 1]  # fmt: skip
                score[around] = -np.inf

    def cornered(self, place: Placement, asked: Shifts) -> None:
        """Note the best shifts of `place` of which a corner is kept."""
        self.among += asked.roughly.size
        middles = np.s_[corners.EACH // 2 :: corners.EACH]
        down, right = asked.down[middles], asked.right[middles]
        beliefs = self._beliefs(
            [place.moved(float(x), float(y), self._side) for y in down for x in right]
        )
        roughly = corners.by_corner(asked.roughly)
        for signs in self._signs:
            sums = self._bank.weighed(asked, beliefs * signs).transpose(1, 0, 2)
            agreed = np.stack([corners.by_corner(each)[n] for n, each in enumerate(sums)])
            score = roughly + _WEIGHT / np.float32(np.sqrt(asked.noise)) * agreed
            for corner in np.argsort(-score.max(1))[:_EACH]:
                best = int(score[corner].argmax())
                y, x = corners.shift_of(asked, int(corner), best)
                there = place.moved(x, y, self._side)
                self._noted.append((float(score[corner, best]), there, asked.noise))

    def turned(
        self, places: Sequence[Placement], turned: Sequence[Turns], noise: float
    ) -> None:
        """Note the best angles of frames of neighbouring sizes.

        Parameters
        ----------
        noise
            Mean square of a soft bit elsewhere in their picture.
        """
        self.among += ANGLES * len(places)
        middle = places[len(places) // 2]
        beliefs = self._beliefs(
            [replace(middle, rotation_deg=n * 360 / _TURNS) for n in range(_TURNS)]
        )
        nearest = np.rint(np.arange(ANGLES) * _TURNS / ANGLES).astype(int) % _TURNS
        for signs in self._signs:
            keyed = (beliefs * signs)[nearest]
            for place, asked in zip(places, turned, strict=True):
                agreed = (keyed * asked.soft[:, : perceptual.BITS]).sum(1)
                score = asked.there + _WEIGHT / np.float32(np.sqrt(asked.noise)) * agreed
                for at in np.argsort(-score)[:_EACH]:
                    there = replace(place, rotation_deg=float(at) * 360 / ANGLES)
                    self._noted.append((float(score[at]), there, noise))

    def _beliefs(self, places: Sequence[Placement]) -> Float32:
        """Return what the frame at each place tells of its hash, ``(n, 64)``, of norm 1."""
        above = np.stack([self._frame(place) for place in places]) @ _waves().T
        above -= np.median(above, axis=1, keepdims=True)
        typical = np.median(np.abs(above), axis=1, keepdims=True) + 1e-6
        beliefs = np.tanh(np.clip(_TYPICAL * above / typical, -_SUREST, _SUREST))
        beliefs /= np.linalg.norm(beliefs, axis=1, keepdims=True) + 1e-9
        return np.asarray(beliefs, np.float32)

    def _frame(self, place: Placement) -> Float32:
        """Return the frame at a place as small as its hash sees it, its edge continued."""
        side = perceptual.SMALL_SIDE
        to_pixels = self._scale @ place.matrix()[:2] / (side, side, 1)
        to_pixels[:, 2] += to_pixels[:, :2].sum(1) / 2 - 0.5  # sample i has its centre at i + 0.5
        how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        frame = cv2.warpAffine(self._small, to_pixels, (side, side), flags=how,
                               borderMode=cv2.BORDER_REPLICATE)  # fmt: skip
        return np.asarray(frame, np.float32).reshape(-1)


def _thumbnail(picture: Float32) -> Float32:
    """Return a picture small and smooth enough to be sampled at 32 x 32, in grey levels."""
    factor = max(1.0, max(picture.shape) / _LONGEST_PX)
    rows, columns = (max(1, round(side / factor)) for side in picture.shape)
    small = cv2.resize(picture, (columns, rows), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.blur(small, (3, 3)) * np.float32(255), np.float32)


def _grid(shifts: Float32, apart: float) -> Float32:
    """Return some of the shifts, from the first to the last, `apart` at most."""
    count = 1 + max(1, int(np.ceil(float(shifts[-1] - shifts[0]) / apart)))
    return np.linspace(shifts[0], shifts[-1], count, dtype=np.float32)


def _between(sums: Float32) -> Float32:
    """Return sums interpolated between those of the grid, ``(down, right)``.

    Parameters
    ----------
    sums
        Of every shift with the hash of every frame of the grid, ``(down, grid down, grid right,
        right)``.
    """
    rows, down, right, columns = sums.shape
    first, share = _parts(rows, down)
    every = np.arange(rows)
    along = sums[every, first] * (1 - share)[:, None, None]
    along += sums[every, first + 1] * share[:, None, None]
    first, share = _parts(columns, right)
    every = np.arange(columns)
    return np.asarray(along[:, first, every] * (1 - share) + along[:, first + 1, every] * share)


def _parts(shifts: int, grid: int) -> tuple[NDArray[np.int64], Float32]:
    """Return for each of so many shifts after which of the grid it lies, and how far."""
    at = np.linspace(0, grid - 1, shifts, dtype=np.float32)
    first = np.minimum(at.astype(np.int64), grid - 2)
    return first, np.asarray(at - first, np.float32)


@cache
def _waves() -> Float32:
    return np.asarray(perceptual.waves(), np.float32)
