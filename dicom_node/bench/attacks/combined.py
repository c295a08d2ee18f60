"""Several things at once, as they happen: shared, photographed, printed."""

from __future__ import annotations

import cv2
import numpy as np

from dicom_node.bench.attacks.base import Attack, Picture, Rng, Shape, rounded
from dicom_node.bench.attacks.compression import jpeg
from dicom_node.bench.attacks.geometry import Move, cut, moved, rotation, scaling
from dicom_node.bench.attacks.noise import gaussian

_FAMILY = "combined"
_SCREEN_GREY = 38


def _turn_cut(shape: Shape, angle_deg: float, share: float) -> Move:
    first = rotation(shape, angle_deg)
    return first.then(cut(first.shape, share))


def _turn_scale(shape: Shape, angle_deg: float, factor: float) -> Move:
    first = rotation(shape, angle_deg)
    return first.then(scaling(first.shape, factor, factor))


def _on_screen(shape: Shape) -> Move:
    """Return the place of a picture at four fifths of its size in a window with a title bar."""
    inner = scaling(shape, 0.8, 0.8)
    rows, columns = inner.shape
    top, side = round(0.09 * rows), round(0.04 * columns)
    frame = Move(np.array([[1.0, 0, side], [0, 1.0, top]]), (rows + top + side, columns + 2 * side))
    return inner.then(frame)


def screenshot(picture: Picture, rng: Rng) -> Picture:
    """Return a screenshot: four fifths of the size, a grey border and title bar, JPEG 80."""
    del rng
    move = _on_screen(picture.shape)
    rows, columns = (round(0.8 * n) for n in picture.shape)
    small = cv2.resize(picture, (columns, rows), interpolation=cv2.INTER_AREA)
    out = np.full(move.shape, _SCREEN_GREY, np.uint8)
    top, side = round(0.09 * rows), round(0.04 * columns)
    out[top : top + rows, side : side + columns] = small
    return jpeg(out, 80)


def printed_and_scanned(picture: Picture, rng: Rng) -> Picture:
    """Return the picture after paper: dot gain, optics, paper grain, half a degree, JPEG 75."""
    darker = rounded(255 * (picture / np.float32(255)) ** 1.15)
    soft = np.asarray(cv2.GaussianBlur(darker, (0, 0), 0.8), np.uint8)
    grain = gaussian(soft, rng, 0.0004)
    lifted = rounded(18 + grain * np.float32(220 / 255))
    return jpeg(rotation(picture.shape, 0.5).apply(lifted), 75)


COMBINED: tuple[Attack, ...] = (
    moved("rotated 5, cropped 10 %", _FAMILY, lambda s, rng: _turn_cut(s, 5, 0.1),
          target=0.97, paper="91.4"),
    moved("rotated 15, cropped 25 %", _FAMILY, lambda s, rng: _turn_cut(s, 15, 0.25),
          target=0.97, paper="91.4"),
    moved("rotated 10, scaled x 0.75", _FAMILY, lambda s, rng: _turn_scale(s, 10, 0.75),
          target=0.97),
    # JPEG first: cutting and turning then move its blocks
    Attack("JPEG 50, rotated 5, cropped 10 %", _FAMILY,
           lambda p, rng: _turn_cut(p.shape, 5, 0.1).apply(jpeg(p, 50)),
           lambda p, shape, rng: _turn_cut(shape, 5, 0.1).undo(p, shape), searched=True),
    moved("cropped 10 %, JPEG 70", _FAMILY, lambda s, rng: cut(s, 0.1),
          then=lambda p: jpeg(p, 70)),
    Attack("screenshot", _FAMILY, screenshot,
           lambda p, shape, rng: _on_screen(shape).undo(p, shape), searched=True),
    Attack("printed and scanned", _FAMILY, printed_and_scanned,
           lambda p, shape, rng: rotation(shape, 0.5).undo(p, shape), searched=True),
)  # fmt: skip
