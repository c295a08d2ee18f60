"""Where a marked frame lies in a picture, and the frame cut out of it again.

A picture is turned anticlockwise by any angle, then mirrored, then scaled, cropped or put on a
larger canvas. Everything after the mirror is told by where the frame's middle is and how long its
sides are, in pixels of the picture; the frame may be larger than the picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom_node.inference.base import Float32
from dicom_node.watermark.borders import BORDER_STEP, LEAST_INSIDE, borderless
from dicom_node.watermark.robust import Pose

LONGEST_PX = 384  # side to which a picture is shrunk before it is searched: thrice the networks'
_FEW_PIXELS, _MANY_PIXELS = 0.4, 1.05  # a sample
_SAME = 0.01  # of a frame's side: places nearer than that are as good as the same
_ENDS = (slice(None, 2), slice(-2, None))
_LEAST_TURN = 1.0  # degrees
_RECTANGULAR = 0.95  # of the turned rectangle is inside what is seen; the rest is dark at its edges
_ALL_CANVAS = 0.9  # of an edge
_TELLING, _LONGER = 0.1, 1.02
_TO_CORNER = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # sample i has its centre at i + 0.5


@dataclass(frozen=True)
class Placement(Pose):
    """A pose with a place and a size.

    Attributes
    ----------
    columns, rows
        The frame's own sides, in pixels of the picture (`columns` lies along the picture's rows
        when it is not turned).
    centre
        The frame's middle in the picture, ``(x, y)``, pixels from its upper left corner.
    """

    columns: float = 0.0
    rows: float = 0.0
    centre: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def whole(cls, shape: tuple[int, ...], quarter: int = 0, *, flip: bool = False) -> Placement:
        """Return the placement of a frame that fills a picture of `shape`."""
        rows, columns = shape[:2]
        across, down = (rows, columns) if quarter % 2 else (columns, rows)
        return cls(90.0 * quarter, flip, 1.0, across, down, (columns / 2, rows / 2))

    def matrix(self) -> NDArray[np.float64]:
        """Return the map from the frame's unit square to the picture's pixels, ``(3, 3)``."""
        return self._matrix

    def map_of(self, other: Placement) -> NDArray[np.float64]:
        """Return the map from the unit square of `other` to this one's, ``(3, 3)``."""
        return np.asarray(self._inverse @ other.matrix())

    def is_near(self, other: Placement) -> bool:
        """Whether small moves from both lead to the same place."""
        apart = self.map_of(other) - np.eye(3)
        return bool(np.abs(apart).max() < _SAME)

    @cached_property
    def _matrix(self) -> NDArray[np.float64]:
        turn = np.deg2rad(self.rotation_deg)
        cosine, sine = np.cos(turn), np.sin(turn)
        mirrored = -1 if self.flip else 1
        linear = np.array([[mirrored * cosine * self.columns, mirrored * sine * self.rows],
                           [-sine * self.columns, cosine * self.rows]])  # fmt: skip
        whole = np.eye(3)
        whole[:2, :2] = linear
        whole[:2, 2] = np.array(self.centre) - linear.sum(1) / 2
        whole.setflags(write=False)
        return whole

    @cached_property
    def _inverse(self) -> NDArray[np.float64]:
        return np.asarray(np.linalg.inv(self._matrix), np.float64)

    def posed(self, quarter: int, *, flip: bool) -> Placement:
        """Return the frame in the same rectangle, turned there by quarters, and mirrored."""
        turn = -self.rotation_deg if flip else self.rotation_deg
        sides = (self.rows, self.columns) if quarter % 2 else (self.columns, self.rows)
        return Placement(turn + 90.0 * quarter, flip, 1.0, *sides, self.centre)

    def moved(self, right: float, down: float, side: int) -> Placement:
        """Return this placement moved along the frame's own axes, in samples of `side`."""
        x, y = (self.matrix()[:2, :2] @ (right / side, down / side)) + self.centre
        return replace(self, centre=(float(x), float(y)))

    def changed(self, turn: float, size: float, shape: float) -> Placement:
        """Return it turned by `turn` degrees, larger by `size` and stretched by `shape` (logs)."""
        return replace(
            self,
            rotation_deg=self.rotation_deg + turn,
            columns=self.columns * float(np.exp(size + shape)),
            rows=self.rows * float(np.exp(size - shape)),
        )

    def told(self, shape: tuple[int, ...]) -> Placement:
        """Return it as it is reported: angle in 0..360, scale against a picture of `shape`."""
        scale = float(np.sqrt(self.columns * self.rows / (shape[0] * shape[1])))
        return replace(self, rotation_deg=self.rotation_deg % 360.0, scale=scale)

    def upright(self, picture: Float32) -> Float32:
        """Return the frame cut out of `picture`, at about the size it has there."""
        side = max(8, round(np.sqrt(self.columns * self.rows)))
        return cut(picture, self, (side, side))


