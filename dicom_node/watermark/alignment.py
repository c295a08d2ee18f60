"""One picture, looked at through the carrier patterns: how much speaks for a frame at a place.

R2 whitens, where the model has it: at the right place its soft bits stand out about twice as far
as D1's. It is dear, and whitening depends little on small changes of place and size and not on
how the frame is turned or mirrored: places near one that was whitened borrow from it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import chain
from math import hypot

import numpy as np
from numpy.typing import NDArray

from dicom_node.inference.base import Float32, RobustEngine
from dicom_node.watermark import expecting, partial, synthesis
from dicom_node.watermark.expecting import Told
from dicom_node.watermark.fourier import TurnBank, enlarged, evidence
from dicom_node.watermark.placement import Placement, inside, resampled, sharply_seen, shrunk
from dicom_node.watermark.second_look import SecondLook
from dicom_node.watermark.shifts import ShiftBank

_FINE = 4  # times a whitened picture is enlarged for small moves
# Degrees, logs of size and of shape, samples right and down: what halves the evidence.
_STEPS = np.array([0.35, 0.008, 0.008, 0.5, 0.5])
_SQUARE = 0.02  # log of columns over rows up to which a frame counts as square
# A place borrows from one whose size is so near, and its middle, in parts of the frame's side: the
# surroundings change whitening little, and less than it takes to tell most chance apart.
_ALIKE, _BESIDE, _FAR = 0.05, 0.03, 0.3
_KEPT = 24


class Tools:
    """What depends on the networks only, and is kept from picture to picture.

    Parameters
    ----------
    folds
        2: of carriers that are folded, whose frames are seen beside their mirror images.

    Attributes
    ----------
    side
        Of a frame as it is searched in, ``engine.side / folds``.
    patterns
        ``(K, side * side)``, each of norm 1.
    seen_side
        Of a frame as what whitens it sees it.
    """

    def __init__(self, engine: RobustEngine, folds: int = 1) -> None:
        self.engine, self.side = engine, engine.side // folds
        patterns: Float32 = engine.patterns.astype(np.float32)
        if folds > 1:
            whole = engine.patterns.astype(np.int32)
            patterns = np.stack([synthesis.folded(each, folds) for each in whole])
            patterns = patterns.astype(np.float32)
        patterns /= np.linalg.norm(patterns, axis=1, keepdims=True)
        self.patterns: Float32 = patterns
        self._turns = lru_cache(maxsize=2)(self._turn_bank)
        self._second = SecondLook(engine, folds)
        self.seen_side = self._second.side

    def whiten(self, picture: Float32, placement: Placement) -> Float32:
        """Return the frame at `placement` of a picture whitened, ``(side, side)``, its mean 0."""
        seen = sharply_seen(picture, placement, self.seen_side)
        flat = self._second.whiten(seen[None])[0]
        plane = flat.astype(np.float32).reshape(2 * (self.engine.side,))
        plane = plane[: self.side, : self.side]
        return np.asarray(plane - plane.mean(), np.float32)

    @cached_property
    def shifts(self) -> ShiftBank:
        """The bank that asks all shifts."""
        return ShiftBank(self.patterns.reshape(-1, self.side, self.side))

    def turns(self, aspect: float) -> TurnBank:
        """Return the bank that asks all angles of frames of an aspect, columns over rows."""
        return self._turns(1.0 if abs(np.log(aspect)) < _SQUARE else round(aspect, 3))

    def _turn_bank(self, aspect: float) -> TurnBank:
        return TurnBank(self.doubled, aspect)

    @cached_property
    def doubled(self) -> Float32:
        """What every bank of angles is made from; each unusual aspect needs one of its own."""
        patterns = self.patterns.reshape(-1, self.side, self.side)
        return np.stack([enlarged(pattern, 2) for pattern in patterns])


@lru_cache(maxsize=4)
def tools_of(engine: RobustEngine, folds: int = 1) -> Tools:
    """Return the tools made for an engine's patterns, once."""
    return Tools(engine, folds)


