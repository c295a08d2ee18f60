"""Where a marked frame may lie in a picture: all of it, the cheap and the likely first.

A stage asks frames of some sizes at every shift (:mod:`shifts`) or at every angle
(:mod:`fourier`), and tells what stands out; :mod:`synchronise` looks at that closely.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dicom_node.watermark import corners
from dicom_node.watermark.alignment import Tools, View
from dicom_node.watermark.favoured import Favoured
from dicom_node.watermark.fourier import ANGLES, chance, enlarged
from dicom_node.watermark.placement import Placement, canvas, enclosed, outlined

# Logs of sizes, a frame's against the picture's.
_FINE_STEP, _TURN_STEP, _COARSE_STEP = 0.01, 0.012, 0.02  # 0.01 amiss, half the evidence is left
_SHARING = 8  # turned frames of neighbouring sizes that share a whitened picture
_HALF_LEFT, _HARDLY_CUT = 0.36, 0.15  # crops that keep half of the area, and three quarters
_EXPANDED = -0.36  # a square on the canvas that holds it turned by 45 degrees
_BORDERED = -0.47  # a frame of 0.63 of the picture's side
_STRETCHES = (-0.018, 0.018, -0.036, 0.036, -0.054, 0.054)  # logs of columns over rows, halved
_ASPECTS = (4 / 3, 3 / 4, 5 / 4, 4 / 5, 3 / 2, 2 / 3)  # columns over rows
_TURNS = [0.75 * n for n in range(1, 60)]  # degrees
_SLIGHTLY, _BEYOND, _SHIFTED = 1.0, 6 / 128, 1 / 4  # a sample; parts of a frame's side
# Samples from the middle, the first as both sides are cut off alike.
_OFF_MIDDLE = ((0.5, 0.5), (-0.5, -0.5), (0.5, 0), (0, 0.5), (-0.5, 0), (0, -0.5), (0.5, -0.5),
               (-0.5, 0.5))  # fmt: skip
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
    few
        Whether few places were asked, so that less stands out by chance.
    """

    surprise: float
    placement: Placement
    noise: float
    few: bool = False


