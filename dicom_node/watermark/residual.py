"""W1's residual, sample by sample: the loops behind :mod:`synthesis`, in whole numbers throughout.

Compiled, because a mark builds the residual, puts it on, rebuilds and takes it off again, and each
step in array operations is a dozen passes over the frame.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dicom_node.compiled import compiled, compiled_loosely

Int32 = NDArray[np.int32]
Flags = NDArray[np.bool_]
Places = NDArray[np.uint32]


@compiled
def stretched_product(
    carrier: Int32, grid: Int32, carrier_rows: Places, carrier_columns: Places, grid_rows: Places,
    grid_columns: Places,
) -> Int32:  # fmt: skip
    """Return ``up(carrier) * up(grid)``, both resampled bilinearly, ``(rows, columns)``.

    Parameters
    ----------
    carrier, grid
        Square, whole numbers up to 2**15.
    carrier_rows, ...
        ``(3, targets)``: the two source indices of each target, and the weight of the second in
        64ths. Sums are rounded after each direction, halves up.
    """
    rows, columns = carrier_rows.shape[1], carrier_columns.shape[1]
    product = np.empty((rows, columns), np.int32)
    carrier_line = np.empty(carrier.shape[1], np.int32)
    grid_line = np.empty(grid.shape[1], np.int32)
    stretched = np.empty(columns, np.int32)
    for row in range(rows):
        _between_rows(carrier, carrier_rows[:, row], carrier_line)
        _stretch(carrier_line, carrier_columns, product[row])
        _between_rows(grid, grid_rows[:, row], grid_line)
        _stretch(grid_line, grid_columns, stretched)
        _multiply(product[row], stretched)
    return product


@compiled
def _between_rows(source: Int32, place: Places, out: Int32) -> None:
    above, below, weight = source[place[0]], source[place[1]], np.int32(place[2])
    for i in range(out.size):
        step = np.int32(below[i] - above[i])
        out[i] = np.int32(above[i] + np.int32(np.int32(np.int32(step * weight) + 32) >> 6))


@compiled
def _stretch(line: Int32, places: Places, out: Int32) -> None:
    lefts, rights, weights = places[0], places[1], places[2]
    for i in range(out.size):
        left = line[lefts[i]]
        step = np.int32(line[rights[i]] - left)
        weighted = np.int32(np.int32(step * np.int32(weights[i])) + 32)
        out[i] = np.int32(left + np.int32(weighted >> 6))


@compiled
def _multiply(line: Int32, factors: Int32) -> None:
    for i in range(line.size):
        line[i] = np.int32(line[i] * factors[i])


@compiled
def may_change(
    plane: Int32, delta: Int32, low: int, high: int, pad_low: int, pad_high: int,
    changes: Flags, undone: Flags,
) -> None:  # fmt: skip
    """Clear the flags of pixels that W1 leaves alone, and of those its inverse would.

    Parameters
    ----------
    plane, delta
        One sample of every pixel, and what is to be added to it, ``(pixels,)``.
    low, high, pad_low, pad_high
        Inclusive; no padding when ``pad_high < pad_low``.
    changes
        Stays set where ``plane`` and ``plane + delta`` are no padding, and ``plane`` lies more
        than ``abs(delta)`` inside the range.
    undone
        Stays set where the inverse, seeing ``plane`` unchanged, would take `delta` off it.
    """
    least, most = np.int32(low), np.int32(high)
    first, width = np.int32(pad_low), np.uint32(max(pad_high - pad_low + 1, 0))
    for i in range(plane.size):
        value, change = plane[i], delta[i]
        size = np.int32(abs(change))
        after, before = np.int32(value + change), np.int32(value - change)
        free = np.uint32(np.int32(value - first)) >= width
        free_after = np.uint32(np.int32(after - first)) >= width
        room = (np.int32(value - size) > least) & (np.int32(value + size) < most)
        back = (np.int32(before - size) > least) & (np.int32(before + size) < most)
        changes[i] &= free & free_after & room
        undone[i] &= free & back


@compiled
def was_changed(
    plane: Int32, delta: Int32, low: int, high: int, pad_low: int, pad_high: int, changed: Flags
) -> None:
    """Clear the flags of pixels that the inverse leaves alone; parameters as `may_change`."""
    least, most = np.int32(low), np.int32(high)
    first, width = np.int32(pad_low), np.uint32(max(pad_high - pad_low + 1, 0))
    for i in range(plane.size):
        size, before = np.int32(abs(delta[i])), np.int32(plane[i] - delta[i])
        free = np.uint32(np.int32(plane[i] - first)) >= width
        changed[i] &= free & (np.int32(before - size) > least) & (np.int32(before + size) < most)


@compiled
def moved(plane: Int32, delta: Int32, flags: Flags, sign: int, out: Int32) -> None:
    """Write ``plane + sign * delta`` to `out` where the flag is set, else ``plane``."""
    way = np.int32(sign)
    for i in range(plane.size):
        out[i] = np.int32(plane[i] + np.int32(np.int32(way * delta[i]) * np.int32(flags[i])))


@compiled_loosely
def visible(
    shape: Int32, display: NDArray[np.float32], stored: Int32, low: int, high: int
) -> tuple[NDArray[np.float32], float]:
    """Return `shape` where a change can be made and the window shows it, else 0, and its energy.

    Parameters
    ----------
    shape, display, stored
        ``(rows, columns)``.
    low, high
        Stored values outside this range hardly change at all.
    """
    seen = np.empty(shape.shape, np.float32)
    energy = 0.0
    least, most = np.int32(low), np.int32(high)
    black, white = np.float32(0), np.float32(1)
    for row in range(shape.shape[0]):
        values, shown, line, out = stored[row], display[row], shape[row], seen[row]
        part = np.float32(0)
        for i in range(out.size):
            inside = (values[i] >= least) & (values[i] <= most)
            inside &= (shown[i] > black) & (shown[i] < white)
            here = np.float32(line[i]) * np.float32(inside)
            out[i] = here
            part += here * here
        energy += float(part)
    return seen, energy
