"""Parts taken away: cut off (the rest becomes the picture), painted black, or covered.

"Cropping by 25 %" is told in three ways, because papers mean any of them: the middle is kept, a
corner is kept, or the canvas stays and the rest of it is black. Shares are of the area.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dicom_node.bench.attacks.base import Attack, Picture, Shape, keep, steady
from dicom_node.bench.attacks.geometry import cut, moved

_FAMILY = "cropping"
_TARGETS = {0.1: 0.98, 0.25: 0.95, 0.5: 0.80}
_PAPER = "97.7-98.3; 89.3"


def blackened(picture: Picture, share: float) -> Picture:
    """Return the picture with a black frame around its middle, of `share` of the area."""
    rows, columns = picture.shape
    move = cut((rows, columns), share)
    top, left = -round(move.matrix[1, 2]), -round(move.matrix[0, 2])
    inside = np.s_[top : top + move.shape[0], left : left + move.shape[1]]
    out = np.zeros_like(picture)
    out[inside] = picture[inside]
    return out


def covered(picture: Picture, share: float) -> Picture:
    """Return the picture with a grey box over its middle, of `share` of the area."""
    rows, columns = picture.shape
    high, wide = round(rows * share**0.5), round(columns * share**0.5)
    top, left = (rows - high) // 2, (columns - wide) // 2
    out = picture.copy()
    out[top : top + high, left : left + wide] = 128
    return out


def lines_removed(picture: Picture, every: int) -> Picture:
    """Return the picture without each `every`-th row and column."""
    rows, columns = picture.shape
    return picture[np.ix_(np.arange(rows) % every != 0, np.arange(columns) % every != 0)]


def _in_place(name: str, share: float, function: Callable[[Picture, float], Picture]) -> Attack:
    return Attack(f"{name} {share:.0%}", _FAMILY, steady(lambda p: function(p, share)), keep,
                  target=_TARGETS.get(share) if name == "blackened" else None,
                  paper=_PAPER if name == "blackened" else "",
                  curve=("area blackened", share) if name == "blackened" else None)  # fmt: skip


def _cut(share: float, *, corner: bool) -> Attack:
    what = "corner" if corner else "middle"
    return moved(
        f"cropped {share:.0%}, {what} kept", _FAMILY,
        lambda shape, rng: cut(shape, share, corner=corner),
        target=_TARGETS.get(share), paper=_PAPER, curve=(f"area cropped, {what} kept", share),
    )  # fmt: skip


def _restored_lines(picture: Picture, shape: Shape, every: int) -> Picture:
    rows, columns = shape
    row, column = (np.arange(n) - np.arange(n) // every - 1 for n in (rows, columns))
    return picture[np.ix_(np.clip(row, 0, None), np.clip(column, 0, None))]


CROPPING: tuple[Attack, ...] = (
    *(_in_place("blackened", share, blackened) for share in (0.1, 0.25, 0.5)),
    *(_cut(share, corner=False) for share in (0.05, 0.1, 0.25, 0.5)),
    *(_cut(share, corner=True) for share in (0.05, 0.1, 0.25, 0.5)),
    *(_in_place("covered", share, covered) for share in (0.1, 0.25)),
    Attack("every 20th line removed", _FAMILY, steady(lambda p: lines_removed(p, 20)),
           lambda p, shape, rng: _restored_lines(p, shape, 20)),
)  # fmt: skip
