"""What keeps a corner of its frame is asked for apart, and stands out there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from robust_key import Key
from turned_pictures import Marked, display, marked_frames

from dicom_node.watermark import corners
from dicom_node.watermark.alignment import Tools, View
from dicom_node.watermark.favoured import Favoured
from dicom_node.watermark.hypotheses import Candidate, Hypotheses
from dicom_node.watermark.placement import Placement
from dicom_node.watermark.robust import RobustWatermark

KEY = Key(b"k")
KEPT = round(256 * 0.5**0.5)  # half of the area
PLACES = {"start": 0, "end": 256 - KEPT}


@pytest.fixture(scope="module")
def marked(watermark: RobustWatermark, shared: Path) -> list[Marked]:
    return marked_frames(watermark, shared, 4, KEY)


def test_shifts_are_asked_around_start_and_end() -> None:
    asked = corners.around(10.0)
    assert asked.tolist() == [-10.5, -10, -9.5, 9.5, 10, 10.5]


def test_what_was_asked_of_a_shift_is_found_by_its_corner(tools: Tools) -> None:
    down, right = corners.around(10.0), corners.around(20.0)
    whitened = np.random.default_rng(1).normal(size=2 * (tools.side,)).astype(np.float32)
    asked = tools.shifts.ask_at(whitened, down, right, 96)
    there = corners.by_corner(asked.roughly)
    assert there.size == asked.roughly.size
    for corner, one in np.ndindex(there.shape):
        y, x = corners.shift_of(asked, corner, one)
        [row], [column] = np.flatnonzero(down == y), np.flatnonzero(right == x)
        assert asked.roughly[row, column] == there[corner, one]


def _candidates(
    tools: Tools, picture: np.ndarray, left: int, top: int
) -> tuple[Hypotheses, Placement, Iterator[Candidate]]:
    """Return what looks for a frame of which a part is kept, its place, and what is found."""
    view = View(display(np.ascontiguousarray(picture[top:][:KEPT, left:][:, :KEPT])), tools)
    favoured = Favoured(view.picture, tools.shifts, tools.side, [KEY])
    hypotheses = Hypotheses(view, tools, lambda: False, favoured)
    frame = replace(Placement.whole(view.shape), columns=256.0, rows=256.0,
                    centre=(128.0 - left, 128.0 - top))  # fmt: skip
    size = float(np.log(256 / KEPT))
    sizes = [replace(Placement.whole(view.shape), columns=KEPT * np.exp(each),
                     rows=KEPT * np.exp(each)) for each in (size - 0.05, size)]  # fmt: skip
    return hypotheses, frame, hypotheses._cornered(sizes)


@pytest.mark.parametrize("across", PLACES)
@pytest.mark.parametrize("down", PLACES)
def test_what_keeps_a_corner_stands_out(
    tools: Tools, marked: list[Marked], down: str, across: str
) -> None:
    met = favoured = 0
    for frame, _, _ in marked:
        hypotheses, place, found = _candidates(tools, frame, PLACES[across], PLACES[down])
        best = max(found, key=lambda each: each.surprise, default=None)
        met += best is not None and best.few and best.placement.is_near(place)
        chosen, _ = next(hypotheses.favoured.best(1, -100.0))
        favoured += chosen.is_near(place)
    assert met >= len(marked) - 1
    assert favoured >= len(marked) - 1


def test_every_place_asked_is_one_that_the_key_chose_from(
    tools: Tools, marked: list[Marked]
) -> None:
    hypotheses, _, found = _candidates(tools, marked[0].picture, 0, 0)
    before = hypotheses.favoured.among
    list(found)
    assert hypotheses.favoured.among == before + 2 * 6 * 6


def test_a_picture_without_a_mark_has_hardly_a_place_that_stands_out(
    tools: Tools, marked: list[Marked]
) -> None:
    surprises = [each.surprise for _, cover, _ in marked
                 for each in _candidates(tools, cover, 0, 0)[2]]  # fmt: skip
    assert sum(surprise > 3 for surprise in surprises) <= 1, surprises
