"""Reversible embedding in tiles: prediction-error expansion on a checkerboard.

Black pixels are predicted from their four white neighbours, ``(l + r + u + d + 2) >> 2``. With
threshold T, an error e in [-T, T) becomes ``2 e + bit`` and any other error moves T outwards, so
the decoder can tell them apart; both are undone exactly. Pixels in busy surroundings (a limit per
tile) are left alone, and the stream stops where its last bit went in. Where black is too small,
white follows, predicted from the changed black.

What a tile needs to be read stands in the least significant bits of its first free white pixels;
the bits that stood there are the head of the embedded stream. Pixels *fixed* from the start
(padding, values out of range) are never changed, and nothing ever becomes one: for every other
pixel, the value with its last bit flipped is allowed, too.

References
----------
Thodi and Rodriguez, "Expansion embedding techniques for reversible watermarking",
IEEE Trans. Image Processing 16(3), 2007.

Sachnev et al., "Reversible watermarking algorithm using sorting and prediction",
IEEE Trans. Circuits and Systems for Video Technology 19(7), 2009.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicom_node.watermark.parameters import (
    BOTH,
    BY_MAP,
    BY_VALUE,
    CLASSES,
    DOWN,
    UP,
    Bits,
    Ints,
    Plan,
    T,
    clear_region,
    fill_region,
    header_bits,
    in_region,
    unpack_map,
)
from dicom_node.watermark.tiles import Lattices, beside, between


@dataclass(frozen=True)
class Span:
    """Values pixels may take, ``low..high``, less the hole ``hole_low..hole_high`` (if any)."""

    low: int
    high: int
    hole_low: int = 1
    hole_high: int = 0

    @property
    def has_hole(self) -> bool:
        """Whether some values inside are taken by padding."""
        return self.hole_low <= self.hole_high

    def room_up(self, values: NDArray[np.int32]) -> NDArray[np.int32]:
        """How far every pixel may rise."""
        if not self.has_hole:
            return np.int32(self.high) - values
        top = np.where(values < self.hole_low, np.int32(self.hole_low - 1), np.int32(self.high))
        return top - values

    def room_down(self, values: NDArray[np.int32]) -> NDArray[np.int32]:
        """How far every pixel may fall."""
        if not self.has_hole:
            return values - np.int32(self.low)
        floor = np.where(values > self.hole_high, np.int32(self.hole_high + 1), np.int32(self.low))
        return values - floor

    def outside(self, values: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which pixels are out of range or in the hole."""
        if values.size and int(values.min()) >= self.low and int(values.max()) <= self.high:
            out = np.zeros(values.shape, np.bool_) if not self.has_hole else None
        else:
            out = (values < self.low) | (values > self.high)
        if self.has_hole:
            hole = between(values, self.hole_low, self.hole_high)
            out = hole if out is None else out | hole
        return np.asarray(out)