class Hypotheses:
    """The places of one picture that look like a mark, stage after stage.

    Parameters
    ----------
    late
        Whether no further place should be asked.
    """

    def __init__(
        self, view: View, tools: Tools, late: Callable[[], bool], favoured: Favoured
    ) -> None:
        self._view, self._tools, self._late, self.favoured = view, tools, late, favoured
        self._on_canvas, self._enclosed = canvas(view.picture) is not None, enclosed(view.picture)

    def likely(self) -> Iterator[Iterator[Candidate]]:
        """Yield stages, each the candidates of one kind of geometry as it finds them.

        Frames that are shifted, cropped or framed, and turned by any angle, are among them, the
        same mirrored, and what is cropped by less than a third in the other poses. A larger canvas
        has corners of one grey level; where they differ, none is looked for before `unlikely`.
        Where its edges show it, too, it comes before what is cut off by more than a sixth. Of
        that, corners come before all other shifts, and after turned frames.
        """
        whole = Placement.whole(self._view.shape)
        crops = _sizes(0.0, _HALF_LEFT, _FINE_STEP)
        yield self._turned(whole, [0.0])
        yield self._shifted([whole], _ALL, _SHIFTED)
        for rectangle in outlined(self._view.picture):
            yield from self._framed(rectangle)
        cut = [_resized(whole, size) for size in crops]
        small, large = cut[1 : len(cut) // 2], cut[len(cut) // 2 :]
        yield self._shifted(small)
        if self._enclosed:
            yield from self._on_a_canvas(whole)
        cropped = _sizes(_TURN_STEP, _HALF_LEFT, _TURN_STEP)
        yield self._turned(whole, cropped, [False])
        yield self._cornered(large)
        yield self._shifted(large)
        yield self._between_samples(whole)
        if self._on_canvas and not self._enclosed:
            yield from self._on_a_canvas(whole)
        yield self._turned(whole, (_expanded() if self._on_canvas else []) + cropped, [True])
        small_crops, _ = _coarse_crops()
        poses = _poses(self._view.shape)
        yield self._shifted([_resized(pose, size) for size in small_crops for pose in poses])

    def small(self) -> Iterator[Iterator[Candidate]]:
        """Yield the stages of a small picture: cropped by a quarter at most, mirrored if turned.

        An odd number of pixels cut off leaves its middle half a pixel away: too far for a carrier
        of so few samples.
        """
        whole = Placement.whole(self._view.shape)
        yield self._turned(whole, [0.0])
        yield self._shifted([whole], _ALL, _SHIFTED)
        for rectangle in outlined(self._view.picture):
            yield from self._framed(rectangle)
        if self._on_canvas:
            yield self._turned(whole, _expanded())
        cropped = _sizes(_FINE_STEP, _HARDLY_CUT, _FINE_STEP)
        yield self._turned(whole, cropped, [False])
        yield self._shifted([_resized(whole, size) for size in cropped])
        for right, down in _OFF_MIDDLE:
            yield self._turned(whole.moved(right, down, self._tools.side), cropped, [False])

    def unlikely(self) -> Iterator[Iterator[Candidate]]:
        """Yield the stages of all else: stretched, in a wide border, mirrored and half cut off."""
        whole, poses = Placement.whole(self._view.shape), _poses(self._view.shape)
        small_crops, large_crops = _coarse_crops()
        coarse = small_crops + large_crops
        slightly, more = _STRETCHES[:2], _STRETCHES[2:]
        if not self._on_canvas:
            yield from self._on_a_canvas(whole)
            yield self._turned(whole, _expanded(), [True])
        yield self._shifted([_resized(whole, size, s) for size in coarse for s in slightly])
        smaller = _sizes(_BORDERED, -_COARSE_STEP, _COARSE_STEP)
        yield self._shifted([_resized(whole, size) for size in smaller])
        # Reached only with a larger budget, the last also turned by a little.
        yield self._shifted([_resized(whole, size, s) for size in coarse for s in more])
        yield self._shifted([_resized(pose, size) for pose in poses for size in large_crops])
        both = [replace(whole, rotation_deg=turn) for turn in _alternating(_TURNS)]
        yield self._shifted([_resized(pose, size) for pose in both for size in small_crops])

    def _on_a_canvas(self, whole: Placement) -> Iterator[Iterator[Candidate]]:
        """Look for frames that were turned on a larger canvas: of its aspect, then of any usual."""
        yield self._turned(whole, _expanded(), [False])
        yield self._shifted(list(held(self._view.shape)), centred=True)

    def _framed(self, rectangle: Placement) -> Iterator[Iterator[Candidate]]:
        """Look in a rectangle whose edges are seen, and so known to about a sample."""
        poses = [rectangle.posed(n % 4, flip=n > 3) for n in range(8)]
        yield self._shifted(poses[:4], _ALL, centred=True)
        near = _sizes(-0.03, 0.03, _FINE_STEP)
        resized = [_resized(poses[0], size) for size in near]
        yield self._shifted([*poses[4:], *resized], centred=True)
        yield self._turned(poses[0], [0.0])

    def _between_samples(self, whole: Placement) -> Iterator[Candidate]:
        """Look once more, and finely, for a frame as large as the picture that was shifted.

        What whitening leaves of a mark goes by where samples lie in it: of a weak one too little,
        as the picture lies. Asked before what is cut off, it would leave too little time for that.
        """
        half = whole.moved(0.5, 0.5, self._tools.side)
        return self._shifted([half], _ALL, _SHIFTED, finely=True)

    def _shifted(
        self, places: Sequence[Placement], first: int = _SOME, beyond: float = _BEYOND,
        *, centred: bool = False, finely: bool = False,
    ) -> Iterator[Candidate]:  # fmt: skip
        """Look for frames of the given sizes and turns wherever they hold the picture or lie in it.

        Parameters
        ----------
        first
            Patterns asked at every shift.
        beyond
            So much of a frame's side farther, where the picture or the frame was cut off.
        centred
            Whether the frames' middle is known to be that of `places`.
        finely
            Whether nothing is borrowed from a place nearby, whitened or expected.
        """
        side = self._tools.side
        rows, columns = self._view.shape
        for place in places:
            if self._late():
                return
            across, down = (rows, columns) if place.rotation_deg % 180 == 90 else (columns, rows)
            reach = (_slack(place.rows, down, side), _slack(place.columns, across, side))
            if centred:
                reach = (_SLIGHTLY, _SLIGHTLY)
            seen = self._view.whitened(place, anew=finely)
            asked = self._tools.shifts.ask(seen, reach, beyond * side, first)
            self.favoured.shifted(place, asked, finely=finely)
            for peak in self._tools.shifts.peaks(asked):
                there = place.moved(peak.right, peak.down, side)
                yield Candidate(peak.surprise, there, peak.noise, few=len(places) == 1)

    def _cornered(self, places: Sequence[Placement]) -> Iterator[Candidate]:
        """Look for frames of the given sizes of which a corner is kept."""
        side, bank = self._tools.side, self._tools.shifts
        rows, columns = self._view.shape
        for place in places:
            if self._late():
                return
            down = corners.around(_slack(place.rows, rows, side) - _SLIGHTLY)
            right = corners.around(_slack(place.columns, columns, side) - _SLIGHTLY)
            asked = bank.ask_at(self._view.whitened(place), down, right, _SOME)
            self.favoured.cornered(place, asked)
            for peak in corners.peaks(bank, asked):
                there = place.moved(peak.right, peak.down, side)
                yield Candidate(peak.surprise, there, peak.noise, few=True)

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
                seen = self._view.whitened(square)
                noise, plane = self._tools.shifts.noise(seen), enlarged(seen, 2)
                planes = [(plane, length * float(np.exp(size)) / shared) for size in some]
                turned = bank.ask(planes)
                resized = [replace(_resized(whole, size), flip=flip) for size in some]
                self.favoured.turned(resized, turned, noise)
                for unturned, asked in zip(resized, turned, strict=True):
                    for at in np.argsort(-asked.there)[:2]:
                        place = replace(unturned, rotation_deg=float(at) * 360 / ANGLES)
                        surprise = float(asked.there[at]) - chance(ANGLES)
                        yield Candidate(surprise, place, noise, few=len(sizes) == 1)


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


def _expanded() -> list[float]:
    """Return logs of sizes of frames that were turned on a larger canvas."""
    return _sizes(_EXPANDED, -_TURN_STEP, _TURN_STEP)


def _coarse_crops() -> tuple[list[float], list[float]]:
    """Return logs of sizes of crops, few, the smaller half and the larger."""
    coarse = _sizes(0.0, _HALF_LEFT, _COARSE_STEP)
    return coarse[: len(coarse) // 2], coarse[len(coarse) // 2 :]


def _poses(shape: tuple[int, ...]) -> list[Placement]:
    """Return the seven other poses of a frame that fills a picture."""
    return [Placement.whole(shape, n % 4, flip=n > 3) for n in range(1, 8)]


def _slack(frame: float, picture: float, side: int) -> float:
    """Return how far one can lie within the other, in samples from the middle."""
    return abs(1 - picture / frame) * side / 2 + _SLIGHTLY


def _alternating(turns: Sequence[float]) -> Iterator[float]:
    for turn in turns:
        yield turn
        yield -turn


def _resized(place: Placement, size: float, shape: float = 0.0) -> Placement:
    return place.changed(0.0, size, shape)


