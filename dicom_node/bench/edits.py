"""Local edits of a picture, as somebody would make them who wants to deceive: what f has to find.

They share nothing with those the networks were trained on but the idea. Sizes are in pixels of a
frame of 256 x 256, whatever size the picture has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom_node.bench.attacks.base import Picture, Rng, rounded

Float32 = NDArray[np.float32]
Edit = Callable[[Picture, Picture, float, Rng], Picture]

SIZES = (16, 24, 40)
_FRAME_PX = 256
_LEAST_TEXTURE = 4.0  # grey levels: where nothing is, nothing is removed and nothing is hidden
_TRIES = 20


def lesion(picture: Picture, other: Picture, size: float, rng: Rng) -> Picture:
    """Paint in a round lesion: brighter, or darker where it is bright, with a bright rim or none.

    Its contrast is 15 to 35 % of the window, its edge a fifth of its radius wide.
    """
    del other
    where = _disc(picture, size, rng, edge=0.2)
    middle = float(np.average(picture, weights=where + 1e-9))
    contrast = rng.uniform(0.15, 0.35) * 255 * (1 if middle < 128 else -1)
    rim = cv2.GaussianBlur(where, (0, 0), max(1.0, _pixels(picture, size) / 12))
    ring = 4 * where * (1 - rim) * rng.uniform(0, 0.6)
    return rounded(picture.astype(np.float32) + contrast * (where + ring))


def removed(picture: Picture, other: Picture, size: float, rng: Rng) -> Picture:
    """Remove what is there: inpainted (Navier-Stokes), with the grain of the surroundings."""
    del other
    where = _disc(picture, size, rng, edge=0.1)
    hole = (where > 0.01).astype(np.uint8)
    filled = cv2.inpaint(picture, hole, 5, cv2.INPAINT_NS).astype(np.float32)
    fine = picture - cv2.GaussianBlur(picture, (0, 0), 1.0).astype(np.float32)
    around = cv2.dilate(hole, np.ones((9, 9), np.uint8)) - hole
    grain = float(fine[around > 0].std()) if around.any() else 0.0
    filled += grain * rng.standard_normal(picture.shape, np.float32)
    return rounded(picture.astype(np.float32) + where * (filled - picture))


def copied(picture: Picture, other: Picture, size: float, rng: Rng) -> Picture:
    """Copy a square from another place of the same frame, its edges feathered."""
    del other
    target, source = _place(picture, size, rng), _place(picture, size, rng)
    side = round(_pixels(picture, size))
    patch = _cut(picture, source, side).astype(np.float32)
    return _pasted(picture, patch, target)


def swapped(picture: Picture, other: Picture, size: float, rng: Rng) -> Picture:
    """Put in the same place of another patient's frame, its brightness fitted."""
    target, side = _place(picture, size, rng), round(_pixels(picture, size))
    shape = picture.shape[::-1]
    fitted = np.asarray(cv2.resize(other, shape, interpolation=cv2.INTER_AREA), np.uint8)
    patch, own = (_cut(each, target, side).astype(np.float32) for each in (fitted, picture))
    return _pasted(picture, patch + (own.mean() - patch.mean()), target)


EDITS: Mapping[str, Edit] = {
    "lesion painted in": lesion, "inpainted": removed, "copied from elsewhere": copied,
    "from another patient": swapped,
}  # fmt: skip


def _pixels(picture: Picture, size: float) -> float:
    return max(4.0, size * float(np.sqrt(picture.size)) / _FRAME_PX)


def _place(picture: Picture, size: float, rng: Rng) -> tuple[int, int]:
    """Return the middle of a place that shows something; the most of it that was found."""
    half = int(_pixels(picture, size) / 2) + 1
    rows, columns = (max(1, length - 2 * half) for length in picture.shape)
    best, most = (half, half), -1.0
    for _ in range(_TRIES):
        row, column = int(rng.integers(rows)) + half, int(rng.integers(columns)) + half
        texture = float(picture[row - half : row + half, column - half : column + half].std())
        if texture > most:
            best, most = (row, column), texture
        if texture >= _LEAST_TEXTURE:
            break
    return best


def _disc(picture: Picture, size: float, rng: Rng, *, edge: float) -> Float32:
    """Return a disc, 0..1, with an edge of that part of its radius."""
    row, column = _place(picture, size, rng)
    radius = _pixels(picture, size) / 2
    y, x = np.ogrid[: picture.shape[0], : picture.shape[1]]
    away = np.hypot(y - row, x - column).astype(np.float32)
    disc: Float32 = np.clip((radius - away) / (edge * radius) + 0.5, 0, 1).astype(np.float32)
    return disc


def _cut(picture: Picture, middle: tuple[int, int], side: int) -> Picture:
    row, column = (max(0, place - side // 2) for place in middle)
    return picture[row : row + side, column : column + side]


def _pasted(picture: Picture, patch: Float32, middle: tuple[int, int]) -> Picture:
    """Return the picture with a patch in it; a tenth of its side fades in."""
    row, column = (max(0, place - max(patch.shape) // 2) for place in middle)
    rows = min(patch.shape[0], picture.shape[0] - row)
    columns = min(patch.shape[1], picture.shape[1] - column)
    fade = max(1.0, min(patch.shape) / 10)
    y, x = np.arange(rows, dtype=np.float32), np.arange(columns, dtype=np.float32)
    ramp_y = np.clip(np.minimum(y + 1, rows - y) / fade, 0, 1)
    ramp_x = np.clip(np.minimum(x + 1, columns - x) / fade, 0, 1)
    weight = ramp_y[:, None] * ramp_x[None]
    out = picture.astype(np.float32)
    own = out[row : row + rows, column : column + columns]
    own += weight * (patch[:rows, :columns] - own)
    return rounded(out)
