"""Choose, per tile, how to embed a stream of given length with the least distortion."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dicom_node.watermark.parameters import (
    ALL,
    BOTH,
    BY_MAP,
    BY_VALUE,
    CLASSES,
    DOWN,
    EXTENSION_BITS,
    HEADER_BITS,
    THRESHOLDS,
    UP,
    Ints,
    Plan,
    clear_head,
    free_white,
    in_region,
    pack_map,
)
from dicom_node.watermark.reversible import Span, embed_layer, level, predict
from dicom_node.watermark.tiles import Lattices

_MODES = (BOTH, UP, DOWN)
_SIDES = {BOTH: [0, 1], UP: [0], DOWN: [1]}
# Streams of so many bits per black pixel, and thresholds from this step on, may do better with both
# colours.
_LONG, _HIGH_STEP = 0.25, 2
_FEW = 0.1
# A second layer's room depends on the bits themselves; this much is kept back.
_SECOND_RESERVE = 1.1
_SECOND_RESERVE_BITS = 24


def _mean_squares() -> NDArray[np.float64]:
    """Mean of (e + bit)**2 for errors that `level` puts in each step, e from 0 up."""
    low = np.array((0, *THRESHOLDS[:-1]), np.float64)
    high = np.array(THRESHOLDS, np.float64) - 1
    return (low * low + low * high + high * high) / 3 + (low + high) / 2 + 0.5


_SQUARES = _mean_squares()


@dataclass
class Survey:
    """What one colour's pixels of some tiles offer, each array ``(tiles, hosts)``.

    Attributes
    ----------
    side, levels
        Sign of the prediction error (1: negative) and `level` of its size.
    free
        Pixels that may be changed; None if all may.
    """

    values: NDArray[np.int32]
    predicted: NDArray[np.int32]
    classes: NDArray[np.int32]
    side: NDArray[np.int32]
    levels: NDArray[np.int32]
    free: NDArray[np.bool_] | None

    @classmethod
    def of(
        cls, values: NDArray[np.int32], predicted: NDArray[np.int32], classes: NDArray[np.int32],
        free: NDArray[np.bool_] | None,
    ) -> Survey:  # fmt: skip
        """Return the survey of `values` under one prediction."""
        magnitude = values - predicted
        side = magnitude >> 31
        magnitude ^= side
        np.negative(side, out=side)
        return cls(values, predicted, classes, side, level(magnitude), free)

    def for_mode(self, mode: int) -> Survey:
        """Return the survey with the prediction that `mode` uses."""
        if mode != DOWN:
            return self
        return Survey.of(self.values, self.predicted + 1, self.classes, self.free)

    def subset(self, chosen: NDArray[np.intp]) -> Survey:
        """Return the rows of the `chosen` tiles."""
        free = None if self.free is None else self.free[chosen]
        return Survey(self.values[chosen], self.predicted[chosen], self.classes[chosen],
                      self.side[chosen], self.levels[chosen], free)  # fmt: skip


def survey(parts: Lattices, *, coarse: bool) -> Survey:
    """Predict black from white as `embed_tiles` will; `coarse`: as with a map or a second layer."""
    white = parts.white & np.int32(-2) if coarse else clear_head(parts, HEADER_BITS)
    scene = Lattices(parts.grid, parts.black, white, tiles=parts.tiles)
    scene.mirror_edges(black=False)
    predicted, classes = predict(white, of_black=True)
    if not coarse:
        parts.forecast = (predicted, classes)
    free = None if parts.fixed_black is None else ~parts.fixed_black.reshape(parts.count, -1)
    return Survey.of(parts.black.reshape(parts.count, -1), predicted, classes, free)


def _room(
    values: NDArray[np.int32], free: NDArray[np.bool_] | None, span: Span
) -> tuple[Ints, Ints]:
    """Return how far all free pixels of each tile may rise, and fall."""
    far = np.int32(1 << 30)
    highest = (values if free is None else np.where(free, values, -far)).max(axis=1)
    lowest = (values if free is None else np.where(free, values, far)).min(axis=1)
    if not span.has_hole or int(lowest.min()) > span.hole_high:
        # The usual padding lies below all else: it is where the range ends.
        floor = max(span.low, span.hole_high + 1) if span.has_hole else span.low
        none = lowest == far
        up, down = np.int64(span.high) - highest, lowest - np.int64(floor)
        return np.where(none, far, up), np.where(none, far, down)
    up, down = span.room_up(values), span.room_down(values)
    if free is not None:
        up, down = np.where(free, up, far), np.where(free, down, far)
    return up.min(axis=1).astype(np.int64), down.min(axis=1).astype(np.int64)


def _counts(seen: Survey, steps: int) -> NDArray[np.int64]:
    """Return the histogram ``(tiles, classes, side, steps + 1)``, cumulated over the classes."""
    tiles = seen.values.shape[0]
    bins = steps + 1
    cell = np.minimum(seen.levels, steps)
    cell += (seen.classes * 2 + seen.side) * bins
    cell += (np.arange(tiles, dtype=np.int32) * (CLASSES * 2 * bins))[:, None]
    flat = cell.reshape(-1) if seen.free is None else cell[seen.free]
    table = np.bincount(flat, minlength=tiles * CLASSES * 2 * bins)
    return table.reshape(tiles, CLASSES, 2, bins).cumsum(axis=1)


def choose(
    parts: Lattices, span: Span, stream_bits: int, steps: int, *, thorough: bool = True
) -> tuple[Plan, NDArray[np.bool_]]:
    """Plan `stream_bits` (digest and share) into every tile.

    Parameters
    ----------
    steps
        Only the first `steps` of `THRESHOLDS` may be used: bounds the largest change.
    thorough
        False: a few tiles that do not fit the quick way are not worth the others.

    Returns
    -------
    tuple
        Plan (only the embedding part is filled in), and which tiles can hold that many bits.
    """
    plan = Plan.blank(parts.count)
    if parts.white[0].size < HEADER_BITS:
        return plan, np.zeros(parts.count, np.bool_)
    seen = survey(parts, coarse=False)
    up, down = _room(seen.values, seen.free, span)
    need = stream_bits + HEADER_BITS
    possible = free_white(parts) >= HEADER_BITS
    rooms = {BOTH: np.minimum(up, down), UP: up}
    done = possible & _choose_all(seen, plan, need, steps, rooms)
    rest = np.flatnonzero(possible & ~done)
    if rest.size:
        # Down has a prediction of its own; it is for tiles at the top of the range.
        its, lower = Plan.blank(rest.size), seen.subset(rest).for_mode(DOWN)
        fits = _choose_all(lower, its, need, steps, {DOWN: down[rest]})
        plan.put(rest[fits], its.subset(np.flatnonzero(fits)))
        done[rest[fits]] = True
    _improve(parts, span, plan, np.flatnonzero(done), stream_bits)
    if not thorough and (possible & ~done).sum() <= _FEW * parts.count:
        return plan, done
    # Where every pixel has room for every threshold, leaving some alone cannot help.
    tight = np.minimum(up, down) < THRESHOLDS[steps - 1]
    for attempt in (_choose_by_value, _choose_second, _choose_by_map):
        left = possible & ~done if attempt is _choose_second else possible & ~done & tight
        rest = np.flatnonzero(left)
        if not rest.size:
            continue
        some, its = parts.subset(rest), Plan.blank(rest.size)
        fits = attempt(some, span, its, stream_bits, steps)
        plan.put(rest[fits], its.subset(np.flatnonzero(fits)))
        done[rest[fits]] = True
    return plan, done


def _choose_all(
    seen: Survey, plan: Plan, need: int, steps: int, rooms: dict[int, Ints]
) -> NDArray[np.bool_]:
    """Every host has room: the usual case, decided for all tiles at once from one histogram."""
    # One product with two triangles turns the histogram into bits and harm for every threshold.
    offer = _counts(seen, steps).astype(np.float32) @ _weights(steps)
    carriers, harm = offer[..., :steps], offer[..., steps:]
    thresholds = np.array(THRESHOLDS[:steps])
    best = np.full(plan.threshold.size, np.inf, np.float32)
    rows = np.arange(best.size)
    for mode, room in rooms.items():
        sides = _SIDES[mode]
        bits = carriers[:, :, sides].sum(axis=2)
        cost = harm[:, :, sides].sum(axis=2) * (need / np.maximum(bits, 1))
        cost[(bits < need) | (thresholds > room[:, None, None])] = np.inf
        flat = cost.reshape(best.size, -1)
        place = flat.argmin(axis=1)
        value = flat[rows, place]
        better = value < best
        best[better] = value[better]
        plan.mode[better] = mode
        plan.limit[better] = (place // steps)[better]
        plan.threshold[better] = (place % steps)[better]
    return np.isfinite(best)


@lru_cache(maxsize=32)
def _weights(steps: int) -> NDArray[np.float32]:
    """Return ``(steps + 1, 2 * steps)``: what a level counts as carriers, and as squared change."""
    index = np.arange(steps + 1)[:, None]
    within = index <= np.arange(steps)[None, :]
    squares = np.append(_SQUARES[:steps], 0.0)[:, None]
    shifted = np.array(THRESHOLDS[:steps], np.float64)[None, :] ** 2
    return np.concatenate([within, np.where(within, squares, shifted)], axis=1).astype(np.float32)


def _improve(
    parts: Lattices, span: Span, plan: Plan, chosen: NDArray[np.intp], stream_bits: int
) -> None:
    """Take both colours at a low threshold where black alone needs a high one for a long stream."""
    if stream_bits < _LONG * parts.black[0].size:
        return
    crowded = chosen[plan.threshold[chosen] >= _HIGH_STEP]
    if not crowded.size:
        return
    # Twice the pixels at under 7/10 of the threshold change less in the mean square.
    for step in np.unique(plan.threshold[crowded]):
        some = crowded[plan.threshold[crowded] == step]
        most = int(np.searchsorted(THRESHOLDS, 0.6 * THRESHOLDS[step], side="right"))
        its = Plan.blank(some.size)
        fits = _choose_second(parts.subset(some), span, its, stream_bits, most)
        plan.put(some[fits], its.subset(np.flatnonzero(fits)))


def _choose_by_value(
    parts: Lattices, span: Span, plan: Plan, stream_bits: int, steps: int
) -> NDArray[np.bool_]:
    """Saturated pixels stay; nothing that moves may come so near the end as to look like them."""
    plain = survey(parts, coarse=False)
    seen = {mode: plain.for_mode(mode) for mode in _MODES}
    need = stream_bits + HEADER_BITS
    done = np.zeros(parts.count, np.bool_)
    plan.spared[:] = BY_VALUE
    for step in range(steps):
        for mode in _MODES:
            rest = np.flatnonzero(~done)
            if not rest.size:
                return done
            limit, fits = _limit_by_value(seen[mode].subset(rest), span, step, mode, need)
            chosen = rest[fits]
            plan.threshold[chosen], plan.mode[chosen] = step, mode
            plan.limit[chosen] = limit[fits]
            done[chosen] = True
    return done


def _limit_by_value(
    seen: Survey, span: Span, step: int, mode: int, need: int
) -> tuple[Ints, NDArray[np.bool_]]:
    t = THRESHOLDS[step]
    tiles = seen.values.shape[0]
    cramped = np.zeros(seen.values.shape, np.bool_)
    landing = np.zeros(seen.values.shape, np.bool_)
    sided = np.ones(seen.values.shape, np.bool_)
    if mode != DOWN:
        room = span.room_up(seen.values)
        cramped |= room < t
        landing |= (room < 2 * t) & (seen.side == 0)
    if mode != UP:
        room = span.room_down(seen.values)
        cramped |= room < t
        landing |= (room < 2 * t) & (seen.side == 1)
    if mode != BOTH:
        sided = seen.side == (0 if mode == UP else 1)
    usable = ~cramped if seen.free is None else ~cramped & seen.free
    highest = np.where(landing & usable, seen.classes, CLASSES).min(axis=1) - 1
    carriers = usable & sided & (seen.levels <= step)
    cell = seen.classes + (np.arange(tiles, dtype=np.int32) * CLASSES)[:, None]
    table = np.bincount(cell[carriers], minlength=tiles * CLASSES).reshape(tiles, CLASSES)
    enough = table.cumsum(axis=1) >= need
    enough &= np.arange(CLASSES)[None, :] <= highest[:, None]
    return enough.argmax(axis=1).astype(np.int64), np.asarray(enough.any(axis=1))


def _choose_second(
    parts: Lattices, span: Span, plan: Plan, stream_bits: int, steps: int
) -> NDArray[np.bool_]:
    """Use the white pixels, too: for tiles where black alone is too small."""
    seen = survey(parts, coarse=True)
    black_up, black_down = _room(seen.values, seen.free, span)
    free = None if parts.fixed_white is None else ~parts.fixed_white.reshape(parts.count, -1)
    white = parts.white.reshape(parts.count, -1)
    white_up, white_down = _room(white, free, span)
    up, down = np.minimum(black_up, white_up), np.minimum(black_down, white_down)
    need = stream_bits + HEADER_BITS + EXTENSION_BITS
    carriers = {
        mode: _counts(seen.for_mode(mode), steps)[:, -1, _SIDES[mode], :steps].sum(axis=1)
        for mode in _MODES
    }
    done = np.zeros(parts.count, np.bool_)
    enough = free_white(parts) >= HEADER_BITS + EXTENSION_BITS
    t = np.array(THRESHOLDS[:steps])[None, :]
    # One mode a tile: both sides where there is room for both.
    rises, falls = up[:, None] >= t, down[:, None] >= t
    modes = np.where(rises & falls, BOTH, np.where(rises, UP, np.where(falls, DOWN, -1)))
    offers = {mode: carriers[mode].cumsum(axis=1) for mode in _MODES}
    # White offers about what black does; only then is it worth trying.
    worth = {
        mode: (modes == mode) & (offers[mode] >= 0.48 * need) & enough[:, None] for mode in _MODES
    }
    for step in range(steps):
        for mode in _MODES:
            rest = np.flatnonzero(worth[mode][:, step] & ~done)
            if not rest.size:
                continue
            first = offers[mode][rest, step]
            second = np.maximum(need - first, 0)
            its = Plan.blank(rest.size)
            its.threshold[:], its.mode[:], its.limit[:] = step, mode, CLASSES - 1
            its.layers[:], its.second_bits[:] = 1, second
            offered = _second_capacity(parts.subset(rest), its, first)
            fits = offered >= second * _SECOND_RESERVE + _SECOND_RESERVE_BITS
            plan.put(rest[fits], its.subset(np.flatnonzero(fits)))
            done[rest[fits]] = True
        if done.all():
            break
    return done


def _second_capacity(parts: Lattices, plan: Plan, first: Ints) -> Ints:
    """Return the carriers white would offer after black took random bits."""
    bits = np.random.default_rng(0).integers(0, 2, (parts.count, int(first.max())), dtype=np.uint8)
    predicted, classes = predict(parts.white & np.int32(-2), of_black=True)
    black = parts.black.reshape(parts.count, -1)
    hosts = np.ones(black.shape, np.bool_)
    if parts.fixed_black is not None:
        hosts &= ~parts.fixed_black.reshape(parts.count, -1)
    embed_layer(black, predicted, hosts, plan, bits, first)
    parts.mirror_edges(black=True)
    predicted, classes = predict(parts.black, of_black=False)
    fixed = in_region(parts, plan)
    if parts.fixed_white is not None:
        fixed |= parts.fixed_white.reshape(parts.count, -1)
    white = parts.white.reshape(parts.count, -1)
    offered = np.zeros(parts.count, np.int64)
    for mode in np.unique(plan.mode):
        seen = Survey.of(white, predicted, classes, None).for_mode(int(mode))
        ok = (seen.levels <= plan.threshold[:, None]) & ~fixed
        if mode != BOTH:
            ok &= seen.side == (0 if mode == UP else 1)
        offered = np.where(plan.mode == mode, ok.sum(axis=1), offered)
    return offered


def _choose_by_map(
    parts: Lattices, span: Span, plan: Plan, stream_bits: int, steps: int
) -> NDArray[np.bool_]:
    """Leave cramped pixels alone by a compressed map that goes with the parameters: last of all."""
    plain = survey(parts, coarse=True)
    by_mode = {mode: plain.for_mode(mode) for mode in _MODES}
    room_up, room_down = span.room_up(plain.values), span.room_down(plain.values)
    white = free_white(parts)
    done = np.zeros(parts.count, np.bool_)
    for step, t in enumerate(THRESHOLDS[:steps]):
        for mode in _MODES:
            seen = by_mode[mode]
            cramped = np.zeros(seen.values.shape, np.bool_)
            if mode != DOWN:
                cramped |= room_up < t
            if mode != UP:
                cramped |= room_down < t
            carriers = ~cramped & (seen.levels <= step)
            if mode != BOTH:
                carriers &= seen.side == (0 if mode == UP else 1)
            if seen.free is not None:
                carriers &= seen.free
                cramped &= seen.free
            bits = carriers.sum(axis=1)
            need = stream_bits + HEADER_BITS + EXTENSION_BITS
            for tile in np.flatnonzero(~done & (bits > need)):
                packed = pack_map(cramped[tile])
                length = 8 * len(packed)
                if bits[tile] < need + length or white[tile] < need - stream_bits + length:
                    continue
                plan.threshold[tile], plan.mode[tile] = step, mode
                plan.limit[tile], plan.spared[tile] = CLASSES - 1, BY_MAP
                plan.maps[int(tile)] = packed
                done[tile] = True
    return done


class Capacity(NamedTuple):
    """What one threshold offers on one frame: bits, and the root mean square change they cost."""

    bits: int
    rmse: float


def measure(parts: Lattices, span: Span, step: int) -> Capacity:
    """Fill black and white of all tiles with random bits at ``THRESHOLDS[step]``."""
    rng = np.random.default_rng(0)
    plan = Plan.blank(parts.count)
    plan.threshold[:], plan.limit[:], plan.spared[:] = step, CLASSES - 1, ALL
    total, squares = 0, 0.0
    for of_black in (True, False):
        other = parts.white if of_black else parts.black
        parts.mirror_edges(black=not of_black)
        values = (parts.black if of_black else parts.white).reshape(parts.count, -1)
        fixed = parts.fixed_black if of_black else parts.fixed_white
        free = None if fixed is None else ~fixed.reshape(values.shape)
        predicted, classes = predict(other, of_black=of_black)
        seen = Survey.of(values, predicted, classes, free)
        t = THRESHOLDS[step]
        hosts = (span.room_up(values) >= t) & (span.room_down(values) >= t)
        if seen.free is not None:
            hosts &= seen.free
        need = (hosts & (seen.levels <= step)).sum(axis=1)
        bits = rng.integers(0, 2, (parts.count, int(need.max(initial=0))), dtype=np.uint8)
        before = values.copy()
        embed_layer(values, predicted, hosts, plan, bits, need)
        total += int(need.sum())
        squares += float(((values - before).astype(np.float64) ** 2).sum())
    pixels = parts.grid.rows * parts.grid.columns
    return Capacity(total, float(np.sqrt(squares / pixels)))