def cut(picture: Float32, placement: Placement, shape: tuple[int, int]) -> Float32:
    """Return the frame at `placement`, resampled to `shape`; its edge is continued outside."""
    rows, columns = shape
    return _warp(picture, placement, rows, columns, cv2.BORDER_REPLICATE)


def as_seen(picture: Float32, placement: Placement, side: int) -> Float32:
    """Return the frame as the networks see it, ``(side, side)``: means of areas, not samples."""
    return _by_area(picture, placement, side, cv2.INTER_LINEAR)


def sharply_seen(picture: Float32, placement: Placement, side: int) -> Float32:
    """Return it so that hardly any of a mark is lost between samples, ``(side, side)``.

    Marks reach 0.47 cycles a sample of D1: a bilinear kernel takes half of that from a picture of
    128 pixels and a sixth from one of 256, and what was turned has been through one already. Far
    enlarged, a picture is better off smooth.
    """
    pixels = max(placement.columns, placement.rows) / side
    if _FEW_PIXELS <= pixels <= _MANY_PIXELS:
        seen = _warp(picture, placement, side, side, cv2.BORDER_REPLICATE, cv2.INTER_LANCZOS4)
    else:
        how = cv2.INTER_CUBIC if pixels > _MANY_PIXELS else cv2.INTER_LINEAR
        seen = _by_area(picture, placement, side, how)
    return np.clip(seen, 0, 1)


def inside(placement: Placement, shape: tuple[int, ...], side: int) -> Float32:
    """Return 1 where a sample of the frame lies in a picture of `shape`, 0 outside."""
    whole = np.ones(shape[:2], np.float32)
    return _warp(whole, placement, side, side, cv2.BORDER_CONSTANT)


def resampled(
    plane: Float32, times: int, before: Placement, after: Placement, side: int
) -> Float32:
    """Return the frame `after`, ``(side, side)``, from one cut out at `before`, enlarged."""
    change = before.map_of(after)
    fine = side * times
    to_samples = np.diag([fine, fine, 1.0]) @ change @ np.diag([1 / side, 1 / side, 1.0])
    to_samples[:2, 2] -= (times - 1) / 2  # sample i became times i: not the middle of its parts
    return _sampled(plane, to_samples, side, side, cv2.BORDER_CONSTANT)


def _by_area(picture: Float32, placement: Placement, side: int, how: int) -> Float32:
    fine = _warp(picture, placement, 2 * side, 2 * side, cv2.BORDER_REPLICATE, how)
    return np.asarray(cv2.resize(fine, (side, side), interpolation=cv2.INTER_AREA), np.float32)


def _warp(
    picture: Float32, placement: Placement, rows: int, columns: int, border: int,
    how: int = cv2.INTER_LINEAR,
) -> Float32:  # fmt: skip
    to_pixels = placement.matrix() @ np.diag([1 / columns, 1 / rows, 1.0])
    return _sampled(picture, to_pixels, rows, columns, border, how)


