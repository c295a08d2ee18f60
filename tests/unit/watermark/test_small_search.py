"""Small frames are found though they were turned, shifted or cropped, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import pytest
from turned_pictures import display, turned

from dicom_node.frame_marking import FrameMarker
from dicom_node.inference import open_engine
from dicom_node.inference.base import RobustEngine
from dicom_node.instance.display import display_of
from dicom_node.instance.frames import open_instance
from dicom_node.keys import KeySet
from dicom_node.watermark import closely, reading, small_search, synchronise
from dicom_node.watermark.alignment import View, tools_of
from dicom_node.watermark.detecting import FOLDS, SMALL_PX
from dicom_node.watermark.fourier import ANGLES
from dicom_node.watermark.placement import Placement
from dicom_node.watermark.reading import Detection
from dicom_node.watermark.robust import RobustWatermark
from dicom_node.watermark.small_search import _READ_BESIDE, LARGEST_PX, MOST_READ, find_small
from dicom_node.watermark.words import WAYS

FRAMES = "mr/pydicom-data__emri_small_big_endian.dcm"  # 64 x 64, whole frames of an MR series
KEYS = KeySet.from_master(b"k" * 32, "GENERAL-HOSPITAL", datetime(2026, 11, 21, tzinfo=UTC))
OTHER = KeySet.from_master(b"z" * 32, "ELSEWHERE", datetime(2026, 11, 21, tzinfo=UTC))
Picture = np.ndarray


@pytest.fixture(scope="module")
def engine() -> RobustEngine:
    return open_engine("onnx")


@pytest.fixture(scope="module")
def marked(shared: Path, engine: RobustEngine) -> list[tuple[Picture, bytes]]:
    """Eight frames with both marks, 8 bit, and their messages."""
    made = []
    with closing(open_instance(shared / "dicom" / FRAMES, max_pixels=1 << 20)) as instance:
        marker, shown = FrameMarker(engine, "diagnostic", KEYS), display_of(instance)
        for index in range(8):
            marks = marker.mark(instance, shown, instance.frame(index), index, (),
                                datetime(2026, 11, 29, tzinfo=UTC), {})  # fmt: skip
            assert marks.residual is not None
            assert marks.residual.record.folds == FOLDS
            made.append((np.rint(marks.shown * 255).astype(np.uint8),
                         bytes.fromhex(marks.message)))  # fmt: skip
    return made


def _never() -> bool:
    return False


def _shifted(picture: Picture) -> Picture:
    return cv2.warpAffine(picture, np.array([[1.0, 0, 2], [0, 1.0, -1]]), (64, 64))


@pytest.mark.parametrize(
    ("attack", "least"),
    [
        pytest.param(lambda p: turned(p, 5), 6, id="turned by 5 degrees"),
        pytest.param(lambda p: turned(p, 20, whole=True), 6, id="by 20 on a larger canvas"),
        pytest.param(_shifted, 6, id="shifted by 2 %"),
        pytest.param(lambda p: p[3:, 3:], 5, id="rows and columns cut off"),
    ],
)
def test_a_small_frame_is_found_where_it_was_moved(
    engine: RobustEngine, marked: list[tuple[Picture, bytes]],
    attack: Callable[[Picture], Picture], least: int,
) -> None:  # fmt: skip
    """Of eight."""
    robust, found, as_it_lies = RobustWatermark(engine), 0, 0
    for picture, message in marked:
        shown = display(np.ascontiguousarray(attack(picture)))
        as_it_lies += robust.detect(shown, [KEYS], dihedral=True, weak=True).decoded
        detection = find_small(shown, engine, [KEYS], _never)
        assert not detection.decoded or detection.message == message
        found += detection.decoded
    assert found >= least
    assert found > as_it_lies


def test_its_angle_is_told_to_a_degree(
    engine: RobustEngine, marked: list[tuple[Picture, bytes]]
) -> None:
    picture, message = marked[0]
    for degrees in (5.0, -5.0):
        found = find_small(display(turned(picture, degrees)), engine, [KEYS], _never)
        assert found.message == message
        assert (found.pose.rotation_deg - degrees + 180) % 360 - 180 == pytest.approx(0, abs=1.5)


def test_a_search_of_a_small_picture_finds_it_within_its_time(
    engine: RobustEngine, marked: list[tuple[Picture, bytes]]
) -> None:
    picture, message = marked[1]
    found = synchronise.find(display(turned(picture, 5)), engine, [KEYS], budget_s=20.0)
    assert found.message == message


def test_another_key_and_an_unmarked_frame_find_nothing(
    engine: RobustEngine, marked: list[tuple[Picture, bytes]]
) -> None:
    for picture, _ in marked[:4]:
        shown = display(turned(picture, 5))
        assert not find_small(shown, engine, [OTHER], _never).decoded
    noise = cv2.GaussianBlur(np.random.default_rng(1).integers(0, 256, (64, 64)).astype(np.uint8),
                             (0, 0), 1)  # fmt: skip
    assert not find_small(display(noise), engine, [KEYS], _never).decoded


def test_no_more_places_are_decoded_than_false_accepts_are_counted_for(
    engine: RobustEngine, marked: list[tuple[Picture, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies beside a place is only recognised, among all places that the key chose from."""
    read: list[tuple[bool, float, int]] = []

    def nothing(*given: object, decoded: bool) -> Detection:
        read.append((decoded, given[-2].rotation_deg, int(given[-1])))
        return Detection(False)

    def pointed_to(*given: object, ways: int, among: int) -> Detection:
        assert (ways, among) == (WAYS, read[-1][-1])
        return Detection(False)

    monkeypatch.setattr(closely, "read_small", nothing)
    monkeypatch.setattr(reading, "recognise_guided", pointed_to)
    monkeypatch.setattr(small_search, "_AGREES", -100.0)
    find_small(display(turned(marked[0][0], 5)), engine, [KEYS], _never)
    decoded_before = [decoded for decoded, _, _ in read]
    assert decoded_before.count(False) == MOST_READ
    assert min(among for _, _, among in read) > ANGLES
    # Every place and what is read beside it, as long as places are decoded.
    last = len(read) - decoded_before[::-1].index(False) + _READ_BESIDE
    chosen_from = 0
    for beside, degrees, among in read[:last]:
        if beside:
            assert among == chosen_from * (1 if degrees % 90 else 2)
        else:
            assert among >= chosen_from
            chosen_from = among
    assert len(read) > last
    assert all(beside and among >= chosen_from for beside, _, among in read[last:])


