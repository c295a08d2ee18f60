"""Turned, flipped, scaled, shifted: the same picture, lying elsewhere.

A move is an affine map of pixel centres, so that its inverse is known exactly; what it brings in
from outside is black. A change of size alone has no way back to know: a decoder looks at every
picture at a size of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom_node.bench.attacks.base import Attack, Picture, Rng, Shape, steady

_FAMILY = "geometry"
_ANGLES = (1, 5, 10, 15, 30, 45, 60)
_EXPANDED = (5, 15, 45)
_SCALES = (0.25, 0.75, 1.5, 2, 4)


@dataclass(frozen=True)
class Move:
    """An affine map: ``matrix`` (2, 3) takes (column, row) there; ``shape`` is the result's."""

    matrix: NDArray[np.float64]
    shape: Shape

    def then(self, other: Move) -> Move:
        """Return this move followed by another."""
        return Move((_square(other.matrix) @ _square(self.matrix))[:2], other.shape)

    def apply(self, picture: Picture) -> Picture:
        """Return the picture moved (bilinear, black outside)."""
        rows, columns = self.shape
        moved = cv2.warpAffine(picture, self.matrix, (columns, rows), flags=cv2.INTER_LINEAR)
        return np.asarray(moved, np.uint8)

    def undo(self, picture: Picture, shape: Shape) -> Picture:
        """Return the picture laid back over one of `shape`; what was lost is black."""
        how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        moved = cv2.warpAffine(picture, self.matrix, (shape[1], shape[0]), flags=how)
        return np.asarray(moved, np.uint8)


Plan = Callable[[Shape, Rng], Move]


def rotation(shape: Shape, angle_deg: float, *, expand: bool = False) -> Move:
    """Return the turn about the middle, counter-clockwise; `expand` keeps the corners."""
    rows, columns = shape
    middle = (columns - 1) / 2, (rows - 1) / 2
    matrix = np.asarray(cv2.getRotationMatrix2D(middle, angle_deg, 1.0), np.float64)
    if not expand:
        return Move(matrix, shape)
    cos, sin = abs(matrix[0, 0]), abs(matrix[0, 1])
    wide, high = round(columns * cos + rows * sin), round(columns * sin + rows * cos)
    matrix[:, 2] += (wide - columns) / 2, (high - rows) / 2
    return Move(matrix, (high, wide))


def scaling(shape: Shape, rows_by: float, columns_by: float) -> Move:
    """Return the move to another size."""
    rows, columns = max(1, round(shape[0] * rows_by)), max(1, round(shape[1] * columns_by))
    y, x = rows / shape[0], columns / shape[1]
    return Move(np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2]]), (rows, columns))


def shift(shape: Shape, down: float, right: float) -> Move:
    """Return the move by shares of the sides (whole pixels), the canvas staying where it is."""
    matrix = np.array([[1.0, 0, round(right * shape[1])], [0, 1.0, round(down * shape[0])]])
    return Move(matrix, shape)


def cut(shape: Shape, share: float, *, corner: bool = False) -> Move:
    """Return the move to the middle, or to the lower right corner, less `share` of the area."""
    side = float(np.sqrt(1 - share))
    rows, columns = max(1, round(shape[0] * side)), max(1, round(shape[1] * side))
    place = 1.0 if corner else 0.5
    top, left = int((shape[0] - rows) * place), int((shape[1] - columns) * place)
    return Move(np.array([[1.0, 0, -left], [0, 1.0, -top]]), (rows, columns))


def moved(
    name: str, family: str, plan: Plan, *, then: Callable[[Picture], Picture] = lambda p: p,
    target: float | None = None, paper: str = "", curve: tuple[str, float] | None = None,
) -> Attack:  # fmt: skip
    """Return an attack that moves the picture as planned, and does something `then`."""
    return Attack(
        name, family,
        lambda picture, rng: then(plan(picture.shape, rng).apply(picture)),
        lambda picture, shape, rng: plan(shape, rng).undo(picture, shape),
        target=target, paper=paper, curve=curve, searched=True,
    )  # fmt: skip


def half(picture: Picture) -> Picture:
    """Return the picture at half its size in both directions, by area."""
    size = (max(1, picture.shape[1] // 2), max(1, picture.shape[0] // 2))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def resized(picture: Picture, factor: float) -> Picture:
    """Return the picture at another size: by area when it shrinks, else bicubic."""
    size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, size, interpolation=how), np.uint8)


def _square(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.vstack([matrix, [0.0, 0.0, 1.0]])


def _turned(angle: int) -> Attack:
    first = angle == 45
    return moved(
        f"rotated {angle}", _FAMILY, lambda shape, rng: rotation(shape, angle),
        target=0.99 if first else 0.97, paper="100; 91.5" if first else "91.5",
        curve=("rotation, degrees", angle),
    )  # fmt: skip


def _turned_whole(angle: int) -> Attack:
    return moved(f"rotated {angle}, larger canvas", _FAMILY,
                 lambda shape, rng: rotation(shape, angle, expand=True),
                 target=0.97, paper="91.5")  # fmt: skip


def _quarters(quarters: int) -> Attack:
    return Attack(
        f"rotated {90 * quarters}", _FAMILY,
        steady(lambda p: np.rot90(p, quarters)),
        lambda p, shape, rng: np.ascontiguousarray(np.rot90(p, -quarters)),
        target=0.99, paper="100",
    )  # fmt: skip


def _flip(name: str, axis: int) -> Attack:
    return Attack(
        name, _FAMILY, steady(lambda p: np.flip(p, axis)),
        lambda p, shape, rng: np.ascontiguousarray(np.flip(p, axis)),
        target=0.99, paper="100",
    )  # fmt: skip


def _scaled(factor: float) -> Attack:
    return Attack(
        f"scaled x {factor:g}", _FAMILY, steady(lambda p: resized(p, factor)),
        target=0.97 if 0.5 <= factor <= 2 else None, paper="91.8" if 0.5 <= factor <= 2 else "",
        curve=("scale", factor),
    )  # fmt: skip


GEOMETRY: tuple[Attack, ...] = (
    *map(_turned, _ANGLES),
    moved("rotated, any angle", _FAMILY, lambda s, rng: rotation(s, rng.uniform(0, 360)),
          target=0.97, paper="91.5"),
    *map(_turned_whole, _EXPANDED),
    *map(_quarters, (1, 2, 3)),
    _flip("flip horiz.", 1),
    _flip("flip vert.", 0),
    Attack("half size", _FAMILY, steady(half), target=0.97, paper="91.8",
           curve=("scale", 0.5)),
    *map(_scaled, _SCALES),
    replace(moved("stretched 1.3 x 1", _FAMILY, lambda s, rng: scaling(s, 1.0, 1.3), target=0.97),
            searched=False),
    moved("shifted by 2 %", _FAMILY, lambda s, rng: shift(s, 0.02, -0.02), target=0.97),
    moved("shifted by 10 %", _FAMILY, lambda s, rng: shift(s, -0.1, 0.1), target=0.97),
)  # fmt: skip
