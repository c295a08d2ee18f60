"""The loops over pixels: a frame into tiles and back, parameters, prediction.

All arrays are C-contiguous and writable (others would be compiled for again). ``which`` lists the
rows (tiles) that a call is about, per-tile arguments beside it follow its order; everything else
has one row for every tile of the grid. Sums are taken in 64 bits and wrap where they are stored.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dicom_node.compiled import compiled

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Mask = NDArray[np.bool_]

# Which errors a tile changes: all, those from 0 up, those below.
BOTH, UP, DOWN = 0, 1, 2
CLASSES = 32


@compiled
def outside(plane: Int32, span: Int64, out: Mask) -> bool:
    """Set `out` where `plane` is out of range or in the hole; return whether any pixel is.

    `span` is low, high, hole_low, hole_high; without a hole, hole_low > hole_high.
    """
    low, high, hole_low, hole_high = span[0], span[1], span[2], span[3]
    found = False
    for r in range(plane.shape[0]):
        for c in range(plane.shape[1]):
            v = plane[r, c]
            taken = (v < low) | (v > high) | ((v >= hole_low) & (v <= hole_high))
            out[r, c] = taken
            found |= taken
    return found


@compiled
def extremes(plane: Int32) -> tuple[int, int]:
    """Return the smallest and the largest value."""
    low, high = plane[0, 0], plane[0, 0]
    for r in range(plane.shape[0]):
        for c in range(plane.shape[1]):
            low, high = min(low, plane[r, c]), max(high, plane[r, c])
    return low, high


@compiled
def gaps(plane: Int32, padding: Int64, rows: int, columns: int, stride: int, out: Int64) -> None:
    """Fill the greatest step that every `stride`-th pixel of a tile keeps from its first.

    0 where all are alike; values in ``padding[0]..padding[1]`` do not count. `out` is
    ``(down, across)``.
    """
    for down in range(out.shape[0]):
        for across in range(out.shape[1]):
            gap, first, begun = 0, 0, False
            for place in range(0, rows * columns, stride):
                r, c = down * rows + place // columns, across * columns + place % columns
                if gap == 1:
                    break
                if r >= plane.shape[0] or c >= plane.shape[1]:
                    continue
                v = int(plane[r, c])
                if padding[0] <= v <= padding[1]:
                    continue
                if not begun:
                    first, begun = v, True
                a, b = gap, abs(v - first)
                while b:
                    a, b = b, a % b
                gap = a
            out[down, across] = gap


@compiled
def whole_tiles(plane: Int32, low: int, high: int, rows: int, columns: int, out: Mask) -> None:
    """Set `out` ``(down, across)`` for tiles whose every pixel in the frame is in ``low..high``."""
    for down in range(out.shape[0]):
        for across in range(out.shape[1]):
            top, left = down * rows, across * columns
            whole = True
            for r in range(top, min(top + rows, plane.shape[0])):
                for c in range(left, min(left + columns, plane.shape[1])):
                    whole &= low <= plane[r, c] <= high
                if not whole:
                    break
            out[down, across] = whole


@compiled
def count_free(held: Mask, out: Int64) -> None:
    """Fill how many pixels of each tile may change."""
    for t in range(held.shape[0]):
        free = 0
        for j in range(held.shape[1]):
            free += not held[t, j]
        out[t] = free


@compiled
def split_colours(
    plane: Int32, fixed: Mask, across: int, black: Int32, white: Int32, held_black: Mask,
    held_white: Mask,
) -> None:  # fmt: skip
    """Fill the two colours of every tile, and which of their pixels are fixed.

    Past the frame's edge, the last pixel is repeated, and fixed.
    """
    tile_rows, width = black.shape[1:]
    rows, columns = plane.shape
    for t in range(black.shape[0]):
        top, left = t // across * tile_rows, t % across * 2 * width
        for r in range(0, tile_rows, 2):
            y = top + r
            inside = min(width, (columns - left) // 2) if y + 1 < rows else 0
            for j in range(inside):
                x = left + 2 * j
                black[t, r, j], white[t, r, j] = plane[y, x], plane[y, x + 1]
                white[t, r + 1, j], black[t, r + 1, j] = plane[y + 1, x], plane[y + 1, x + 1]
                held_black[t, r, j], held_white[t, r, j] = fixed[y, x], fixed[y, x + 1]
                held_white[t, r + 1, j] = fixed[y + 1, x]
                held_black[t, r + 1, j] = fixed[y + 1, x + 1]
            for j in range(inside, width):
                for place in range(4):
                    y, x = top + r + place // 2, left + 2 * j + place % 2
                    value = plane[min(y, rows - 1), min(x, columns - 1)]
                    taken = y >= rows or x >= columns or fixed[y, x]
                    if place in (0, 3):
                        black[t, r + place // 2, j] = value
                        held_black[t, r + place // 2, j] = taken
                    else:
                        white[t, r + place // 2, j] = value
                        held_white[t, r + place // 2, j] = taken


@compiled
def join_colours(black: Int32, white: Int32, across: int, plane: Int32) -> None:
    """Undo `split_colours`."""
    tile_rows, width = black.shape[1:]
    rows, columns = plane.shape
    for t in range(black.shape[0]):
        top, left = t // across * tile_rows, t % across * 2 * width
        for r in range(0, min(tile_rows, rows - top), 2):
            y = top + r
            inside = min(width, (columns - left) // 2) if y + 1 < rows else 0
            for j in range(inside):
                x = left + 2 * j
                plane[y, x], plane[y, x + 1] = black[t, r, j], white[t, r, j]
                plane[y + 1, x], plane[y + 1, x + 1] = white[t, r + 1, j], black[t, r + 1, j]
            for j in range(inside, width):
                for place in range(4):
                    down, x = r + place // 2, left + 2 * j + place % 2
                    if top + down < rows and x < columns:
                        values = black if place in (0, 3) else white
                        plane[top + down, x] = values[t, down, j]


@compiled
def header_words(
    plane: Int32, fixed: Mask, rows: int, columns: int, bits: int, words: NDArray[np.uint64]
) -> None:
    """Fill `words` ``(down, across)`` with the last bits of each tile's first free white pixels.

    The most significant first, above them a 1; 0 for a tile with fewer than `bits` free pixels.
    """
    for down in range(words.shape[0]):
        for across in range(words.shape[1]):
            top, left = down * rows, across * columns
            word, have = np.uint64(1), 0
            for r in range(top, min(top + rows, plane.shape[0])):
                for c in range(left + 1 - (r - top & 1), min(left + columns, plane.shape[1]), 2):
                    if have < bits and not fixed[r, c]:
                        word = (word << np.uint64(1)) | np.uint64(plane[r, c] & 1)
                        have += 1
                if have == bits:
                    break
            words[down, across] = word if have == bits else np.uint64(0)


@compiled
def take_bits(
    values: Int32, fixed: Mask, which: Int64, counts: Int64, clear: bool, bits: Bytes
) -> None:
    """Read (and clear) the last bits of the first ``counts[i]`` free pixels of each tile."""
    for i in range(which.size):
        t, have = which[i], 0
        for j in range(values.shape[1]):
            if have == counts[i]:
                break
            if not fixed[t, j]:
                bits[i, have] = values[t, j] & 1
                have += 1
                if clear:
                    values[t, j] &= ~1


@compiled
def put_bits(values: Int32, fixed: Mask, which: Int64, counts: Int64, bits: Bytes) -> None:
    """Undo `take_bits`."""
    for i in range(which.size):
        t, have = which[i], 0
        for j in range(values.shape[1]):
            if have == counts[i]:
                break
            if not fixed[t, j]:
                values[t, j] = values[t, j] & ~1 | bits[i, have]
                have += 1


@compiled
def level(magnitude: int) -> int:
    """Return the first index i with ``magnitude < THRESHOLDS[i]`` (beyond the last: what follows).

    The thresholds are the powers of two and their halves between, which a float32 has in its
    exponent and first fraction bit: cheaper than any search.
    """
    bits = (int(np.float32(magnitude).view(np.int32)) >> 22) - 254
    return max(bits, min(magnitude, 1))


@compiled
def _mirror(tile: Int32, number: int, edges: Int64, black: bool) -> None:
    """Refill what lies past the frame's edge, so that edge pixels see only their own frame.

    The first row past the edge repeats the row before the last: same colours, and to the
    predictor it means that the missing neighbour counts as its opposite.
    """
    rows, width = tile.shape
    below, right, down, across = edges[0], edges[1], edges[2], edges[3]
    if below and number >= (down - 1) * across:
        for j in range(width):
            tile[rows - below, j] = tile[rows - below - 2, j]
    if right and number % across == across - 1:
        column = 2 * width - right
        # Rows in which that column is of this colour.
        for r in range(column % 2 if black else 1 - column % 2, rows, 2):
            tile[r, column // 2] = tile[r, column // 2 - 1]


@compiled
def predict(
    other: Int32, fixed: Mask, which: Int64, edges: Int64, of_black: bool, clear: int,
    coarse: Mask, predicted: Int32, classes: Bytes,
) -> None:  # fmt: skip
    """Fill prediction and activity class of one colour's pixels, each ``(tiles, hosts)``.

    Parameters
    ----------
    other, fixed
        The other colour, ``(tiles, tile_rows, w)``.
    edges
        Rows and columns past the frame, tiles down and across.
    clear
        So many of the first free pixels count without their last bits.
    coarse
        ``(which,)``: all pixels count without their last bits.

    At a tile's edge the missing neighbour counts as its opposite: no tile looks into another, so
    damage stays where it is.
    """
    rows, width = other.shape[1:]
    scene, flank = np.empty((rows, width), np.int32), np.empty(width, np.int32)
    for i in range(which.size):
        t, left = which[i], clear
        mask = np.int32(-2 if coarse[i] else -1)
        for r in range(rows):
            for j in range(width):
                scene[r, j] = other[t, r, j] & mask
            if left:
                for j in range(width):
                    if left and not fixed[t, r, j]:
                        scene[r, j] &= ~1
                        left -= 1
        _mirror(scene, t, edges, not of_black)
        for r in range(rows):
            own, above = scene[r], scene[r - 1 if r else 1]
            under = scene[r + 1 if r + 1 < rows else rows - 2]
            # Black starts even rows and so has its left neighbour one place before; white odd ones.
            if (r & 1 == 0) == of_black:
                flank[0] = own[0]
                for j in range(1, width):
                    flank[j] = own[j - 1]
            else:
                for j in range(width - 1):
                    flank[j] = own[j + 1]
                flank[width - 1] = own[width - 1]
            _predict_row(own, flank, above, under, predicted[t, r * width : (r + 1) * width],
                         classes[t, r * width : (r + 1) * width])  # fmt: skip


@compiled
def _predict_row(a: Int32, b: Int32, c: Int32, d: Int32, predicted: Int32, classes: Bytes) -> None:
    for j in range(a.size):
        predicted[j] = (a[j] + b[j] + c[j] + d[j] + 2) >> 2
        spread = max(max(a[j], b[j]), max(c[j], d[j])) - min(min(a[j], b[j]), min(c[j], d[j]))
        classes[j] = min(level(spread), CLASSES - 1)
