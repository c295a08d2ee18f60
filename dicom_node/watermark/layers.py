"""A layer of bits into one colour of some tiles, and out again. Arguments as in `kernels`.

Each tile takes two passes: one lists the pixels that carry a bit, one shifts all others. In one
pass, what a pixel does would be as good as random, and a processor that guesses wrong loses more.
"""

from __future__ import annotations

import numpy as np

from dicom_node.compiled import compiled
from dicom_node.watermark.kernels import BOTH, DOWN, UP, Bytes, Int32, Int64, Mask


@compiled
def cramped(value: int, threshold: int, mode: int, span: Int64) -> bool:
    """Whether a pixel has less room than the threshold in a direction it could go."""
    low, high, hole_low, hole_high = span[0], span[1], span[2], span[3]
    if hole_low <= hole_high:
        if value < hole_low:
            high = hole_low - 1
        if value > hole_high:
            low = hole_high + 1
    return (mode != DOWN and high - value < threshold) or (mode != UP and value - low < threshold)


@compiled
def after(held: Mask, skip: int) -> int:
    """Return the place after the first `skip` free pixels."""
    place = 0
    while skip and place < held.size:
        skip -= not held[place]
        place += 1
    return place


@compiled
def _moving(
    row: Int32, ahead: Int32, busy: Bytes, held: Mask, rule: Int64, span: Int64, skip: int,
    moving: Mask,
) -> None:  # fmt: skip
    """Set `moving` for the pixels of a tile that take part, on a side that the mode moves."""
    threshold, mode, limit, by_value = rule
    for j in range(row.size):
        negative = row[j] < ahead[j] + (mode == DOWN)
        side = (mode == BOTH) | (negative == (mode == DOWN))
        moving[j] = (not held[j]) & (busy[j] <= limit) & side
    if by_value:
        for j in range(row.size):
            moving[j] &= not cramped(row[j], threshold, mode, span)
    moving[: after(held, skip)] = False


@compiled
def _carriers(row: Int32, ahead: Int32, moving: Mask, lower: int, reach: int, places: Int32) -> int:
    """List the moving pixels whose error is in ``-reach..reach - 1``; return how many there are."""
    found = 0
    for j in range(row.size):
        error = row[j] - ahead[j] - lower
        places[found] = j
        found += moving[j] & (error >= -reach) & (error < reach)
    return found


@compiled
def embed_layer(
    values: Int32, predicted: Int32, classes: Bytes, held: Mask, which: Int64, rules: Int64,
    span: Int64, skip: Int64, bits: Bytes, start: Int64, need: Int64,
) -> Int64:  # fmt: skip
    """Embed ``bits[i, start[i] :][: need[i]]`` into each tile, in place; return how many went in.

    Parameters
    ----------
    values
        ``(tiles, hosts)`` of one colour.
    held
        Pixels never changed.
    rules
        ``(which, 4)`` threshold, mode, limit, and whether cramped pixels are left alone.
    span
        As for `outside`.
    skip
        So many of the first free pixels hold parameters.
    """
    found = np.zeros(which.size, np.int64)
    moving = np.empty(values.shape[1], np.bool_)
    places = np.empty(values.shape[1] + 1, np.int32)
    for i in range(which.size):
        if need[i] <= 0:
            continue
        row, ahead = values[which[i]], predicted[which[i]]
        threshold, lower = rules[i, 0], int(rules[i, 1] == DOWN)
        _moving(row, ahead, classes[which[i]], held[which[i]], rules[i], span, skip[i], moving)
        count = _carriers(row, ahead, moving, lower, threshold, places)
        end = row.size if count < need[i] else places[need[i] - 1] + 1
        found[i] = min(count, need[i])
        for j in range(end):
            # One less going down, so that a saturated flat has some errors below 0.
            error = row[j] - ahead[j] - lower
            shifts = moving[j] & ((error < -threshold) | (error >= threshold))
            row[j] += (threshold if error >= 0 else -threshold) * shifts
        for n in range(found[i]):
            j = places[n]
            row[j] += row[j] - ahead[j] - lower + bits[i, start[i] + n]
    return found


@compiled
def extract_layer(
    values: Int32, predicted: Int32, classes: Bytes, held: Mask, which: Int64, rules: Int64,
    span: Int64, skip: Int64, bits: Bytes, start: Int64, need: Int64,
) -> Mask:  # fmt: skip
    """Undo `embed_layer` in place; return which tiles it may have written, others are left."""
    sound = np.zeros(which.size, np.bool_)
    moving = np.empty(values.shape[1], np.bool_)
    places = np.empty(values.shape[1] + 1, np.int32)
    low, high, hole_low, hole_high = span[0], span[1], span[2], span[3]
    for i in range(which.size):
        row, ahead = values[which[i]], predicted[which[i]]
        threshold, mode, by_value = rules[i, 0], rules[i, 1], rules[i, 3]
        lower, wrong = int(mode == DOWN), False
        _moving(row, ahead, classes[which[i]], held[which[i]], rules[i], span, skip[i], moving)
        if need[i] > _carriers(row, ahead, moving, lower, 2 * threshold, places):
            continue
        end = places[need[i] - 1] + 1 if need[i] > 0 else 0
        for n in range(need[i]):
            bits[i, start[i] + n] = (row[places[n]] - ahead[places[n]] - lower) & 1
        for j in range(end):
            error = row[j] - ahead[j] - lower
            carries = (error >= -2 * threshold) & (error < 2 * threshold)
            shift = threshold if error >= 0 else -threshold
            v = row[j] - ((error - (error >> 1)) if carries else shift) * moving[j]
            row[j] = v
            wrong |= moving[j] & ((v < low) | (v > high) | ((v >= hole_low) & (v <= hole_high)))
        if by_value:
            for j in range(end):
                wrong |= moving[j] & cramped(row[j], threshold, mode, span)
        sound[i] = not wrong
    return sound