def level(magnitude: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the first index i with ``magnitude < THRESHOLDS[i]`` (beyond the last: what follows).

    The thresholds are the powers of two and their halves between, which a float32 has in its
    exponent and first fraction bit: cheaper than any search.
    """
    bits = magnitude.astype(np.float32).view(np.int32)
    np.right_shift(bits, 22, out=bits)
    np.subtract(bits, 254, out=bits)
    return np.maximum(bits, np.minimum(magnitude, 1), out=bits)


def predict(
    other: NDArray[np.int32], *, of_black: bool
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return prediction and activity class of one colour's pixels, each ``(tiles, hosts)``."""
    second = beside(other, of_black=of_black)
    highest, lowest = np.maximum(other, second), np.minimum(other, second)
    second += other
    upper, lower = other[:, :-1], other[:, 1:]
    for extreme, pick in ((highest, np.maximum), (lowest, np.minimum)):
        pick(extreme[:, 1:], upper, out=extreme[:, 1:])
        pick(extreme[:, :-1], lower, out=extreme[:, :-1])
    highest -= lowest
    second[:, 1:] += upper
    second[:, :-1] += lower
    # At the upper and lower edge the one vertical neighbour counts twice.
    second[:, 0] += other[:, 1]
    second[:, -1] += other[:, -2]
    second += 2
    second >>= 2
    classes = level(highest)
    np.minimum(classes, CLASSES - 1, out=classes)
    count = other.shape[0]
    return second.reshape(count, -1), classes.reshape(count, -1)


def _is_coarse(plan: Plan) -> NDArray[np.bool_]:
    return np.asarray((plan.layers == 1) | (plan.spared == BY_MAP))


def _coarse(white: NDArray[np.int32], plan: Plan) -> NDArray[np.int32]:
    """Return what black is predicted from: without last bits where any of them may change."""
    coarse = _is_coarse(plan)
    if not coarse.any():
        return white
    mask = np.where(coarse, np.int32(-2), np.int32(-1))
    return white & mask[:, None, None]


def _hosts(
    parts: Lattices, plan: Plan, classes: NDArray[np.int32], values: NDArray[np.int32], span: Span
) -> NDArray[np.bool_]:
    """Return the black pixels that take part; the same before and after embedding."""
    hosts = classes <= plan.limit[:, None].astype(np.int32)
    if parts.fixed_black is not None:
        hosts &= ~parts.fixed_black.reshape(parts.count, -1)
    by_value = np.flatnonzero(plan.spared == BY_VALUE)
    if by_value.size:
        hosts[by_value] &= ~_cramped(values[by_value], plan.subset(by_value), span)
    for tile, packed in plan.maps.items():
        spared = unpack_map(packed, hosts.shape[1])
        if spared is not None:
            hosts[tile] &= ~spared
    return hosts


def _cramped(values: NDArray[np.int32], plan: Plan, span: Span) -> NDArray[np.bool_]:
    """Return which pixels have less room than the threshold in a direction they could go."""
    t = T[plan.threshold].astype(np.int32)[:, None]
    above = (span.room_up(values) < t) & (plan.mode != DOWN)[:, None]
    below = (span.room_down(values) < t) & (plan.mode != UP)[:, None]
    return np.asarray(above | below)


def _touched(hosts: NDArray[np.bool_], error: NDArray[np.int32], plan: Plan) -> NDArray[np.bool_]:
    """Return hosts on a side of the histogram that the mode moves."""
    if (plan.mode == BOTH).all():
        return hosts
    allowed = (error >= 0) & (plan.mode != DOWN)[:, None]
    allowed |= (error < 0) & (plan.mode != UP)[:, None]
    allowed &= hosts
    return np.asarray(allowed)


def _errors(
    values: NDArray[np.int32], predicted: NDArray[np.int32], plan: Plan
) -> NDArray[np.int32]:
    """Return the prediction errors; one less going down, so that a saturated flat has some < 0."""
    error = values - predicted
    down = plan.mode == DOWN
    if down.any():
        error -= down.astype(np.int32)[:, None]
    return error


def _reach(carriers: NDArray[np.bool_], need: Ints) -> tuple[Ints, Ints]:
    """Return how many of the needed carriers there are, and where the last of them stands.

    The place is -1 where none is needed, and the row's last pixel where there are too few.
    """
    places = np.flatnonzero(carriers)
    rows, width = carriers.shape
    edges = np.searchsorted(places, np.arange(rows + 1) * width)
    count = edges[1:] - edges[:-1]
    last = np.minimum(edges[:-1] + need, places.size) - 1
    reach = places[last] - np.arange(rows) * width if places.size else np.zeros(rows, np.int64)
    reach = np.where(need > count, width - 1, reach)
    return np.minimum(count, need), np.where(need <= 0, -1, reach)


def _part(
    error: NDArray[np.int32], hosts: NDArray[np.bool_], plan: Plan, need: Ints, low: int
) -> tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.bool_], Ints]:
    """Cut to what the streams reach; return thresholds, carriers, moved pixels, counts.

    `low` is how many thresholds wide the carrying errors are on each side: 1 before embedding, 2
    after.
    """
    t = T[plan.threshold].astype(np.int32)[:, None]
    touched = _touched(hosts, error, plan)
    carriers = error < low * t
    carriers &= error >= -low * t
    carriers &= touched
    count, reach = _reach(carriers, need)
    width = int(reach.max(initial=-1)) + 1
    within = np.arange(width) <= reach[:, None]
    return t, carriers[:, :width] & within, touched[:, :width] & within, count


