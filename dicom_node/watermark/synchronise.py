"""Find W1 in a picture that was turned, mirrored, scaled, shifted, cropped or framed.

Nothing is embedded to synchronise with, and the message is unknown: the carrier patterns
themselves are looked for (see :mod:`hypotheses`). Cheap and likely geometry comes first. What looks
like a mark is moved into place by small steps, and decoded if it then looks even more like one.
Weak marks look no more like one than chance does: for them the key is asked (:mod:`favoured`), and
where it says so they are read before they are moved, as the weakest are moved away.

Only a valid tag, or the message the frame would have, counts as found. A search decodes at most
`MOST_DECODES` places beside the eight plain poses, each in up to 24 ways that a wrong word
passes once in 2**32, and the best `_TONED` of them also as a picture whose tones were changed, in
30 ways (counted for all, as any may be the best). What is recognised before it was moved, after
one of at most 27 stages, passes once more, as each of the places that the key chose from is
counted: less than 5.4e-7 false accepts a picture and key at worst, the plain poses included. A
small picture is taken for that of a small frame first (:mod:`small_search`): 7.9e-7 together.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dicom_node.inference.base import Float32, RobustEngine
from dicom_node.watermark import closely, partial, reading, small_search
from dicom_node.watermark.alignment import Tools, View, tools_of
from dicom_node.watermark.detecting import RobustDetector
from dicom_node.watermark.expecting import Told
from dicom_node.watermark.favoured import Favoured
from dicom_node.watermark.hypotheses import Candidate, Hypotheses
from dicom_node.watermark.placement import Placement, inside
from dicom_node.watermark.reading import Detection, Hashes
from dicom_node.watermark.words import RobustKey

MOST_DECODES = 32  # places whose soft bits are decoded, each against every key
_TURNED = 2  # poses beside the upright one that are looked at closely at first
_ENDS_S = 0.2  # kept of the budget: what was begun is ended
_SMALL_SHARE = 0.8  # until when a small picture is taken for that of a small frame
_CLEAR = 3.0  # surprise from which a place is looked at closely
_NOTICED = 0.0  # surprise from which it is where few places were asked, the best `_CLOSELY`
_CLOSELY = 2
_LIKELY = 2.0  # surprise below which a hasty move comes first
_TONED = 2  # places whose tones are guessed back, after all else: three times as dear
_ROUNDS = (1.0, 1.0, 0.7, 0.5)  # of small moves, see `View.moved_in`
_NEARLY = 9.0  # evidence from which a place that was not read is moved once more
# Of the places that the key favours: how many of a stage are looked at, how many when the likely
# stages are through, and the score asked of each before and after it was moved into place.
_FAVOURED, _FAVOURED_OF_ALL = 2, 8
_SCORED, _SCORED_OF_ALL, _SCORED_THERE = 9.6, 9.0, 10.0
_AGREES_THERE = 3.5  # standard deviations, asked of such a place as it is
_AGREES = 0.5  # standard deviations: below, soft bits are not recognised in a place's own hash


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
    begun = time.thread_time()
    until = begun + budget_s - _ENDS_S
    until_small = begun + budget_s * _SMALL_SHARE
    plain = RobustDetector(engine).detect(
        display, keys, dihedral=True, weak=True, known=known, turned=_TURNED
    )
    if plain.decoded:
        return plain
    small = small_search.find_small(
        display, engine, keys, lambda: time.thread_time() > until_small
    )
    if small.decoded:
        return small
    return _Search(display, tools_of(engine), keys, until, known).run()


class _Asked(NamedTuple):
    """Evidence asked of a place: after a small move, and before it is decoded."""

    promising: float
    believed: float


# Nine of ten places without a mark have 7 at most. Where few are asked there is time for more.
_OF_FEW, _OF_MANY = _Asked(5.5, 6.0), _Asked(6.5, 7.0)
_STRIKING = 5.5  # asked after a hasty move


class _Missed(NamedTuple):
    """A place that looked like a mark, and was not read."""

    evidence: float
    soft: Float32
    picture: Float32
    place: Placement


class _Search:
    def __init__(
        self, display: Float32, tools: Tools, keys: Sequence[RobustKey], until: float,
        known: Hashes | None = None,
    ) -> None:  # fmt: skip
        self._tools, self._keys, self._known = tools, keys, known
        self._view = View(display, tools)
        self._favoured = Favoured(self._view.picture, tools.shifts, tools.side, keys)
        self._hypotheses = Hypotheses(self._view, tools, self._late, self._favoured)
        self._tried: list[Placement] = []
        self._missed: list[_Missed] = []
        self.decodes = 0
        self._until = until

    def run(self) -> Detection:
        """Look for the mark in likely places, then in all others."""
        for stages in (self._hypotheses.likely(), self._hypotheses.unlikely()):
            found = self._among(stages)
            if not found.decoded:
                found = self._read_favoured(_FAVOURED_OF_ALL, _SCORED_OF_ALL)
            if found.decoded:
                return found
        return self._toned()

    def _among(self, stages: Iterator[Iterator[Candidate]]) -> Detection:
        """Look stage after stage: at what looks like a mark, then at what the key favours."""
        for stage in stages:
            doubtful = []
            for candidate in stage:
                if candidate.surprise >= _CLEAR:
                    found = self._closely(candidate)
                    if found.decoded:
                        return found
                elif candidate.few and candidate.surprise >= _NOTICED:
                    doubtful.append(candidate)
            for candidate in heapq.nlargest(_CLOSELY, doubtful, key=lambda each: each.surprise):
                found = self._closely(candidate)
                if found.decoded:
                    return found
            found = self._read_favoured(_FAVOURED, _SCORED)
            if found.decoded or self._late():
                return found
        return Detection(False)

    def _read_favoured(self, most: int, least: float) -> Detection:
        """Read the places that the key favours, then move them and read those it favours still."""
        for place, noise in self._favoured.best(most, least):
            if self._late():
                break
            # What was found without the key is all that may be borrowed: see `favoured`.
            view = View(self._view.picture, self._tools, beside=self._view)
            found = self._read_unmoved(view, place, noise)
            if found.decoded or self._late():
                return found
            place, _ = view.moved_in(place, noise, _ROUNDS)
            soft, there = view.judged(place, noise)
            if self._favoured.score(soft, there, place, noise) < _SCORED_THERE:
                continue
            self.decodes += 1
            found = closely.read_favoured(
                soft, self._view.told(place), self._keys, place.told(self._view.shape),
                self._favoured.among,
            )  # fmt: skip
            if found.decoded:
                return found
        return Detection(False)

    def _read_unmoved(self, view: View, place: Placement, noise: float) -> Detection:
        """Recognise what a place should say, where the key chose it."""
        soft, _ = view.judged(place, noise)
        if self._favoured.agreement(soft, place, noise) < _AGREES_THERE:
            return Detection(False)
        return closely.recognise_favoured(
            soft, self._view.told(place), self._keys, place.told(view.shape), self._favoured.among
        )

    def _toned(self) -> Detection:
        """Read the best places as those of a picture whose tones were changed, too."""
        best = heapq.nlargest(_TONED, self._missed, key=lambda each: each.evidence)
        for _, soft, picture, place in best:
            if time.thread_time() > self._until + _ENDS_S / 2:
                break
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
        if self._late() or any(place.is_near(other) for other in self._tried):
            return Detection(False)
        if doubtful:
            # Small moves add to chance, too; to a mark that was met a little off its place, more.
            place, there = self._view.moved_in(place, noise, _ROUNDS[:2], hastily=True)
            if there < _STRIKING:
                return Detection(False)
        self._tried.append(candidate.placement)
        place, there = self._view.moved_in(place, noise, _ROUNDS[:2])
        if there >= asked.promising:
            place, there = self._view.moved_in(place, noise, _ROUNDS[2:])
        if there < asked.promising:
            return Detection(False)
        soft, there = self._view.judged(place, noise)
        if there < asked.believed:
            return Detection(False)
        self._tried.append(place)
        found = self._read(place, soft, there, noise)
        if found.decoded or there < _NEARLY or self._late():
            return found
        place, _ = self._view.moved_in(place, noise, _ROUNDS[1:], latest=True)
        soft, moved = self._view.judged(place, noise)
        return self._read(place, soft, moved, noise) if moved > there else found

    def _read(
        self, place: Placement, soft: Float32, evidence: float, noise: float
    ) -> Detection:
        """Read soft bits of a place in all ways but those of a picture of other tones."""
        self.decodes += 1
        pose, keys = place.told(self._view.shape), self._keys
        found = reading.read(soft, keys, pose)
        if found.decoded:
            return found
        picture = self._view.frame(place, self._tools.seen_side)
        # Not to read what would hardly be read makes nothing more likely to be read wrong.
        agreed = self._favoured.agreement(soft, place, noise)
        if agreed >= _AGREES or (self._known is not None and len(self._known)):
            told = self._part_at(place, picture)
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

    def _part_at(self, place: Placement, picture: Float32) -> Told | None:
        """Return what the picture tells of the frame at a place if it shows a part of it."""
        return partial.told(picture, inside(place, self._view.shape, len(picture)))
