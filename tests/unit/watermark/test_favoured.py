"""Places the key favours: weak marks stand out there, chance does not, and nothing proves more."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from robust_key import Key
from turned_pictures import Marked, display, marked_frames, turned

from dicom_node.watermark import closely, expecting, synchronise, words
from dicom_node.watermark.alignment import Tools, View
from dicom_node.watermark.favoured import Favoured
from dicom_node.watermark.fourier import enlarged
from dicom_node.watermark.hypotheses import Candidate, Hypotheses
from dicom_node.watermark.placement import Placement
from dicom_node.watermark.reading import Detection
from dicom_node.watermark.robust import RobustWatermark

KEY, STRANGER = Key(b"k"), Key(b"x")
CUT = round(256 * 0.75**0.5)  # a corner is kept, a quarter of the area cut off


@pytest.fixture(scope="module")
def marked(watermark: RobustWatermark, shared: Path) -> list[Marked]:
    return marked_frames(watermark, shared, 6, KEY)


@pytest.fixture(scope="module")
def corners(marked: list[Marked]) -> list[np.ndarray]:
    return [display(np.ascontiguousarray(picture[:CUT, :CUT])) for picture, _, _ in marked]


def _frame_of(corner: np.ndarray) -> Placement:
    """Return where the whole frame lies against its corner."""
    side = 256.0
    return replace(Placement.whole(corner.shape), columns=side, rows=side, centre=(128.0, 128.0))


def _favoured(view: View, tools: Tools, key: Key) -> Favoured:
    return Favoured(view.picture, tools.shifts, tools.side, [key])


def test_soft_bits_agree_with_the_hash_of_their_own_place_and_with_no_other_key(
    tools: Tools, corners: list[np.ndarray]
) -> None:
    ours, theirs = [], []
    for corner in corners:
        view, place = View(corner, tools), _frame_of(corner)
        noise = tools.shifts.noise(view.whitened(place))
        soft, _ = view.judged(place, noise)
        ours.append(_favoured(view, tools, KEY).agreement(soft, place, noise))
        theirs.append(_favoured(view, tools, STRANGER).agreement(soft, place, noise))
    assert np.median(ours) > 4.0
    assert min(ours) > 1.5
    assert np.abs(theirs).max() < 4.0
    assert abs(np.mean(theirs)) < 1.5


def test_the_shift_of_a_cropped_frame_is_favoured_among_all(
    tools: Tools, corners: list[np.ndarray]
) -> None:
    right = 0
    for corner in corners:
        view = View(corner, tools)
        favoured, frame = _favoured(view, tools, KEY), _frame_of(corner)
        middle = Placement.whole(corner.shape)
        middle = replace(middle, columns=frame.columns, rows=frame.rows)
        asked = tools.shifts.ask(view.whitened(middle), (10.0, 10.0), 6.0, 96)
        favoured.shifted(middle, asked)
        assert favoured.among == 1 + asked.roughly.size
        place, _ = next(favoured.best(1, -100.0))
        right += bool(np.hypot(*np.subtract(place.centre, frame.centre)) < 3.0)
    assert right >= len(corners) - 1


def test_the_angle_of_a_turned_frame_is_favoured_among_all(
    tools: Tools, marked: list[Marked]
) -> None:
    right = 0
    for picture, _, _ in marked:
        view = View(display(turned(picture, 40)), tools)
        favoured, whole = _favoured(view, tools, KEY), Placement.whole(view.shape)
        seen = view.whitened(whole)
        favoured.turned([whole], tools.turns(1.0).ask([(enlarged(seen, 2), 1.0)]), 1.0)
        place, noise = next(favoured.best(1, -100.0))
        assert noise == 1.0
        right += abs(place.rotation_deg - 40) < 1.5
    assert right >= len(marked) - 1


def test_a_place_is_given_once_and_what_scores_less_is_not(tools: Tools) -> None:
    view = View(np.random.default_rng(1).random((64, 64), np.float32), tools)
    favoured, whole = _favoured(view, tools, KEY), Placement.whole((64, 64))
    asked = tools.shifts.ask(view.whitened(whole), (4.0, 4.0), 6.0, 96)
    for _ in range(2):
        favoured.shifted(whole, asked)
    given = list(favoured.best(10, -100.0))
    assert len(given) == 2, "two of a size, each once though it was noted twice"
    favoured.shifted(whole, asked)
    assert not list(favoured.best(10, 1000.0))


def test_a_mark_that_looks_like_chance_is_found_with_the_key(
    watermark: RobustWatermark, marked: list[Marked], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two fifths of the mark are taken away before a quarter of the frame is."""

    def two_sizes(self: Hypotheses) -> Iterator[Iterator[Candidate]]:
        frame = _frame_of(self._view.picture)
        middle = replace(frame, centre=Placement.whole(self._view.shape).centre)
        yield self._shifted([middle, middle.changed(0.0, 0.02, 0.0)])

    # No search is cut short: what is found does not depend on how fast the machine is.
    monkeypatch.setattr(Hypotheses, "likely", two_sizes)
    monkeypatch.setattr(Hypotheses, "unlikely", lambda _: iter(()))
    weak = [
        (display(np.ascontiguousarray(cv2.addWeighted(picture, 0.6, cover, 0.4, 0)[:CUT, :CUT])), m)
        for picture, cover, m in marked
    ]

    def found() -> int:
        return sum(
            synchronise.find(corner, watermark.engine, [KEY], budget_s=60.0).message == message
            for corner, message in weak
        )

    with_key = found()
    monkeypatch.setattr(Favoured, "best", lambda *_: iter(()))
    assert with_key > found()


