"""The geometric search on real frames: what it finds, what it costs, what it never accepts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from robust_key import Key
from turned_pictures import Picture, display, marked_frames, turned

from dicom_node.inference import open_engine
from dicom_node.watermark import synchronise
from dicom_node.watermark.alignment import Tools, View, tools_of
from dicom_node.watermark.favoured import Favoured
from dicom_node.watermark.hypotheses import Candidate, Hypotheses, held
from dicom_node.watermark.placement import Placement, as_seen, cut, inside, sharply_seen
from dicom_node.watermark.robust import Detection, RobustWatermark
from dicom_node.watermark.synchronise import find

KEY = Key(b"k")
MOST_WHITENED = 16  # times R2 is asked until half of a frame is found; 23 before it was asked last


@pytest.fixture(scope="module")
def watermark() -> RobustWatermark:
    return RobustWatermark(open_engine("onnx"))


@pytest.fixture(scope="module")
def marked(watermark: RobustWatermark, shared: Path) -> list[tuple[Picture, bytes]]:
    """Five frames of the validation split with W1 in them, and their messages."""
    frames = marked_frames(watermark, shared, 5, KEY)
    return [(frame.picture, frame.message) for frame in frames]


_moved_in = View.moved_in


def _left_where_it_was(
    self: View, place: Placement, noise: float, rounds: Sequence[float], *,
    hastily: bool = False, latest: bool = False,
) -> tuple[Placement, float]:  # fmt: skip
    """Do as `View.moved_in`, but move only what was judged before."""
    some = rounds if latest else ()
    return _moved_in(self, place, noise, some, hastily=hastily, latest=latest)


def cropped(picture: Picture, removed: float, *, corner: bool = False) -> Picture:
    rows, columns = (round(side * (1 - removed) ** 0.5) for side in picture.shape)
    top, left = ((a - b) // 2 for a, b in zip(picture.shape, (rows, columns), strict=True))
    return picture[:rows, :columns] if corner else picture[top : top + rows, left : left + columns]


def screenshot(picture: Picture) -> Picture:
    small = cv2.resize(picture, None, fx=1.3, fy=1.3, interpolation=cv2.INTER_CUBIC)
    framed = cv2.copyMakeBorder(small, 33, 71, 52, 20, cv2.BORDER_CONSTANT, value=40)
    return cv2.imdecode(cv2.imencode(".jpg", framed, [cv2.IMWRITE_JPEG_QUALITY, 85])[1], 0)


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(lambda p: turned(p, 5), id="turned by 5 degrees"),
        pytest.param(lambda p: turned(p, -137.3), id="turned by -137.3 degrees"),
        pytest.param(lambda p: turned(p[:, ::-1], 20), id="mirrored and turned by 20 degrees"),
        pytest.param(lambda p: turned(p, 30, whole=True), id="turned on a larger canvas"),
        pytest.param(lambda p: cropped(p, 0.1), id="10 % cropped from all sides"),
        pytest.param(lambda p: cropped(p, 0.25, corner=True), id="25 % cropped from two sides"),
        pytest.param(lambda p: cropped(turned(p, 15), 0.1), id="turned and cropped"),
        pytest.param(screenshot, id="screenshot with a border"),
    ],
)
def test_the_message_is_found(
    watermark: RobustWatermark,
    marked: list[tuple[Picture, bytes]],
    attack: Callable[[Picture], Picture],
) -> None:
    found = [
        find(display(np.ascontiguousarray(attack(picture))), watermark.engine, [KEY]).message
        for picture, _ in marked
    ]
    assert sum(a == b for a, (_, b) in zip(found, marked, strict=True)) >= len(marked) - 1


def test_half_of_a_frame_is_found_and_whitened_a_few_times_only(
    watermark: RobustWatermark, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whitened: list[int] = []
    whiten = Tools.whiten
    monkeypatch.setattr(Tools, "whiten", lambda *them: whitened.append(1) or whiten(*them))
    times, readable = [], 0
    for picture, _, message in marked_frames(watermark, shared, 10, KEY):
        half = np.ascontiguousarray(cropped(picture, 0.5, corner=True))
        put_back = np.full_like(picture, round(float(half.mean())))
        put_back[: half.shape[0], : half.shape[1]] = half
        readable += watermark.detect(display(put_back), [KEY], weak=True).message == message
        whitened.clear()
        if find(display(half), watermark.engine, [KEY], budget_s=6.0).message == message:
            times.append(len(whitened))
    assert len(times) >= max(readable - 1, 8)
    assert max(times) <= MOST_WHITENED, times


def test_a_place_that_does_not_look_like_a_mark_is_read_where_the_key_favours_it(
    watermark: RobustWatermark, marked: list[tuple[Picture, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """So much is asked that nothing looks like a mark; it is read all the same."""
    never = synchronise._Asked(1000.0, 1000.0)
    monkeypatch.setattr(synchronise, "_OF_FEW", never)
    monkeypatch.setattr(synchronise, "_OF_MANY", never)
    picture, message = marked[0]
    turned_by_20 = display(turned(picture, 20))
    assert find(turned_by_20, watermark.engine, [KEY], budget_s=10.0).message == message
    monkeypatch.setattr(Favoured, "best", lambda *_: iter(()))
    assert not find(turned_by_20, watermark.engine, [KEY], budget_s=2.0).decoded


def test_the_pose_says_how_the_picture_was_turned_and_cropped(
    watermark: RobustWatermark, marked: list[tuple[Picture, bytes]]
) -> None:
    picture, _ = marked[0]
    pose = find(display(turned(picture, 20)), watermark.engine, [KEY]).pose
    assert pose.rotation_deg == pytest.approx(20, abs=0.3)
    assert not pose.flip
    pose = find(display(cropped(picture, 0.19)), watermark.engine, [KEY]).pose
    assert pose.scale == pytest.approx(1 / 0.9, rel=0.01)


def test_the_frame_can_be_cut_out_of_the_picture_again(
    watermark: RobustWatermark, marked: list[tuple[Picture, bytes]]
) -> None:
    picture, _ = marked[0]
    attacked = display(turned(picture, 20, whole=True))
    pose = find(attacked, watermark.engine, [KEY]).pose
    assert isinstance(pose, Placement)
    back = cut(attacked, pose, picture.shape)
    assert np.corrcoef(back.ravel(), picture.ravel())[0, 1] > 0.98


def test_an_untouched_picture_is_read_without_a_search(
    watermark: RobustWatermark,
    marked: list[tuple[Picture, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a search was begun")

    monkeypatch.setattr(synchronise, "_Search", refuse)
    for picture, message in marked:
        assert find(display(picture), watermark.engine, [KEY]).message == message


def test_an_unmarked_picture_is_searched_within_the_budget_and_reads_as_nothing(
    watermark: RobustWatermark, shared: Path
) -> None:
    names = sorted((shared / "whole" / "val").rglob("*.webp"))[3:12:4]
    for name in names:
        began = time.thread_time()
        picture = display(cv2.imread(str(name), cv2.IMREAD_GRAYSCALE))
        assert find(picture, watermark.engine, [KEY], budget_s=1.0) == Detection(False)
        assert time.thread_time() - began < 1.6, "what was begun is finished, and no more"


def test_another_key_finds_nothing_in_a_turned_picture(
    watermark: RobustWatermark, marked: list[tuple[Picture, bytes]]
) -> None:
    picture = display(turned(marked[0][0], 10))
    assert not find(picture, watermark.engine, [Key(b"x")], budget_s=1.0).decoded
    assert find(picture, watermark.engine, [Key(b"x"), KEY]).decoded


def test_a_search_decodes_no_more_places_than_it_says(
    watermark: RobustWatermark,
    marked: list[tuple[Picture, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(synchronise, "MOST_DECODES", 2)
    anything = synchronise._Asked(-100.0, -100.0)
    monkeypatch.setattr(synchronise, "_OF_FEW", anything)
    monkeypatch.setattr(synchronise, "_OF_MANY", anything)
    monkeypatch.setattr(synchronise, "_STRIKING", -100.0)
    monkeypatch.setattr(synchronise, "_CLEAR", -100.0)
    picture = display(turned(marked[0][0], 10))
    until = time.thread_time() + 30.0
    search = synchronise._Search(picture, tools_of(watermark.engine), [Key(b"x")], until)
    assert not search.run().decoded
    assert search.decodes == 2


def test_a_place_is_not_read_again_when_it_was_the_last_that_may_be(
    tools: Tools, marked: list[tuple[Picture, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synchronise, "MOST_DECODES", 1)
    off_by_half, decodes = Placement.whole((256, 256)).moved(0.45, 0.0, tools.side), []
    monkeypatch.setattr(View, "moved_in", _left_where_it_was)
    for picture, _ in marked:
        search = synchronise._Search(display(picture), tools, [Key(b"x")], time.thread_time() + 9)
        noise = tools.shifts.noise(search._view.whitened(off_by_half))
        search._closely(Candidate(10.0, off_by_half, noise))
        decodes.append(search.decodes)
    assert max(decodes) == 1


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_flat_picture_reads_as_nothing(watermark: RobustWatermark, value: float) -> None:
    flat = np.full((90, 120), value, np.float32)
    assert not find(flat, watermark.engine, [KEY], budget_s=0.2).decoded


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (7, 5)])
def test_a_tiny_picture_reads_as_nothing(
    watermark: RobustWatermark, shape: tuple[int, int]
) -> None:
    noise = np.random.default_rng(0).random(shape, np.float32)
    assert not find(noise, watermark.engine, [KEY], budget_s=0.2).decoded


@pytest.fixture(scope="module")
def tools(watermark: RobustWatermark) -> Tools:
    return tools_of(watermark.engine)


@pytest.mark.parametrize("see", [as_seen, sharply_seen])
def test_a_whole_frame_is_seen_as_the_plain_path_sees_it(
    watermark: RobustWatermark, see: Callable[[Picture, Placement, int], Picture]
) -> None:
    picture = cv2.GaussianBlur(np.random.default_rng(2).random((256, 256), np.float32), (0, 0), 2)
    seen = see(picture, Placement.whole(picture.shape), 128)
    np.testing.assert_allclose(seen, watermark.resample(picture), atol=1e-5)


@pytest.mark.parametrize("degrees", [45.0, -45.0, 20.0, 200.0])
def test_a_frame_of_a_usual_aspect_is_looked_for_as_its_canvas_holds_it(degrees: float) -> None:
    canvas = turned(np.zeros((240, 320), np.uint8), degrees, whole=True)
    places = [place for place in held(canvas.shape) if place.columns > place.rows]
    apart = [
        (abs((place.rotation_deg - degrees + 180) % 360 - 180), abs(place.columns - 320))
        for place in places
    ]
    assert any(angle < 0.5 and columns < 2 for angle, columns in apart)


def test_far_shifts_tell_the_noise_of_a_marked_and_of_a_turned_picture_alike(
    tools: Tools, marked: list[tuple[Picture, bytes]]
) -> None:
    for picture, _ in marked[:3]:
        view = View(display(picture), tools)
        whole = Placement.whole(view.shape)
        marked_here = view.whitened(whole)
        elsewhere = view.whitened(replace(whole, rotation_deg=30.0))
        soft = tools.patterns @ marked_here.ravel()
        noise = tools.shifts.noise(marked_here)
        assert noise == pytest.approx(tools.shifts.noise(elsewhere), rel=0.35)
        assert np.mean(soft**2) > 1.8 * noise, "the mark itself is no part of it"


def test_a_hasty_move_makes_do_with_what_was_whitened_elsewhere(
    tools: Tools, marked: list[tuple[Picture, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whitened: list[int] = []
    whiten = Tools.whiten
    monkeypatch.setattr(Tools, "whiten", lambda *them: whitened.append(1) or whiten(*them))
    view = View(display(marked[0][0]), tools)
    whole = Placement.whole((256, 256))
    view.whitened(whole)
    beside = whole.moved(20.0, -12.0, tools.side)
    whitened.clear()
    view.moved_in(beside, 1.0, (1.0,), hastily=True)
    assert not whitened
    view.moved_in(beside, 1.0, (1.0,))
    assert whitened


def test_what_was_judged_just_now_is_moved_in_what_was_whitened_for_it(
    tools: Tools, marked: list[tuple[Picture, bytes]]
) -> None:
    picture = display(cropped(marked[0][0], 0.25, corner=True))
    view, alone = View(picture, tools), View(picture, tools)
    place = Placement.whole(view.shape).changed(0.0, 0.14, 0.0)
    view.judged(place.changed(0.0, 0.03, 0.0), 1.0)  # near enough to be borrowed from
    for each in (view, alone):
        each.judged(place, 1.0)
    there = view.moved_in(place, 1.0, (1.0,), latest=True)
    assert there == alone.moved_in(place, 1.0, (1.0,))
    assert there != view.moved_in(place, 1.0, (1.0,))


def test_a_place_that_was_nearly_read_is_moved_once_more(
    tools: Tools, marked: list[tuple[Picture, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was met half a sample off, and left there."""
    monkeypatch.setattr(View, "moved_in", _left_where_it_was)
    read: list[tuple[Placement, float]] = []
    monkeypatch.setattr(
        synchronise._Search, "_read",
        lambda self, place, soft, there, noise: read.append((place, there)) or Detection(False),
    )  # fmt: skip
    whole = Placement.whole((256, 256))
    for picture, _ in marked:
        search = synchronise._Search(display(picture), tools, [KEY], time.thread_time() + 10)
        noise = tools.shifts.noise(search._view.whitened(whole))
        search._closely(Candidate(10.0, whole.moved(0.45, 0.0, tools.side), noise))
    pairs = [pair for pair in pairwise(read) if pair[0][0].centre == (128 + 0.9, 128)]
    assert len(pairs) >= 3
    for (_, first), (place, then) in pairs:
        assert synchronise._NEARLY <= first < then
        assert place.centre == pytest.approx((128, 128), abs=0.5)


