"""The loops of planning: what each tile offers, and at what change. Arguments as in `kernels`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dicom_node.compiled import compiled
from dicom_node.watermark.kernels import (
    BOTH,
    CLASSES,
    DOWN,
    UP,
    Bytes,
    Int32,
    Int64,
    Mask,
    level,
)
from dicom_node.watermark.layers import after, cramped
from dicom_node.watermark.parameters import THRESHOLDS

STEPS = len(THRESHOLDS)
_T = np.array(THRESHOLDS, np.int64)
# Room of a tile without a pixel that could move.
FAR = 1 << 30


def _mean_squares() -> Int64:
    """Six times the mean of (e + bit)**2 for errors that `level` puts in each step, e from 0 up."""
    low, high = np.append(0, _T[:-1]), _T - 1
    return np.asarray(2 * (low * low + low * high + high * high) + 3 * (low + high) + 3)


_SQUARES = _mean_squares()


@compiled
def count(
    values: Int32, predicted: Int32, classes: Bytes, held: Mask, which: Int64, lower: int,
    counts: Int32,
) -> None:  # fmt: skip
    """Fill the histogram ``counts[t]`` (class, sign of the error, level) for some tiles.

    `lower` is 1 to count errors one less, as going down sees them.
    """
    for t in which:
        counts[t] = 0
        for j in range(values.shape[1]):
            if not held[t, j]:
                error = values[t, j] - predicted[t, j] - lower
                negative = error < 0
                step = min(level(~error if negative else error), STEPS)
                counts[t, classes[t, j], int(negative), step] += 1


@compiled
def offers(values: Int32, predicted: Int32, held: Mask, which: Int64, out: Int64) -> None:
    """Fill how many pixels carry a bit in each mode at each step, ``(which, 3, STEPS)``."""
    for i in range(which.size):
        t = which[i]
        out[i] = 0
        for j in range(values.shape[1]):
            if held[t, j]:
                continue
            error = values[t, j] - predicted[t, j]
            step = level(~error if error < 0 else error)
            if step < STEPS:
                out[i, BOTH, step] += 1
                out[i, UP, step] += error >= 0
            if error <= 0 and level(-error) < STEPS:
                out[i, DOWN, level(-error)] += 1
        for step in range(1, STEPS):
            for mode in (BOTH, UP, DOWN):
                out[i, mode, step] += out[i, mode, step - 1]


@compiled
def rooms(values: Int32, held: Mask, which: Int64, span: Int64, up: Int64, down: Int64) -> None:
    """Fill how far all free pixels of each tile may rise, and fall; `FAR` where none is free."""
    low, high, hole_low, hole_high = span[0], span[1], span[2], span[3]
    hole = hole_low <= hole_high
    floor = max(low, hole_high + 1) if hole else low
    for t in which:
        rise = fall = FAR
        for j in range(values.shape[1]):
            if not held[t, j]:
                v = values[t, j]
                below = hole and v < hole_low
                rise = min(rise, (hole_low - 1 if below else high) - v)
                fall = min(fall, v - (low if below else floor))
        up[t], down[t] = rise, fall


@compiled
def pick(
    counts: Int32, which: Int64, need: int, steps: int, mode: int, room: Int64,
    best: NDArray[np.float32], chosen: Int64,
) -> None:  # fmt: skip
    """Choose class limit and threshold that hold `need` bits at the least squared change.

    Parameters
    ----------
    room
        ``(which,)``: thresholds above it are out of the question.
    best, chosen
        ``(which,)`` the least change so far, ``(which, 3)`` mode, limit and threshold it comes
        from; replaced where `mode` can do better.
    """
    for i in range(which.size):
        levels = np.zeros(STEPS + 1, np.int64)
        hosts = 0
        for limit in range(CLASSES):
            before = hosts
            for step in range(STEPS + 1):
                more = 0
                if mode != DOWN:
                    more += counts[which[i], limit, 0, step]
                if mode != UP:
                    more += counts[which[i], limit, 1, step]
                levels[step] += more
                hosts += more
            if hosts == before:
                continue
            carriers = squares = 0
            for step in range(steps):
                if _T[step] > room[i]:
                    break
                carriers += levels[step]
                squares += levels[step] * _SQUARES[step]
                if carriers < need:
                    continue
                harm = squares + 6 * (hosts - carriers) * _T[step] * _T[step]
                # Single precision, so that what is as good as equal stays with the first.
                cost = np.float32(harm / 6.0) * (np.float32(need) / np.float32(carriers))
                if cost < best[i]:
                    best[i] = cost
                    chosen[i, 0], chosen[i, 1], chosen[i, 2] = mode, limit, step


@compiled
def carriers(
    values: Int32, predicted: Int32, held: Mask, which: Int64, rules: Int64, span: Int64,
    skip: Int64,
) -> Int64:  # fmt: skip
    """Return how many bits `embed_layer` could embed without a class limit."""
    found = np.zeros(which.size, np.int64)
    for i in range(which.size):
        t, (threshold, mode, _, by_value) = which[i], rules[i]
        low = 0 if mode == UP else -threshold
        high = 0 if mode == DOWN else threshold
        total = 0
        for j in range(after(held[t], skip[i]), values.shape[1]):
            error = values[t, j] - predicted[t, j] - (mode == DOWN)
            fits = (not held[t, j]) & (error >= low) & (error < high)
            if by_value:
                fits &= not cramped(values[t, j], threshold, mode, span)
            total += fits
        found[i] = total
    return found


@compiled
def cramped_pixels(
    values: Int32, held: Mask, which: Int64, threshold: int, mode: int, span: Int64, out: Mask
) -> None:
    """Set ``out[i]`` where a free pixel has less room than `threshold` in a direction of `mode`."""
    for i in range(which.size):
        for j in range(values.shape[1]):
            t = which[i]
            out[i, j] = not held[t, j] and cramped(values[t, j], threshold, mode, span)


@compiled
def pick_by_value(
    values: Int32, predicted: Int32, classes: Bytes, held: Mask, which: Int64, need: int,
    steps: int, span: Int64, chosen: Int64,
) -> Mask:  # fmt: skip
    """Choose as `pick` does where saturated pixels stay, the lowest threshold that will do.

    Nothing that moves may come so near the end of the range as to look like those that stay.
    """
    done = np.zeros(which.size, np.bool_)
    for i in range(which.size):
        for place in range(3 * steps):
            step, mode = place // 3, place % 3
            limit = _limit_by_value(values[which[i]], predicted[which[i]], classes[which[i]],
                                    held[which[i]], need, _T[step], mode, span)  # fmt: skip
            if limit >= 0:
                chosen[i, 0], chosen[i, 1], chosen[i, 2] = mode, limit, step
                done[i] = True
                break
    return done


@compiled
def _limit_by_value(
    values: Int32, predicted: Int32, classes: Bytes, held: Mask, need: int, threshold: int,
    mode: int, span: Int64,
) -> int:  # fmt: skip
    """Return the lowest class limit that holds `need` bits; -1 if there is none."""
    table = np.zeros(CLASSES, np.int64)
    highest = CLASSES
    for j in range(values.size):
        v = values[j]
        if held[j] or cramped(v, threshold, mode, span):
            continue
        error = v - predicted[j] - (mode == DOWN)
        side = DOWN if error < 0 else UP
        if mode not in (BOTH, side):
            continue
        if cramped(v, 2 * threshold, side, span):
            highest = min(highest, classes[j])
        if -threshold <= error < threshold:
            table[classes[j]] += 1
    total = 0
    for limit in range(highest):
        total += table[limit]
        if total >= need:
            return limit
    return -1