def test_a_crop_whose_middle_lies_between_pixels_is_found_turned(
    engine: RobustEngine, marked: list[tuple[Picture, bytes]]
) -> None:
    """61 of 64 rows and columns: half a pixel is too far for a carrier of so few samples."""
    found = 0
    for picture, message in marked[:4]:
        detection = find_small(display(turned(picture, 5)[1:62, 1:62]), engine, [KEYS], _never)
        assert not detection.decoded or detection.message == message
        found += detection.decoded
    assert found >= 3


def test_it_ends_when_it_is_late_and_leaves_larger_pictures_alone(
    engine: RobustEngine, marked: list[tuple[Picture, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    read = closely.read_small
    monkeypatch.setattr(closely, "read_small", lambda *a, **k: reads.append(1) or read(*a, **k))
    find_small(display(turned(marked[0][0], 5)), engine, [OTHER], lambda: True)
    assert len(reads) <= 1
    reads.clear()
    textured = np.random.default_rng(2).random((SMALL_PX + 1, 64), np.float32)
    for large in (np.zeros((LARGEST_PX + 1, 64), np.float32), textured):
        assert not find_small(large, engine, [KEYS], _never).decoded
    assert not reads


def test_folded_tools_see_what_a_picture_beside_its_mirror_images_shows(
    engine: RobustEngine, marked: list[tuple[Picture, bytes]]
) -> None:
    tools, robust = tools_of(engine, FOLDS), RobustWatermark(engine)
    shown = display(marked[0][0])
    soft, _ = View(shown, tools).judged(Placement.whole(shown.shape), 1.0)
    assert np.corrcoef(soft, robust.look_closely(shown, FOLDS)[0])[0, 1] > 0.9