def test_a_frame_that_its_canvas_holds_is_looked_for_in_the_middle_only(
    tools: Tools, marked: list[tuple[Picture, bytes]]
) -> None:
    view = View(display(turned(marked[0][0][:192], 20, whole=True)), tools)
    favoured = Favoured(view.picture, tools.shifts, tools.side, [KEY])
    hypotheses = Hypotheses(view, tools, lambda: False, favoured)
    found = list(hypotheses._shifted(list(held(view.shape)), centred=True))
    assert found
    for candidate in found:
        place = candidate.placement
        away = np.hypot(*(np.array(place.centre) - np.array(view.shape[::-1]) / 2))
        assert away <= 7 * 2**0.5 * max(place.columns, place.rows) / tools.side


@pytest.mark.parametrize(("border", "first"), [(0, True), (40, True), (None, False)])
def test_a_larger_canvas_is_looked_for_first_where_the_corners_are_of_one_grey_level(
    tools: Tools, border: int | None, first: bool
) -> None:
    picture = cv2.GaussianBlur(np.random.default_rng(3).random((96, 96), np.float32), (0, 0), 3)
    picture[:48, :48] *= 0.5
    if border is not None:
        picture = cv2.copyMakeBorder(picture, *4 * [12], cv2.BORDER_CONSTANT, value=border / 255)
    view = View(picture, tools)
    favoured = Favoured(view.picture, tools.shifts, tools.side, [KEY])
    hypotheses = Hypotheses(view, tools, lambda: False, favoured)
    sizes: list[list[float]] = []

    def counted(_: Placement, asked: Sequence[float], *__: object) -> Iterator[Candidate]:
        sizes.append(list(asked))
        return iter(())

    hypotheses._turned = counted
    hypotheses._shifted = hypotheses._cornered = lambda *_, **__: iter(())
    for stages, expected in ((hypotheses.likely(), first), (hypotheses.unlikely(), not first)):
        sizes.clear()
        for stage in stages:
            assert not list(stage)
        assert any(size < 0 for asked in sizes for size in asked) == expected


