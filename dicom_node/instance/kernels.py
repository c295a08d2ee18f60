"""The loops over samples: stored values to display values, to containers, to a histogram."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.compiled import compiled

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]

_ZERO, _ONE = np.float32(0), np.float32(1)


@compiled
def show(
    values: Int32, factor: np.float32, offset: np.float32, inverted: bool, hole_low: int,
    hole_high: int, out: Float32,
) -> None:  # fmt: skip
    """Fill `out` with ``clip(values * factor + offset, 0, 1)``, 0 for values in the hole.

    All arrays flat and of one length; float32 throughout. `inverted` takes it from 1.
    """
    for i in range(values.size):
        value = values[i]
        shown = np.float32(value) * factor + offset
        shown = min(max(shown, _ZERO), _ONE)
        if inverted:
            shown = _ONE - shown
        out[i] = _ZERO if (value >= hole_low) & (value <= hole_high) else shown


@compiled
def contain(values: Int32, low: int, high: int, mask: int, out: NDArray[Any]) -> bool:
    """Fill `out` (uint8 or uint16) with ``values & mask``; whether all are in ``low..high``."""
    fits = True
    for i in range(values.size):
        value = values[i]
        fits &= (value >= low) & (value <= high)
        out[i] = value & mask
    return fits


@compiled
def count(values: Int32, low: int, hole_low: int, hole_high: int, out: NDArray[np.int64]) -> bool:
    """Add to ``out[v - low]`` the values v outside the hole; whether all have a place in `out`."""
    fits = True
    for i in range(values.size):
        value = values[i]
        place = value - low
        if (place < 0) | (place >= out.size):
            fits = False
        elif (value < hole_low) | (value > hole_high):
            out[place] += 1
    return fits


@compiled
def between(
    values: Int32, low: float, high: float, hole_low: int, hole_high: int
) -> tuple[int, int]:  # fmt: skip
    """Return how many values outside the hole lie in ``low..high``, and how many there are."""
    found = outside = 0
    for i in range(values.size):
        value = values[i]
        free = (value < hole_low) | (value > hole_high)
        outside += free
        found += free & (value >= low) & (value <= high)
    return found, outside


@compiled
def reach(before: Int32, after: Int32) -> tuple[int, int, int]:
    """Return the largest absolute difference of two flat arrays, and the extremes of `after`."""
    most, low, high = np.int32(0), after[0], after[0]
    for i in range(after.size):
        value = after[i]
        most = max(most, np.int32(abs(value - before[i])))
        low, high = min(low, value), max(high, value)
    return int(most), int(low), int(high)
