"""Find W1 in a picture that was turned, mirrored, scaled, shifted, cropped or framed.

Nothing is embedded to synchronise with, and the message is unknown: the carrier patterns
themselves are looked for (see :mod:`fourier`). Cheap and likely geometry comes first. What looks
like a mark is moved into place by small steps, and decoded if it then looks even more like one.

Only a valid tag, or the message the frame would have, counts as found. A search decodes at most
`MOST_DECODES` places beside the eight plain poses, each in up to 18 ways that a wrong word
passes once in 2**32, and the best `_TONED` of them also as a picture whose tones were changed, in
25 ways: less than 3.1e-7 false accepts a picture and key at worst, the plain poses included.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from dicom_node.inference.base import Float32, RobustEngine
from dicom_node.watermark.alignment import Tools, View, tools_of
from dicom_node.watermark.fourier import ANGLES, chance, enlarged
from dicom_node.watermark.placement import Placement, outlined
from dicom_node.watermark.reading import (
    Detection,
    Hashes,
    Pose,
    RobustKey,
    read_deepest,
    read_toned,
    read_weak,
)
from dicom_node.watermark.robust import RobustWatermark

MOST_DECODES = 32  # places whose soft bits are decoded, each against every key
_CLEAR = 3.0  # surprise from which a place is looked at closely at once
_NOTICED = 0.0  # surprise from which it is if it is among the `_CLOSELY` best of its stage
_CLOSELY = 4
_PROMISING = 7.0  # evidence after a first small move from which it is moved on
_LIKELY = 2.0  # surprise below which a hasty move comes first
_STRIKING = 13.0  # evidence asked of that; where few places are looked at, `_PROMISING`
_BELIEVED = 8.0  # evidence, in its final place, from which it is decoded
_TONED = 2  # places whose tones are guessed back, after all else: three times as dear
_ROUNDS = (1.0, 1.0, 0.7, 0.5)  # of small moves, see `View.moved_in`
_SAME = 0.01  # of the frame's side: places nearer than that lead to the same one

# Logs of sizes, a frame's against the picture's.
_FINE_STEP, _TURN_STEP, _COARSE_STEP = 0.01, 0.012, 0.02  # 0.01 amiss, half the evidence is left
_SHARING = 8  # turned frames of neighbouring sizes that share a whitened picture
_HALF_LEFT = 0.36  # a crop that keeps half of the area
_EXPANDED = -0.36  # a square on the canvas that holds it turned by 45 degrees
_BORDERED = -0.47  # a frame of 0.63 of the picture's side
_STRETCHES = (-0.018, 0.018, -0.036, 0.036, -0.054, 0.054)  # logs of columns over rows, halved
_ASPECTS = (4 / 3, 3 / 4, 5 / 4, 4 / 5, 3 / 2, 2 / 3)  # columns over rows
_TURNS = [0.75 * n for n in range(1, 60)]  # degrees
_BEYOND, _SHIFTED = 6.0, 32.0  # samples of 128
_ALL, _SOME = 160, 96  # patterns asked at every shift; all are at the likeliest


@dataclass(frozen=True)
class Candidate:
    """A place that looks like a mark.

    Attributes
    ----------
    surprise
        How far its evidence is above what chance finds among so many places.
    noise
        Mean square of a soft bit elsewhere.
    asked
        Evidence asked of it after a hasty first move where the surprise is small.
    """

    surprise: float
    placement: Placement
    noise: float
    asked: float = _STRIKING


def find(
    display: Float32, engine: RobustEngine, keys: Sequence[RobustKey], *, budget_s: float = 3.0,
    known: Hashes | None = None,
) -> Detection:  # fmt: skip
    """Read W1 from a picture of unknown geometry.

    Parameters
    ----------
    display
        Display values 0..1, ``(rows, columns)``.
    budget_s
        CPU time of this thread after which nothing further is looked at.
    known
        Hashes of frames remembered as marked, ``(n, 8)``, for marks too weak to be decoded.

    Returns
    -------
    Detection
        Its pose is a `Placement` where the search found it: anticlockwise turn, then mirror;
        `scale` is the whole frame's size against the picture's (above 1: cropped).
    """
    watermark = RobustWatermark(engine)
    plain = watermark.detect(display, keys, dihedral=True, weak=True, known=known)
    if plain.decoded:
        return plain
    return _Search(display, tools_of(engine), keys, budget_s, known).run()


class _Missed(NamedTuple):
    """A place that looked like a mark, and was not read."""

    evidence: float
    soft: Float32
    picture: Float32
    told: Pose


class _Search:
    def __init__(
        self, display: Float32, tools: Tools, keys: Sequence[RobustKey], budget_s: float,
        known: Hashes | None = None,
    ) -> None:  # fmt: skip
        self._tools, self._keys, self._known = tools, keys, known
        self._view = View(display, tools)
        self._tried: list[Placement] = []
        self._missed: list[_Missed] = []
        self.decodes = 0
        self._until = time.thread_time() + budget_s

    def run(self) -> Detection:
        """Look for the mark, stage after stage; in each, the best of the doubtful come last."""
        for stage in self._stages():
            doubtful = []
            for candidate in stage:
                if candidate.surprise >= _CLEAR:
                    found = self._closely(candidate)
                    if found.decoded:
                        return found
                elif candidate.surprise >= _NOTICED:
                    doubtful.append(candidate)
            for candidate in heapq.nlargest(_CLOSELY, doubtful, key=lambda each: each.surprise):
                found = self._closely(candidate)
                if found.decoded:
                    return found
            if self._late():
                break
        return self._toned()

    def _toned(self) -> Detection:
        """Read the best places as those of a picture whose tones were changed, too."""
        best = heapq.nlargest(_TONED, self._missed, key=lambda each: each.evidence)
        for _, soft, picture, told in best:
            found = read_toned(soft, picture, self._keys, told)
            if found.decoded:
                return found
        return Detection(False)

    def _late(self) -> bool:
        return time.thread_time() > self._until or self.decodes >= MOST_DECODES

    def _stages(self) -> Iterator[Iterator[Candidate]]:
        whole = Placement.whole(self._view.shape)
        crops = _sizes(0.0, _HALF_LEFT, _FINE_STEP)
        coarse = _sizes(0.0, _HALF_LEFT, _COARSE_STEP)
        yield self._turned(whole, [0.0])
        for rectangle in outlined(self._view.picture):
            yield from self._framed(rectangle)
        yield self._shifted([whole], _ALL, _SHIFTED, asked=_PROMISING)
        half = len(crops) // 2
        yield self._shifted([_resized(whole, size) for size in crops[1:half]])
        turned_sizes = _sizes(_EXPANDED, _HALF_LEFT, _TURN_STEP)
        expanded, cropped = (
            [size for size in turned_sizes if sign * size > 0] for sign in (-1, 1)
        )
        yield self._turned(whole, expanded, [False])
        yield self._turned(whole, cropped, [False])
        yield self._shifted([_resized(whole, size) for size in crops[half:]])
        yield self._shifted(list(held(self._view.shape)), centred=True)
        yield self._turned(whole, expanded + cropped, [True])
        poses = [Placement.whole(self._view.shape, n % 4, flip=n > 3) for n in range(1, 8)]
        small_crops, large_crops = coarse[: len(coarse) // 2], coarse[len(coarse) // 2 :]
        yield self._shifted([_resized(pose, size) for size in small_crops for pose in poses])
        slightly, more = _STRETCHES[:2], _STRETCHES[2:]
        yield self._shifted([_resized(whole, size, s) for size in coarse for s in slightly])
        smaller = _sizes(_BORDERED, -_COARSE_STEP, _COARSE_STEP)
        yield self._shifted([_resized(whole, size) for size in smaller])
        # Reached only with a larger budget, the last also turned by a little.
        yield self._shifted([_resized(whole, size, s) for size in coarse for s in more])
        yield self._shifted([_resized(pose, size) for pose in poses for size in large_crops])
        both = [replace(whole, rotation_deg=turn) for turn in _alternating(_TURNS)]
        yield self._shifted([_resized(pose, size) for pose in both for size in small_crops])

    def _framed(self, rectangle: Placement) -> Iterator[Iterator[Candidate]]:
        """Look in a rectangle whose edges are seen, and so known to about a sample."""
        poses = [rectangle.posed(n % 4, flip=n > 3) for n in range(8)]
        yield self._shifted(poses[:4], _ALL)
        near = _sizes(-0.03, 0.03, _FINE_STEP)
        yield self._shifted([*poses[4:], *(_resized(poses[0], size) for size in near)])
        yield self._turned(poses[0], [0.0])

    def _shifted(
        self, places: Sequence[Placement], first: int = _SOME, beyond: float = _BEYOND,
        *, asked: float = _STRIKING, centred: bool = False,
    ) -> Iterator[Candidate]:
        """Look for frames of the given sizes and turns wherever they hold the picture or lie in it.

        And `beyond`, samples, where the picture or the frame was cut off.
        """
        side = self._tools.side
        rows, columns = self._view.shape
        for place in places:
            if self._late():
                return
            across, down = (rows, columns) if place.rotation_deg % 180 == 90 else (columns, rows)
            reach = (_slack(place.rows, down, side), _slack(place.columns, across, side))
            if centred:
                reach = (1.0, 1.0)
            seen = self._view.whitened(place)
            for peak in self._tools.shifts.peaks(seen, reach, beyond, first):
                there = place.moved(peak.right, peak.down, side)
                yield Candidate(peak.surprise, there, peak.noise, asked)

    def _turned(
        self, whole: Placement, sizes: Sequence[float], flips: Sequence[bool] = (False, True)
    ) -> Iterator[Candidate]:
        """Look for frames around the same middle, of the same aspect, at every angle."""
        bank = self._tools.turns(whole.columns / whole.rows)
        length = float(np.sqrt(whole.columns * whole.rows))
        for some in (sizes[at : at + _SHARING] for at in range(0, len(sizes), _SHARING)):
            if self._late():
                return
            # Whitening hardly depends on size: neighbouring sizes share it.
            shared = length * float(np.exp(np.mean(some)))
            for flip in flips:
                square = replace(whole, columns=shared, rows=shared, rotation_deg=0.0, flip=flip)
                plane = enlarged(self._view.whitened(square), 2)
                asked = [(plane, length * float(np.exp(size)) / shared) for size in some]
                for size, (there, noise) in zip(some, bank.evidence(asked), strict=True):
                    for at in np.argsort(-there)[:2]:
                        place = replace(_resized(whole, size), flip=flip)
                        place = replace(place, rotation_deg=float(at) * 360 / ANGLES)
                        yield Candidate(float(there[at]) - chance(ANGLES), place, noise)

    def _closely(self, candidate: Candidate) -> Detection:
        """Move a candidate into place; decode it if it then looks like a mark."""
        place, noise = candidate.placement, candidate.noise
        if self._late() or any(_same_place(place, other) for other in self._tried):
            return Detection(False)
        self._tried.append(place)
        if candidate.surprise < _LIKELY:
            # Small moves add to chance, too; to a mark that was met a little off its place, more.
            place, there = self._view.moved_in(place, noise, _ROUNDS[:2], hastily=True)
            if there < candidate.asked:
                return Detection(False)
        place, there = self._view.moved_in(place, noise, _ROUNDS[:2])
        if there >= _PROMISING:
            place, there = self._view.moved_in(place, noise, _ROUNDS[2:])
        if there < _PROMISING:
            return Detection(False)
        soft, there = self._view.judged(place, noise)
        if there < _BELIEVED:
            return Detection(False)
        self._tried.append(place)
        self.decodes += 1
        told = place.told(self._view.shape)
        picture = self._view.frame(place, self._tools.seen_side)
        found = read_weak(soft, picture, self._keys, told, self._known, toned=False)
        if not found.decoded:
            found = read_deepest(soft, picture, self._keys, told)
        if not found.decoded:
            self._missed.append(_Missed(there, soft, picture, told))
        return found


def held(shape: tuple[int, ...]) -> Iterator[Placement]:
    """Yield the turned frames of usual aspects that a canvas of `shape` just holds."""
    down, across = shape[:2]
    canvas = across / down
    for aspect in _ASPECTS:
        sine, cosine = aspect - canvas, canvas * aspect - 1
        if sine * cosine < 0:
            continue
        turn = float(np.degrees(np.arctan2(abs(sine), abs(cosine))))
        angle = np.radians(turn)
        rows = across / float(aspect * np.cos(angle) + np.sin(angle))
        upright = replace(Placement.whole(shape), columns=aspect * rows, rows=rows)
        for each in (turn, -turn, turn + 180, 180 - turn):
            yield replace(upright, rotation_deg=each)


def _sizes(low: float, high: float, step: float) -> list[float]:
    """Return logs of sizes from `low` to `high`, nearest to none first."""
    numbers = np.arange(np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9) + 1)
    return sorted((float(n) * step for n in numbers), key=abs)


def _slack(frame: float, picture: float, side: int) -> float:
    """Return how far one can lie within the other, in samples from the middle."""
    return abs(1 - picture / frame) * side / 2 + 1


def _alternating(turns: Sequence[float]) -> Iterator[float]:
    for turn in turns:
        yield turn
        yield -turn


def _resized(place: Placement, size: float, shape: float = 0.0) -> Placement:
    return place.changed(0.0, size, shape)


def _same_place(one: Placement, other: Placement) -> bool:
    """Whether small moves from both would lead to the same place."""
    apart = np.linalg.solve(one.matrix(), other.matrix()) - np.eye(3)
    return bool(np.abs(apart).max() < _SAME)