@pytest.mark.parametrize("enclosed", [True, False])
def test_a_canvas_is_looked_for_before_large_crops_only_where_all_edges_show_it(
    tools: Tools, enclosed: bool
) -> None:
    rng = np.random.default_rng(3)
    picture = cv2.GaussianBlur(rng.integers(60, 256, (96, 128)).astype(np.uint8), (0, 0), 1)
    shown = turned(picture, 20, whole=enclosed)
    view = View(display(shown), tools)
    hypotheses = Hypotheses(view, tools, lambda: False,
                            Favoured(view.picture, tools.shifts, tools.side, [KEY]))  # fmt: skip
    asked: list[str] = []

    def turns(_: Placement, sizes: Sequence[float], *__: object) -> Iterator[Candidate]:
        if len(sizes) > 1:
            asked.append("canvas" if sizes[0] < 0 else "crops")
        return iter(())

    hypotheses._turned = turns
    hypotheses._shifted = hypotheses._cornered = lambda *_, **__: iter(())
    for stage in hypotheses.likely():
        assert not list(stage)
    assert (asked.index("canvas") < asked.index("crops")) == enclosed, asked


@pytest.mark.parametrize(
    ("change", "alike"),
    [
        (lambda place: place.changed(0.5, 0.02, 0.0).moved(0.7, -0.4, 128), 0.85),
        (lambda place: replace(place, flip=True), 0.9),
        (lambda place: place.changed(90.0, 0.0, 0.0), 0.8),
        (lambda place: place.changed(30.0, 0.0, 0.0), 0.7),
    ],
    ids=["a little", "mirrored", "turned by a quarter", "turned"],
)
def test_a_place_borrows_what_its_neighbour_was_whitened_to(
    tools: Tools, marked: list[tuple[Picture, bytes]], monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Placement], Placement], alike: float,
) -> None:  # fmt: skip
    whitened = []
    whiten = Tools.whiten
    monkeypatch.setattr(Tools, "whiten", lambda *them: whitened.append(1) or whiten(*them))
    whole = Placement.whole((256, 256))
    beside = change(whole)
    for picture, _ in marked:
        lent, own = View(display(picture), tools), View(display(picture), tools)
        lent.whitened(whole)
        whitened.clear()
        borrowed = lent.whitened(beside)
        assert not whitened
        anew = own.whitened(beside)
        assert len(whitened) == 1
        as_own = lent.whitened(beside, anew=True)
        np.testing.assert_array_equal(as_own, own.whitened(beside, anew=True))
        assert len(whitened) == 3
        there = inside(beside, (256, 256), tools.side) > 0.99
        assert np.corrcoef(borrowed[there], anew[there])[0, 1] > alike
