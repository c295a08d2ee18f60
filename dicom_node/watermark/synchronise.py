"""Find W1 in a picture that was turned, mirrored, scaled, shifted, cropped or framed.

Nothing is embedded to synchronise with, and the message is unknown: the carrier patterns
themselves are looked for (see :mod:`hypotheses`). Cheap and likely geometry comes first. What looks
like a mark is moved into place by small steps, and decoded if it then looks even more like one.

Only a valid tag, or the message the frame would have, counts as found. A search decodes at most
`MOST_DECODES` places beside the eight plain poses, each in up to 24 ways that a wrong word
passes once in 2**32, and the best `_TONED` of them also as a picture whose tones were changed, in
25 ways: less than 3.6e-7 false accepts a picture and key at worst, the plain poses included.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dicom_node.inference.base import Float32, RobustEngine
from dicom_node.watermark import closely, partial, reading
from dicom_node.watermark.alignment import Tools, View, tools_of
from dicom_node.watermark.detecting import RobustDetector
from dicom_node.watermark.hypotheses import Candidate, Hypotheses
from dicom_node.watermark.placement import Placement, inside
from dicom_node.watermark.reading import Detection, Hashes
from dicom_node.watermark.words import RobustKey

MOST_DECODES = 32  # places whose soft bits are decoded, each against every key
_TURNED = 2  # poses beside the upright one that are looked at closely at first
_ENDS_S = 0.2  # kept of the budget: what was begun is ended
_CLEAR = 3.0  # surprise from which a place is looked at closely at once
_NOTICED = 0.0  # surprise from which it is if it is among the `_CLOSELY` best of its stage
_CLOSELY, _CLOSELY_OF_FEW = 4, 2
_LIKELY = 2.0  # surprise below which a hasty move comes first
_TONED = 2  # places whose tones are guessed back, after all else: three times as dear
_ROUNDS = (1.0, 1.0, 0.7, 0.5)  # of small moves, see `View.moved_in`
_SAME = 0.01  # of the frame's side: places nearer than that lead to the same one
_NEARLY = 9.0  # evidence from which a place that was not read is moved once more
# Places that were passed and are read all the same when the likely ones are through; evidence
# below which none is.
_ONCE_MORE, _LEAST = 8, 4.0


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
        CPU time of this thread within which it ends, the first look included.
    known
        Hashes of frames remembered as marked, ``(n, 8)``, for marks too weak to be decoded.

    Returns
    -------
    Detection
        Its pose is a `Placement` where the search found it: anticlockwise turn, then mirror;
        `scale` is the whole frame's size against the picture's (above 1: cropped).
    """
    until = time.thread_time() + budget_s - _ENDS_S
    plain = RobustDetector(engine).detect(
        display, keys, dihedral=True, weak=True, known=known, turned=_TURNED
    )
    if plain.decoded:
        return plain
    return _Search(display, tools_of(engine), keys, until, known).run()


class _Asked(NamedTuple):
    """Evidence asked of a place: after a hasty move, after a small one, before it is decoded."""

    striking: float
    promising: float
    believed: float


# Nine of ten places without a mark have 7 at most. Where few are asked there is time for more.
_OF_FEW, _OF_MANY = _Asked(5.5, 5.5, 6.0), _Asked(8.0, 6.5, 7.0)


class _Missed(NamedTuple):
    """A place that looked like a mark, and was not read."""

    evidence: float
    soft: Float32
    picture: Float32
    place: Placement


class _Passed(NamedTuple):
    """A place that did not look enough like a mark to be read."""

    evidence: float
    place: Placement
    noise: float