def embed_layer(
    values: NDArray[np.int32], predicted: NDArray[np.int32], hosts: NDArray[np.bool_],
    plan: Plan, bits: NDArray[np.uint8], need: Ints,
) -> NDArray[np.bool_]:  # fmt: skip
    """Embed ``bits[i, :need[i]]`` into row i of `values`, in place; return which rows held all."""
    error = _errors(values, predicted, plan)
    t, carriers, moved, count = _part(error, hosts, plan, need, 1)
    width = moved.shape[1]
    move = (error[:, :width] >> 31) | 1
    move *= t
    move *= moved
    index = np.arange(bits.shape[1])[None, :]
    move[carriers] = error[:, :width][carriers] + bits[index < count[:, None]]
    values[:, :width] += move
    return np.asarray(count == need)


def _extract_layer(
    values: NDArray[np.int32], predicted: NDArray[np.int32], hosts: NDArray[np.bool_],
    plan: Plan, need: Ints,
) -> tuple[NDArray[np.uint8], Ints, NDArray[np.bool_]]:  # fmt: skip
    """Undo `embed_layer` in place; return the bits, how many there were, and the pixels undone."""
    error = _errors(values, predicted, plan)
    t, carriers, moved, count = _part(error, hosts, plan, need, 2)
    width = moved.shape[1]
    held = error[:, :width][carriers]
    bits = np.zeros((values.shape[0], int(need.max(initial=0))), np.uint8)
    bits[np.arange(bits.shape[1])[None, :] < count[:, None]] = held & 1
    move = (error[:, :width] >> 31) | 1
    move *= t
    move *= moved
    move[carriers] = held - (held >> 1)
    values[:, :width] -= move
    return bits, count, moved


def embed_tiles(
    parts: Lattices, span: Span, plan: Plan, streams: NDArray[np.uint8]
) -> NDArray[np.bool_]:
    """Embed one stream per tile, in place; return which tiles held all of theirs.

    Parameters
    ----------
    parts
        The tiles that carry something; all of them fit their stream by `plan`.
    streams
        ``(tiles, bits)`` of 0/1, equal lengths as far as ``share_bytes`` and ``kind`` are equal;
        rows that need less are padded and cut by `stream_bits`.

    Only a second layer can turn out too small: how much it holds depends on the bits of the first.
    """
    old = clear_region(parts, plan)
    parts.mirror_edges(black=False)
    lengths = stream_bits(plan)
    total = lengths + np.array([b.size for b in old])
    table = np.zeros((parts.count, int(total.max())), np.uint8)
    for i, head in enumerate(old):
        table[i, : head.size] = head
        table[i, head.size : total[i]] = streams[i, : lengths[i]]
    black = parts.black.reshape(parts.count, -1)
    if parts.forecast is not None and not _is_coarse(plan).any():
        predicted, classes = parts.forecast
    else:
        predicted, classes = predict(_coarse(parts.white, plan), of_black=True)
    first = total - plan.second_bits
    hosts = _hosts(parts, plan, classes, black, span)
    held = embed_layer(black, predicted, hosts, plan, table, first)
    two = np.flatnonzero(plan.layers == 1)
    if two.size:
        held[two] &= _embed_white(parts, plan, two, table, first)
    fill_region(parts, header_bits(plan))
    return held


