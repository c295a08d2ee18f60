"""Find W1 in a small picture of unknown geometry: that of a frame up to 96 pixels.

Such a frame has its carrier folded, and its mark looks no more like one than chance does: evidence
finds one of nine, and moving a place to where there is more of it leads away. So no place is moved;
angles, shifts and sizes are stepped through finely, the key tells which of them agree with the hash
that the frame would have there (:mod:`favoured`), and those are read.

At most `MOST_READ` places are decoded, each in 64 ways that a wrong word passes once in 2**32; all
that are recognised after one of 20 stages, together, pass once more, and once by what soft bits
point to, as each of the places that the key chose from is counted, shifts beside them twice: less
than 2.5e-7 false accepts a picture and key, beside those of :mod:`synchronise`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

from dicom_node.inference.base import Float32, RobustEngine
from dicom_node.watermark import closely, reading
from dicom_node.watermark.alignment import View, tools_of
from dicom_node.watermark.detecting import FOLDS, SMALL_PX
from dicom_node.watermark.expecting import Told
from dicom_node.watermark.favoured import Favoured
from dicom_node.watermark.fourier import ANGLES
from dicom_node.watermark.hypotheses import Hypotheses
from dicom_node.watermark.placement import Placement, canvas
from dicom_node.watermark.reading import Detection
from dicom_node.watermark.words import WAYS, RobustKey

LARGEST_PX = round(SMALL_PX * 2**0.5)  # a small frame turned on a larger canvas
MOST_READ = 16
# Places that are looked at after a stage, and the score asked of each; and in the end.
_OF_STAGE, _OF_ALL = (4, 8.0), (40, 7.0)
# Standard deviations by which soft bits agree with the hash there: right places have 4.2 and more,
# a quarter of all others 3.6, one in fourteen 4.5 (of all ways the best).
_AGREES, _AGREES_MUCH = 3.5, 4.4
_READ_BESIDE = 3  # places beside one that are read, those that agree most
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
        self._decodes = 0
        self._favoured = Favoured(
            self._view.picture, self._tools.shifts, self._tools.side, keys, WAYS
        )

    def run(self) -> Detection:
        """Read the places that the key favours stage after stage, then of all of them."""
        stages = Hypotheses(self._view, self._tools, self._late, self._favoured).small()
        for stage in chain(stages, (None,)):
            for _ in stage or ():  # what evidence says of a place is noted with what the key does
                pass
            for place, noise in self._favoured.best(*(_OF_STAGE if stage else _OF_ALL)):
                for found in self._readings(place, noise):
                    if found.decoded or self._late():
                        return found
        return Detection(False)

    def _readings(self, place: Placement, noise: float) -> Iterator[Detection]:
        """Yield what is read at a place, and at the angles or shifts beside it.

        Not to read what would hardly be read makes nothing more likely to be read wrong.
        """
        soft, _ = self._view.judged(place, noise)
        agreed = self._favoured.agreement(soft, place, noise)
        if agreed < _AGREES:
            return
        told = self._view.told(place)
        self._decodes += 1
        yield self._read(place, soft, told, agreed, decoded=self._decodes > MOST_READ)
        besides: list[tuple[float, int, Float32, Placement]] = []
        for beside in self._beside(place):
            soft = self._tools.patterns @ self._view.whitened(beside).reshape(-1)
            agreed = self._favoured.agreement(soft, beside, noise)
            besides.append((agreed, len(besides), soft, beside))
        for agreed, _, soft, beside in sorted(besides, reverse=True)[:_READ_BESIDE]:
            yield self._read(beside, soft, told, agreed, decoded=True)

    def _beside(self, place: Placement) -> list[Placement]:
        """Return places beside one: angles the key chose from, shifts it did or nearly did."""
        if place.rotation_deg % 90:
            step = 360 / ANGLES
            return [replace(place, rotation_deg=place.rotation_deg + n * step) for n in _BESIDE]
        return [place.moved(x / 2, y / 2, self._tools.side) for x, y in _AROUND]

    def _read(
        self, place: Placement, soft: Float32, told: Told, agreed: float, *, decoded: bool
    ) -> Detection:
        """Read a place; what is decoded already only tells of messages that are recognised."""
        # A shift beside the outermost that were asked was none of them.
        among = self._favoured.among * (1 if place.rotation_deg % 90 or not decoded else 2)
        pose = place.told(self._view.shape)
        found = closely.read_small(soft, told, self._keys, pose, among, decoded=decoded)
        if not found.decoded and agreed >= _AGREES_MUCH:
            found = reading.recognise_guided(soft, [told], self._keys, pose,
                                             ways=WAYS, among=among)  # fmt: skip
        return found