def _sampled(
    picture: Float32, to_pixels: NDArray[np.float64], rows: int, columns: int, border: int,
    how: int = cv2.INTER_LINEAR,
) -> Float32:  # fmt: skip
    """Return `picture` at ``(rows, columns)`` samples; `to_pixels` maps corners to corners."""
    centres = np.linalg.inv(_TO_CORNER) @ to_pixels @ _TO_CORNER
    warped = cv2.warpAffine(
        picture, centres[:2], (columns, rows), flags=how | cv2.WARP_INVERSE_MAP, borderMode=border,
    )  # fmt: skip
    return np.asarray(warped, np.float32)


def shrunk(picture: Float32) -> Float32:
    """Return the picture with its longest side at most `LONGEST_PX`, by area."""
    factor = max(picture.shape) / LONGEST_PX
    if factor <= 1:
        return np.ascontiguousarray(picture, np.float32)
    rows, columns = (max(1, round(side / factor)) for side in picture.shape)
    small = cv2.resize(picture, (columns, rows), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32)


def outlined(picture: Float32) -> Iterator[Placement]:
    """Yield rectangles whose edges are seen: turned on a canvas, or inside a border."""
    turned = tilted(picture)
    if turned is not None:
        yield turned
        filling = _filling(turned, picture.shape)
        if filling is not None:
            yield filling
        return
    box = borderless(picture)
    if box is not None:
        rows, columns = box
        middle = ((columns.start + columns.stop) / 2, (rows.start + rows.stop) / 2)
        sides = (columns.stop - columns.start, rows.stop - rows.start)
        yield Placement(0.0, False, 1.0, *sides, middle)


def canvas(picture: Float32) -> float | None:
    """Return the grey level that all four corners have, None if they differ."""
    corners = np.stack([picture[at][:, to] for at in _ENDS for to in _ENDS])
    level = float(np.median(corners))
    return level if np.abs(corners.mean(axis=(1, 2)) - level).max() <= BORDER_STEP else None


def enclosed(picture: Float32) -> bool:
    """Whether a canvas shows along all four edges: a frame that it just holds meets each once."""
    level = canvas(picture)
    edges = picture[0], picture[-1], picture[:, 0], picture[:, -1]
    return level is not None and all(
        np.mean(np.abs(edge - level) <= BORDER_STEP) >= _ALL_CANVAS for edge in edges
    )


def tilted(picture: Float32) -> Placement | None:
    """Return the turned rectangle that lies on a canvas of one grey level, None without one."""
    level = canvas(picture)
    if level is None:
        return None
    seen = (np.abs(picture - level) > BORDER_STEP).astype(np.uint8)
    seen = np.asarray(cv2.morphologyEx(seen, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)))
    if not seen.any():
        return None
    hull = cv2.convexHull(cv2.findNonZero(seen))
    (x, y), (across, down), clockwise = cv2.minAreaRect(hull)
    if across * down < LEAST_INSIDE**2 * picture.size:
        return None
    askew = min(clockwise % 90, 90 - clockwise % 90) >= _LEAST_TURN
    if not askew or cv2.contourArea(hull) < _RECTANGULAR * across * down:
        return None
    return Placement(-clockwise, False, 1.0, across, down, (x + 0.5, y + 0.5))


def _filling(seen: Placement, shape: tuple[int, ...]) -> Placement | None:
    """Return the rectangle, turned like `seen`, that a canvas just holds; None if it is that.

    A frame that is dark at an edge is seen shorter than it is. At 45 degrees no canvas tells.
    """
    down, across = shape[:2]
    turn = np.deg2rad(seen.rotation_deg)
    cosine, sine = abs(float(np.cos(turn))), abs(float(np.sin(turn)))
    apart = cosine**2 - sine**2
    if abs(apart) < _TELLING:
        return None
    columns = (across * cosine - down * sine) / apart
    rows = (down * cosine - across * sine) / apart
    longer = max(columns / seen.columns, rows / seen.rows)
    if min(columns, rows) < LEAST_INSIDE * min(across, down) or longer < _LONGER:
        return None
    return replace(seen, columns=columns, rows=rows, centre=(across / 2, down / 2))