def test_where_the_key_leads_leaves_no_trace_where_it_is_not_asked(
    tools: Tools, corners: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is found without the key is counted as if no place had been chosen with it."""
    monkeypatch.setattr(synchronise, "_SCORED_THERE", -100.0)
    places = []
    monkeypatch.setattr(
        closely, "read_favoured",
        lambda soft, told, keys, pose, among: places.append(pose) or Detection(False),
    )  # fmt: skip
    start = Placement.whole(corners[0].shape).changed(0.0, 0.14, 0.0)
    for key in (KEY, STRANGER):
        search = synchronise._Search(corners[0], tools, [key], time.thread_time() + 30)
        search._view.whitened(start)
        before = list(search._view._kept)
        monkeypatch.setattr(Favoured, "best", lambda *_: iter([(start, 4.0)]))
        search._read_favoured(1, 0.0)
        assert [each[0] for each in search._view._kept] == [each[0] for each in before]
        assert search.decodes == 1
    assert places[0] == places[1], "where a place is moved to depends on the picture alone"


def test_a_message_recognised_at_a_chosen_place_has_to_agree_more(
    corners: list[np.ndarray],
) -> None:
    rng, frame = np.random.default_rng(4), corners[0]
    told = expecting.told(frame)
    guesses = expecting.exchanged(told.above, expecting.MESSAGES)
    message = expecting.messages(guesses[:1], KEY.robust_key, KEY.owner)[0].tobytes()
    word = words.code_word(message, KEY)
    accepted = {1: 0, 2**20: 0}
    for _ in range(60):
        soft = (0.56 * word + 0.83 * rng.normal(size=word.size)).astype(np.float32)
        found = {
            among: expecting.likeliest(
                guesses, soft, words.whitening(KEY)[None], KEY.robust_key, KEY.owner, among=among
            )
            for among in accepted
        }
        for among, each in found.items():
            accepted[among] += each is not None
        assert found[1] is not None or found[2**20] is None
    assert accepted[1] > 40 > accepted[2**20] + 15


def test_no_tag_is_made_of_a_hash_that_the_first_bits_contradict(
    corners: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    messages = expecting.messages
    monkeypatch.setattr(
        expecting, "messages", lambda some, *key: made.append(len(some)) or messages(some, *key)
    )
    guesses = expecting.exchanged(expecting.told(corners[0]).above, expecting.MESSAGES)
    rng, whitening = np.random.default_rng(5), words.whitening(KEY)[None]
    for _ in range(20):
        soft = rng.normal(size=words.whitening(KEY).size).astype(np.float32)
        assert not expecting.likeliest(guesses, soft, whitening, KEY.robust_key, KEY.owner)
    assert sum(made) < 0.2 * 20 * expecting.MESSAGES
    message = messages(guesses[100:101], KEY.robust_key, KEY.owner)[0].tobytes()
    word = words.code_word(message, KEY)
    found = expecting.likeliest(guesses, word, whitening, KEY.robust_key, KEY.owner)
    assert found is not None
    assert found.message == message
