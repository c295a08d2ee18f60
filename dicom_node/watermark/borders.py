"""Borders of one grey level around a picture: a screenshot's, or what blackened its edges."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

BORDER_STEP = 12 / 255  # a border differs by no more from its level (what JPEG does to it)
LEAST_INSIDE = 0.3  # of each side; less is no picture in a border but a spot on a background
_BORDER_ASTRAY = 0.03  # but for this part of a line


def borderless(picture: Float32) -> tuple[slice, slice] | None:
    """Return the part inside a border of one grey level (a screenshot's), None without one."""
    spans = []
    for lines in (picture, picture.T):
        first = _border(lines)
        last = len(lines) - _border(lines[::-1])
        if last - first < LEAST_INSIDE * len(lines):
            return None
        spans.append(slice(first, last))
    rows, columns = spans
    whole = (rows.stop - rows.start, columns.stop - columns.start) == picture.shape
    return None if whole else (rows, columns)


def _border(lines: Float32) -> int:
    """Return how many of the first lines are of one level, but for what JPEG does to them."""
    level = float(np.median(lines[0]))
    astray = np.mean(np.abs(lines - level) > BORDER_STEP, axis=1) > _BORDER_ASTRAY
    return int(astray.argmax()) if astray.any() else len(lines)
