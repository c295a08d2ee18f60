"""Where a frame lies in a picture: corners, what is outside, borders and outlines."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from turned_pictures import display, turned

from dicom_node.watermark.borders import borderless
from dicom_node.watermark.placement import (
    Placement,
    as_seen,
    canvas,
    enclosed,
    inside,
    outlined,
    sharply_seen,
    tilted,
)


def test_a_placement_and_its_matrix_agree_on_the_corners() -> None:
    place = Placement(90.0, False, 1.0, columns=40, rows=20, centre=(50, 60))
    corners = place.matrix() @ np.array([[0, 0, 1], [1, 0, 1], [1, 1, 1]]).T
    np.testing.assert_allclose(corners[:2].T, [[40, 80], [40, 40], [60, 40]], atol=1e-9)


def test_samples_outside_the_picture_are_known() -> None:
    place = Placement(0.0, False, 1.0, columns=200, rows=100, centre=(50, 50))
    there = inside(place, (100, 100), 8)
    assert there[:, 2:6].all()
    assert not there[:, [0, 1, 6, 7]].any()


def test_fine_texture_of_a_turned_frame_is_seen_sharply() -> None:
    fine = 0.5 + 0.4 * np.sin(2 * np.pi * 0.35 * np.arange(128, dtype=np.float32))
    picture = np.tile(fine, (128, 1)).astype(np.float32)
    place = Placement(20.0, False, 1.0, columns=128, rows=128, centre=(64, 64))
    middle = np.s_[32:96, 32:96]
    sharply, smoothly = (
        float(see(picture, place, 128)[middle].std()) for see in (sharply_seen, as_seen)
    )
    assert sharply > 0.9 * picture.std()
    assert smoothly < 0.7 * picture.std()


def test_a_whole_frame_of_as_many_pixels_is_seen_as_it_is() -> None:
    picture = np.random.default_rng(3).random((64, 64), np.float32)
    np.testing.assert_array_equal(sharply_seen(picture, Placement.whole((64, 64)), 64), picture)


@pytest.mark.parametrize("side", [32, 128, 512])
def test_a_frame_seen_sharply_keeps_to_display_values(side: int) -> None:
    picture = np.kron(np.indices((16, 16)).sum(0) % 2, np.ones((8, 8))).astype(np.float32)
    place = Placement(33.0, True, 1.0, columns=120, rows=110, centre=(60, 66))
    seen = sharply_seen(picture, place, side)
    assert seen.shape == (side, side)
    assert 0 <= seen.min() < 0.01
    assert 0.99 < seen.max() <= 1


def test_a_border_is_found_through_jpeg_and_none_where_there_is_none() -> None:
    rng = np.random.default_rng(5)
    picture = cv2.GaussianBlur(rng.integers(0, 256, (200, 160)).astype(np.uint8), (0, 0), 1.5)
    assert borderless(display(picture)) is None
    framed = cv2.copyMakeBorder(picture, 24, 8, 16, 40, cv2.BORDER_CONSTANT, value=235)
    found = borderless(display(framed))
    assert found is not None
    rows, columns = found
    np.testing.assert_allclose([rows.start, rows.stop], [24, 224], atol=1)
    np.testing.assert_allclose([columns.start, columns.stop], [16, 176], atol=1)


@pytest.mark.parametrize("degrees", [5.0, 33.0, 45.0, -20.0])
def test_a_turned_frame_is_seen_on_its_canvas_whatever_its_aspect(degrees: float) -> None:
    rng = np.random.default_rng(6)
    picture = cv2.GaussianBlur(rng.integers(60, 256, (150, 250)).astype(np.uint8), (0, 0), 1)
    canvas = turned(picture, degrees, whole=True)
    seen = tilted(display(cv2.imdecode(cv2.imencode(".jpg", canvas)[1], 0)))
    assert seen is not None
    sides = (seen.columns, seen.rows)
    quarter = round((degrees - seen.rotation_deg) / 90)
    posed = seen.posed(quarter, flip=False)
    assert posed.rotation_deg == pytest.approx(degrees, abs=0.4)
    assert (posed.columns, posed.rows) == pytest.approx((250, 150), abs=2.5)
    assert sorted(sides) == sorted((posed.columns, posed.rows))
    assert posed.centre == pytest.approx((canvas.shape[1] / 2, canvas.shape[0] / 2), abs=1)


@pytest.mark.parametrize("degrees", [5.0, 15.0, 45.0, -20.0])
def test_a_canvas_that_just_holds_a_frame_shows_along_all_edges(degrees: float) -> None:
    rng = np.random.default_rng(6)
    picture = cv2.GaussianBlur(rng.integers(60, 256, (150, 250)).astype(np.uint8), (0, 0), 1)
    assert not enclosed(display(picture))
    for shown in (turned(picture, degrees, whole=True), 255 - turned(255 - picture, degrees)):
        coded = display(cv2.imdecode(cv2.imencode(".jpg", shown)[1], 0))
        assert enclosed(coded) == (shown.shape != picture.shape)


def test_a_frame_that_is_cut_off_is_not_enclosed_though_its_corners_are_dark() -> None:
    rng = np.random.default_rng(6)
    picture = cv2.GaussianBlur(rng.integers(60, 256, (200, 200)).astype(np.uint8), (0, 0), 1)
    head = np.zeros_like(picture)
    cv2.ellipse(head, (100, 100), (70, 90), 0, 0, 360, 1, -1)
    whole, cut = display(picture * head), display((picture * head)[:, 40:160])
    assert canvas(cut) is not None
    assert enclosed(whole)
    assert not enclosed(cut)


def test_a_frame_that_is_dark_at_one_edge_is_also_looked_for_as_its_canvas_holds_it() -> None:
    rng = np.random.default_rng(8)
    picture = cv2.GaussianBlur(rng.integers(60, 256, (250, 205)).astype(np.uint8), (0, 0), 1)
    picture[225:] = 0
    canvas = turned(picture, 12.0, whole=True)
    seen, filling = outlined(display(canvas))
    assert sorted((seen.columns, seen.rows)) == pytest.approx([205, 225], abs=3)
    assert sorted((filling.columns, filling.rows)) == pytest.approx([205, 250], abs=4)


def test_a_mirrored_pose_lies_in_the_same_rectangle() -> None:
    place = Placement(20.0, False, 1.0, columns=200, rows=100, centre=(150, 120))
    unit = np.array([[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]]).T

    def corners(each: Placement) -> list[list[float]]:
        return sorted(np.round((each.matrix() @ unit)[:2].T, 6).tolist())

    for n in range(8):
        assert corners(place.posed(n % 4, flip=n > 3)) == corners(place)


def test_a_round_picture_and_one_that_fills_its_canvas_have_no_outline() -> None:
    dark = np.zeros((200, 200), np.float32)
    assert list(outlined(dark)) == []
    disc = cv2.circle(dark.copy(), (100, 100), 90, 0.8, -1)
    assert tilted(disc) is None
    bright = np.random.default_rng(7).random((200, 200), np.float32)
    assert list(outlined(bright)) == []
