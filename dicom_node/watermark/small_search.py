"""Find W1 in a small picture of unknown geometry: that of a frame up to 96 pixels.

Such a frame has its carrier folded, and its mark looks no more like one than chance does: evidence
finds one of nine, and moving a place to where there is more of it leads away. So no place is moved;
angles, shifts and sizes are stepped through finely, the key tells which of them agree with the hash
that the frame would have there (:mod:`favoured`), and those are read.

At most `MOST_READ` places are decoded, each in 64 ways that a wrong word passes once in 2**32; all
that are recognised after a stage, together, pass once more, as each of the places that the key
chose from is counted, shifts beside them twice: less than 2.5e-7 false accepts a picture and key,
beside those of :mod:`synchronise`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

from dicom_node.inference.base import Float32, RobustEngine
from dicom_node.watermark import closely, expecting, partial
from dicom_node.watermark.alignment import View, tools_of
from dicom_node.watermark.covers import unfolded
from dicom_node.watermark.detecting import FOLDS, SMALL_PX, beside_half
from dicom_node.watermark.favoured import Favoured
from dicom_node.watermark.fourier import ANGLES
from dicom_node.watermark.hypotheses import Hypotheses
from dicom_node.watermark.placement import Placement, canvas, inside
from dicom_node.watermark.reading import Detection
from dicom_node.watermark.words import WAYS, RobustKey

LARGEST_PX = round(SMALL_PX * 2**0.5)  # a small frame turned on a larger canvas
MOST_READ = 16
# Places that are read after a stage, and the score asked of each; that asked in the end.
_OF_STAGE, _SURELY, _SCORED = 2, 8.0, 7.0
_AGREES = 3.0  # standard deviations: one place in fifty has it by chance, in one of all ways
_BESIDE = (2, -2, 1, -1, 3, -3)  # angles beside one that was found: evidence tells it to a degree
# Half samples right and down beside a shift that was.
_AROUND = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1))


def find_small(
    display: Float32, engine: RobustEngine, keys: Sequence[RobustKey], late: Callable[[], bool]
) -> Detection:
    """Read W1 from a picture of a small frame, or find none.

    Parameters
    ----------
    display
        Display values 0..1, ``(rows, columns)``. None of more than `LARGEST_PX` is looked at, of
        more than `SMALL_PX` only what may be a larger canvas: its corners are of one grey level.
    late
        Whether no further place should be asked or read.
    """
    side = max(display.shape)
    if side > LARGEST_PX or (side > SMALL_PX and canvas(display) is None):
        return Detection(False)
    return _SmallSearch(display, engine, keys, late).run()


class _SmallSearch:
    def __init__(
        self, display: Float32, engine: RobustEngine, keys: Sequence[RobustKey],
        late: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._tools, self._keys, self._late = tools_of(engine, FOLDS), keys, late
        self._view = View(display, self._tools)
        self._favoured = Favoured(
            self._view.picture, self._tools.shifts, self._tools.side, keys, WAYS
        )

    def run(self) -> Detection:
        """Read the places that the key favours stage after stage, then of all of them."""
        left = MOST_READ
        stages = Hypotheses(self._view, self._tools, self._late, self._favoured).small()
        for stage in chain(stages, (None,)):
            for _ in stage or ():  # what evidence says of a place is noted with what the key does
                pass
            most, least = (_OF_STAGE, _SURELY) if stage else (left, _SCORED)
            for place, noise in self._favoured.best(min(most, left), least):
                left -= 1
                for found in self._readings(place, noise, surely=stage is not None):
                    if found.decoded or self._late():
                        return found
        return Detection(False)

    def _readings(self, place: Placement, noise: float, *, surely: bool) -> Iterator[Detection]:
        """Yield what is read at a place, and at the angles or shifts beside it."""
        yield self._read(place, self._view.judged(place, noise)[0], noise, decoded=False)
        for beside in self._beside(place) if surely else ():
            whitened = self._view.whitened(beside).reshape(-1)
            yield self._read(beside, self._tools.patterns @ whitened, noise, decoded=True)

    def _beside(self, place: Placement) -> list[Placement]:
        """Return places beside one: angles the key chose from, shifts it did or nearly did."""
        if place.rotation_deg % 90:
            step = 360 / ANGLES
            return [replace(place, rotation_deg=place.rotation_deg + n * step) for n in _BESIDE]
        return [place.moved(x / 2, y / 2, self._tools.side) for x, y in _AROUND]

    def _read(
        self, place: Placement, of_r2: Float32, noise: float, *, decoded: bool
    ) -> Detection:
        """Read a place; what is decoded already only tells of messages that are recognised.

        Not to read what would hardly be read makes nothing more likely to be read wrong.
        """
        view, tools = self._view, self._tools
        if self._favoured.agreement(of_r2, place, noise) < _AGREES:
            return Detection(False)
        of_d1 = tools.engine.decode(unfolded(view.frame(place), tools.engine.side)[None, None])
        soft = beside_half(of_r2[None], of_d1)[0]
        picture, seen = (
            view.frame(place, tools.seen_side), inside(place, view.shape, tools.seen_side)
        )  # fmt: skip
        told = partial.told(picture, seen) or expecting.told(picture)
        # A shift beside the outermost that were asked was none of them.
        among = self._favoured.among * (1 if place.rotation_deg % 90 or not decoded else 2)
        return closely.read_small(
            soft, told, self._keys, place.told(view.shape), among, decoded=decoded
        )