def _embed_white(
    parts: Lattices, plan: Plan, two: NDArray[np.intp], table: Bits, first: Ints
) -> NDArray[np.bool_]:
    some, its = parts.subset(two), plan.subset(two)
    some.mirror_edges(black=True)
    predicted, hosts = _white_hosts(some, its)
    rest = np.zeros((two.size, int(its.second_bits.max())), np.uint8)
    for i, tile in enumerate(two):
        n = int(its.second_bits[i])
        rest[i, :n] = table[tile, first[tile] : first[tile] + n]
    white = some.white.reshape(two.size, -1)
    held = embed_layer(white, predicted, hosts, its, rest, its.second_bits)
    parts.white[two] = some.white
    return held


def _white_hosts(parts: Lattices, plan: Plan) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    predicted, classes = predict(parts.black, of_black=False)
    hosts = classes <= plan.limit[:, None].astype(np.int32)
    hosts &= ~in_region(parts, plan)
    if parts.fixed_white is not None:
        hosts &= ~parts.fixed_white.reshape(parts.count, -1)
    return predicted, hosts


def stream_bits(plan: Plan) -> Ints:
    """Return the bits each tile carries beside the head: digest (compact: 128 bits) and share."""
    return np.where(plan.kind == 2, 128, 64) + 8 * plan.share_bytes


def extract_tiles(
    parts: Lattices, span: Span, plan: Plan
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Undo `embed_tiles` in place.

    Parameters
    ----------
    parts
        The tiles to read; changed into what they were before embedding.
    plan
        From `read_headers`.

    Returns
    -------
    tuple
        Streams ``(tiles, bits)``, and which tiles are sound: all bits there, and embedding the
        result again would give the same pixels. An unsound tile was not written by `embed_tiles`.
    """
    header = clear_region(parts, plan)
    lengths = stream_bits(plan)
    heads = np.array([b.size for b in header], np.int64)
    total = lengths + heads
    first = total - plan.second_bits
    sound = (first >= 0) & (total <= 2 * parts.black[0].size)
    first = np.where(sound, first, 0)
    rest: Bits = np.zeros((parts.count, 0), np.uint8)
    two = np.flatnonzero((plan.layers == 1) & sound)
    if two.size:
        rest = _extract_white(parts, span, plan, two, sound)
    parts.mirror_edges(black=False)
    black = parts.black.reshape(parts.count, -1)
    predicted, classes = predict(_coarse(parts.white, plan), of_black=True)
    hosts = _hosts(parts, plan, classes, black, span)
    bits, found, live = _extract_layer(black, predicted, hosts, plan, first)
    sound &= found == first
    sound &= ~(span.outside(black[:, : live.shape[1]]) & live).any(axis=1)
    by_value = np.flatnonzero(plan.spared == BY_VALUE)
    if by_value.size:
        cramped = _cramped(black[by_value, : live.shape[1]], plan.subset(by_value), span)
        sound[by_value] &= ~(cramped & live[by_value]).any(axis=1)
    out = np.zeros((parts.count, int(lengths.max(initial=0))), np.uint8)
    originals: list[Bits] = []
    for i in range(parts.count):
        stream = bits[i, : first[i]]
        if plan.layers[i] and sound[i]:
            stream = np.concatenate([stream, rest[i, : plan.second_bits[i]]])
        if not sound[i] or stream.size != total[i]:
            sound[i] = False
            originals.append(header[i])
            continue
        originals.append(stream[: heads[i]])
        out[i, : lengths[i]] = stream[heads[i] :]
    fill_region(parts, originals)
    return out, sound


def _extract_white(
    parts: Lattices, span: Span, plan: Plan, two: NDArray[np.intp], sound: NDArray[np.bool_]
) -> Bits:
    some, its = parts.subset(two), plan.subset(two)
    some.mirror_edges(black=True)
    predicted, hosts = _white_hosts(some, its)
    white = some.white.reshape(two.size, -1)
    bits, found, live = _extract_layer(white, predicted, hosts, its, its.second_bits)
    sound[two] &= (found == its.second_bits) & ~(
        span.outside(white[:, : live.shape[1]]) & live
    ).any(axis=1)
    parts.white[two] = some.white
    out = np.zeros((parts.count, bits.shape[1]), np.uint8)
    out[two] = bits
    return out