class _Search:
    def __init__(
        self, display: Float32, tools: Tools, keys: Sequence[RobustKey], until: float,
        known: Hashes | None = None,
    ) -> None:  # fmt: skip
        self._tools, self._keys, self._known = tools, keys, known
        self._view = View(display, tools)
        self._tried: list[Placement] = []
        self._hasty: list[Placement] = []
        self._passed: list[_Passed] = []
        self._missed: list[_Missed] = []
        self._hypotheses = Hypotheses(self._view, tools, self._late)
        self.decodes = 0
        self._until = until

    def run(self) -> Detection:
        """Look for the mark in likely places, then in all others."""
        for stages in (self._hypotheses.likely(), self._hypotheses.unlikely()):
            found = self._among(stages)
            if not found.decoded:
                found = self._once_more()
            if found.decoded:
                return found
        return self._toned()

    def _among(self, stages: Iterator[Iterator[Candidate]]) -> Detection:
        """Look stage after stage; in each, the best of the doubtful come last."""
        for stage in stages:
            doubtful = []
            for candidate in stage:
                if candidate.surprise >= _CLEAR:
                    found = self._closely(candidate)
                    if found.decoded:
                        return found
                elif candidate.surprise >= _NOTICED:
                    doubtful.append(candidate)
            most = _CLOSELY if not all(each.few for each in doubtful) else _CLOSELY_OF_FEW
            for candidate in heapq.nlargest(most, doubtful, key=lambda each: each.surprise):
                found = self._closely(candidate)
                if found.decoded:
                    return found
            if self._late():
                break
        return Detection(False)

    def _once_more(self) -> Detection:
        """Read the best of the places that were passed: a weak mark looks little like one."""
        passed, self._passed = self._passed, []
        read = [each.place for each in self._missed]
        for _, place, noise in heapq.nlargest(_ONCE_MORE, passed, key=lambda each: each.evidence):
            if self._late():
                break
            if any(_same_place(place, other) for other in read):
                continue
            read.append(place)
            place, _ = self._view.moved_in(place, noise, _ROUNDS[1:])
            soft, there = self._view.judged(place, noise)
            found = self._read(place, soft, there) if there >= _LEAST else Detection(False)
            if found.decoded:
                return found
        return Detection(False)

    def _toned(self) -> Detection:
        """Read the best places as those of a picture whose tones were changed, too."""
        best = heapq.nlargest(_TONED, self._missed, key=lambda each: each.evidence)
        for _, soft, picture, place in best:
            told = place.told(self._view.shape)
            found = closely.read_toned(soft, picture, self._keys, told)
            if found.decoded:
                return found
        return Detection(False)

    def _late(self) -> bool:
        return time.thread_time() > self._until or self.decodes >= MOST_DECODES

    def _closely(self, candidate: Candidate) -> Detection:
        """Move a candidate into place; decode it if it then looks like a mark."""
        place, noise = candidate.placement, candidate.noise
        doubtful = candidate.surprise < _LIKELY
        asked = _OF_FEW if candidate.few else _OF_MANY
        # What was only looked at in haste may be met again where more speaks for it.
        tried = self._tried + self._hasty if doubtful and not candidate.few else self._tried
        if self._late() or any(_same_place(place, other) for other in tried):
            return Detection(False)
        if doubtful:
            # Small moves add to chance, too; to a mark that was met a little off its place, more.
            place, there = self._view.moved_in(place, noise, _ROUNDS[:2], hastily=True)
            if there < asked.striking:
                self._hasty.append(candidate.placement)
                return self._pass(_Passed(there, place, noise))
        self._tried.append(candidate.placement)
        place, there = self._view.moved_in(place, noise, _ROUNDS[:2])
        if there >= asked.promising:
            place, there = self._view.moved_in(place, noise, _ROUNDS[2:])
        if there < asked.promising:
            return self._pass(_Passed(there, place, noise))
        soft, there = self._view.judged(place, noise)
        if there < asked.believed:
            return self._pass(_Passed(there, place, noise))
        self._tried.append(place)
        found = self._read(place, soft, there)
        if found.decoded or there < _NEARLY or self._late():
            return found
        place, _ = self._view.moved_in(place, noise, _ROUNDS[1:], latest=True)
        soft, moved = self._view.judged(place, noise)
        return self._read(place, soft, moved) if moved > there else found

    def _pass(self, place: _Passed) -> Detection:
        self._passed.append(place)
        return Detection(False)

    def _read(self, place: Placement, soft: Float32, evidence: float) -> Detection:
        """Read soft bits of a place in all ways but those of a picture of other tones."""
        self.decodes += 1
        pose, keys = place.told(self._view.shape), self._keys
        found = reading.read(soft, keys, pose)
        if found.decoded:
            return found
        picture = self._view.frame(place, self._tools.seen_side)
        seen = inside(place, self._view.shape, self._tools.seen_side)
        told = partial.told(picture, seen)
        if told is not None:
            found = closely.read_in_part(soft, told, keys, pose, self._known)
            if not found.decoded:
                found = reading.read(soft, keys, pose, order=closely.DEEP)
        else:
            found = closely.read_weak(
                soft, picture, keys, pose, self._known, toned=False, decoded=True
            )
            if not found.decoded:
                found = closely.read_deepest(soft, picture, keys, pose)
        if not found.decoded:
            self._missed.append(_Missed(evidence, soft, picture, place))
        return found


def _same_place(one: Placement, other: Placement) -> bool:
    """Whether small moves from both would lead to the same place."""
    apart = one.map_of(other) - np.eye(3)
    return bool(np.abs(apart).max() < _SAME)