class View:
    """A picture as the search sees it: small, and whitened wherever it is asked about.

    Parameters
    ----------
    display
        Display values 0..1, ``(rows, columns)``.
    beside
        Another view of the same picture, from which this one borrows too.
    """

    def __init__(self, display: Float32, tools: Tools, *, beside: View | None = None) -> None:
        self.tools = tools
        self.picture = shrunk(display)
        self.shape = self.picture.shape
        self._kept: deque[tuple[Placement, Float32]] = deque(maxlen=_KEPT)
        self._others = beside._kept if beside is not None else ()

    def frame(self, place: Placement, side: int | None = None) -> Float32:
        """Return the frame at `place` as the networks see it, ``(side, side)``; D1's if none."""
        return sharply_seen(self.picture, place, side or self.tools.side)

    def told(self, place: Placement) -> Told:
        """Return what the picture tells of the frame at a place, all of it or a part."""
        side = self.tools.seen_side
        picture = self.frame(place, side)
        return partial.told(picture, inside(place, self.shape, side)) or expecting.told(picture)

    def whitened(self, place: Placement, *, anew: bool = False) -> Float32:
        """Return the whitened frame at `place`, 0 outside the picture, ``(side, side)``.

        It is taken from a place nearby that was whitened before, if there is one and not `anew`.
        """
        if anew:
            return self._whitened_anew(place)
        return resampled(*self._beside(place), place, self.tools.side)

    def moved_in(
        self, place: Placement, noise: float, rounds: Sequence[float], *, hastily: bool = False,
        latest: bool = False,
    ) -> tuple[Placement, float]:  # fmt: skip
        """Return the nearby place with most evidence, and how much as far as is known cheaply.

        Parameters
        ----------
        noise
            Mean square of a soft bit where nothing is marked.
        rounds
            How far each round looks, as a part of what halves the evidence.
        hastily
            Whether what was whitened with other surroundings will do.
        latest
            Whether `place` was judged just now: what was whitened for it is looked at.
        """
        if latest:
            beside = self._kept[-1][1], _FINE, self._kept[-1][0]
        else:
            beside = self._beside(place, _FAR if hastily else _BESIDE)
        for part in rounds:
            place = self._step(place, noise, _STEPS * part, beside)
        seen = resampled(*beside, place, self.tools.side)
        return place, float(self._evidence_of(seen[None], noise)[0])

    def judged(self, place: Placement, noise: float) -> tuple[Float32, float]:
        """Return the soft bits of a place, ``(K,)``, and their evidence; it is whitened anew."""
        seen = self._whitened_anew(place)[None]
        soft: Float32 = seen.reshape(-1) @ self.tools.patterns.T
        return soft, float(self._evidence_of(seen, noise)[0])

    def _beside(self, place: Placement, away: float = _BESIDE) -> tuple[Float32, int, Placement]:
        """Return a whitened picture enlarged, how much, and at which place, `place` or near it."""
        for kept, fine in chain(self._kept, self._others):
            if _is_beside(kept, place, away):
                return fine, _FINE, kept
        self._whitened_anew(place)
        kept, fine = self._kept[-1]
        return fine, _FINE, kept

    def _whitened_anew(self, place: Placement) -> Float32:
        seen = self.tools.whiten(self.picture, place) * inside(place, self.shape, self.tools.side)
        self._kept.append((place, enlarged(seen, _FINE)))
        return seen

    def _step(
        self, place: Placement, noise: float, steps: NDArray[np.float64],
        beside: tuple[Float32, int, Placement],
    ) -> Placement:  # fmt: skip
        """Return where parabolas through the evidence on both sides, a change each, peak."""
        side = self.tools.side
        each = np.diag(steps)
        nearby = [place, *(_changed(place, change, side) for change in (*each, *-each))]
        planes = np.stack([resampled(*beside, other, side) for other in nearby])
        here, *there = self._evidence_of(planes, noise)
        plus, minus = np.split(np.array(there), 2)
        bend = np.minimum(plus - 2 * here + minus, -1e-3)
        vertex = np.clip(0.5 * (minus - plus) / bend, -1, 1)
        return _changed(place, vertex * steps, side)

    def _evidence_of(self, planes: Float32, noise: float) -> Float32:
        soft = planes.reshape(len(planes), -1) @ self.tools.patterns.T
        return evidence(np.square(soft).sum(1), np.abs(soft).sum(1), soft.shape[1], noise)


def _changed(place: Placement, change: NDArray[np.float64], side: int) -> Placement:
    turn, size, shape, right, down = map(float, change)
    return place.changed(turn, size, shape).moved(right, down, side)


def _is_beside(one: Placement, other: Placement, away: float) -> bool:
    """Whether whitening at one of two places tells what it gives at the other, if turned."""
    (a, b, x), (c, d, y), _ = one.map_of(other).tolist()
    right, down = (a + b - 1) / 2 + x, (c + d - 1) / 2 + y
    if max(abs(right), abs(down)) >= away:
        return False
    # Half the sum and half the difference of the singular values, or the other way round.
    one_half, other_half = hypot(a + d, b - c) / 2, hypot(a - d, b + c) / 2
    longest, shortest = one_half + other_half, abs(one_half - other_half)
    return max(abs(longest - 1), abs(shortest - 1)) < _ALIKE
