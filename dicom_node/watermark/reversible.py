"""Reversible embedding in tiles: prediction-error expansion on a checkerboard.

Black pixels are predicted from their four white neighbours, ``(l + r + u + d + 2) >> 2``. With threshold
T, an error e in [-T, T) becomes ``2 e + bit`` and any other error moves T outwards, so the decoder can
tell them apart; both are undone exactly. Pixels in busy surroundings (a limit per tile) are left alone,
and the stream stops where its last bit went in. Where black is too small, white follows,
predicted from the changed black.

What a tile needs to be read stands in the least significant bits of its first free white pixels; the
bits that stood there are the head of the embedded stream. Pixels *fixed* from the start (padding,
values out of range) are never changed, and nothing ever becomes one: for every other pixel, the
value with its last bit flipped is allowed, too.

References
----------
Thodi and Rodriguez, "Expansion embedding techniques for reversible watermarking", IEEE TIP 16(3), 2007.
Sachnev et al., "Reversible watermarking algorithm using sorting and prediction", IEEE TCSVT 19(7), 2009.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicom_node.watermark.tiles import Lattices, neighbours

Ints = NDArray[np.int64]
Bits = NDArray[np.uint8]

THRESHOLDS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768,
              1024, 1536, 2048, 3072, 4096)  # fmt: skip
_T = np.array(THRESHOLDS, np.int64)
CLASSES = 32
BOTH, UP, DOWN = 0, 1, 2
# How the decoder knows a pixel left alone for want of room: there is none; by its value; by a map.
ALL, BY_VALUE, BY_MAP = 0, 1, 2

# Name and width in bits of what a tile's header holds; the check is a hash of the rest.
_FIELDS = (("threshold", 5), ("mode", 2), ("limit", 5), ("spared", 2), ("layers", 1),
           ("share_bytes", 14), ("data_tiles", 8), ("size_code", 3), ("kind", 2))  # fmt: skip
_CHECK_BITS = 10
HEADER_BITS = sum(width for _, width in _FIELDS) + _CHECK_BITS
# Only tiles with a map or a second layer have these: bytes of the map, or bits in the second layer.
EXTENSION_BITS = 32
MAX_SHARE_BYTES = (1 << 14) - 1


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
        out = (values < self.low) | (values > self.high)
        if self.has_hole:
            out |= (values >= self.hole_low) & (values <= self.hole_high)
        return out


@dataclass
class Plan:
    """What is embedded how, one entry per tile (arrays of int64, ``(tiles,)``)."""

    threshold: Ints
    mode: Ints
    limit: Ints
    spared: Ints
    layers: Ints
    share_bytes: Ints
    data_tiles: Ints
    size_code: Ints
    kind: Ints
    second_bits: Ints
    maps: dict[int, bytes]

    @classmethod
    def blank(cls, count: int) -> Plan:
        """Return a plan of `count` tiles, all zero."""
        return cls(*(np.zeros(count, np.int64) for _ in range(10)), maps={})

    def subset(self, chosen: NDArray[np.intp]) -> Plan:
        """Return the entries of the `chosen` tiles."""
        arrays = (getattr(self, name)[chosen] for name in _NAMES)
        maps = {i: self.maps[int(t)] for i, t in enumerate(chosen) if int(t) in self.maps}
        return Plan(*arrays, maps=maps)

    def put(self, chosen: NDArray[np.intp], other: Plan) -> None:
        """Take over `other`, a plan of the `chosen` tiles."""
        for name in _NAMES:
            getattr(self, name)[chosen] = getattr(other, name)
        for i, t in enumerate(chosen):
            self.maps.pop(int(t), None)
            if i in other.maps:
                self.maps[int(t)] = other.maps[i]

    def region_bits(self) -> Ints:
        """Return how many white pixels hold parameters, per tile."""
        bits = np.full(self.threshold.size, HEADER_BITS, np.int64)
        bits[(self.layers == 1) | (self.spared == BY_MAP)] += EXTENSION_BITS
        for tile, packed in self.maps.items():
            bits[tile] += 8 * len(packed)
        return bits

    def header_bytes(self, tile: int) -> bytes:
        """Return the parameters of one tile as bytes, for its digest."""
        values = [int(getattr(self, name)[tile]) for name in _NAMES]
        return b"".join(v.to_bytes(4, "little") for v in values) + self.maps.get(tile, b"")

    def header_table(self) -> NDArray[np.uint32]:
        """Return the parameters of all tiles, ``(tiles, 10)``, rows as `header_bytes` without map."""
        table = np.stack([getattr(self, name) for name in _NAMES], axis=1)
        return np.ascontiguousarray(table.astype("<u4"))


_NAMES = (*(name for name, _ in _FIELDS), "second_bits")


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
    """Return prediction and activity class of every pixel of one colour, each ``(tiles, hosts)``."""
    left, right, up, down = neighbours(other, of_black=of_black)
    highest = np.maximum(left, right)
    lowest = np.minimum(left, right)
    np.maximum(highest, up, out=highest)
    np.minimum(lowest, up, out=lowest)
    np.maximum(highest, down, out=highest)
    np.minimum(lowest, down, out=lowest)
    highest -= lowest
    left += right
    left += up
    left += down
    left += 2
    left >>= 2
    classes = level(highest)
    np.minimum(classes, CLASSES - 1, out=classes)
    count = other.shape[0]
    return left.reshape(count, -1), classes.reshape(count, -1)


def _coarse(white: NDArray[np.int32], plan: Plan) -> NDArray[np.int32]:
    """Return what black is predicted from: without last bits where any of them may change."""
    coarse = (plan.layers == 1) | (plan.spared == BY_MAP)
    if not coarse.any():
        return white
    mask = np.where(coarse, np.int32(-2), np.int32(-1))
    return white & mask[:, None, None, None]


def _flat(values: NDArray[np.generic] | None) -> NDArray[np.generic] | None:
    return None if values is None else values.reshape(values.shape[0], -1)


def free_white(parts: Lattices) -> Ints:
    """Return how many white pixels of each tile may hold parameters."""
    if parts.fixed_white is None:
        return np.full(parts.count, parts.white[0].size, np.int64)
    return np.asarray((~_flat(parts.fixed_white)).sum(axis=1), np.int64)  # type: ignore[operator]


def _region(parts: Lattices, bits: int) -> NDArray[np.intp]:
    """Return the places of each tile's first `bits` free white pixels, ``(tiles, bits)``."""
    if parts.fixed_white is None:
        return np.broadcast_to(np.arange(bits), (parts.count, bits))
    fixed = parts.fixed_white.reshape(parts.count, -1)
    # Sorting False before True, stably, lists the free pixels in order.
    head = fixed[:, : 4 * bits]
    if head.shape[1] == 4 * bits and ((~head).sum(axis=1) >= bits).all():
        fixed = head
    return np.argsort(fixed, axis=1, kind="stable")[:, :bits]


def _clear_region(parts: Lattices, plan: Plan) -> list[Bits]:
    """Clear the last bit of the parameter pixels; return the bits that stood there, per tile."""
    lengths = plan.region_bits()
    places = _region(parts, int(lengths.max(initial=0)))
    white = parts.white.reshape(parts.count, -1)
    values = np.take_along_axis(white, places, axis=1)
    inside = np.arange(places.shape[1])[None, :] < lengths[:, None]
    np.put_along_axis(white, places, np.where(inside, values & ~1, values), axis=1)
    old = (values & 1).astype(np.uint8)
    return [old[i, : lengths[i]] for i in range(parts.count)]


def clear_head(parts: Lattices, bits: int) -> NDArray[np.int32]:
    """Return a copy of the white pixels as prediction sees them: the first last-bits cleared."""
    places = _region(parts, bits)
    white = parts.white.copy()
    flat = white.reshape(parts.count, -1)
    np.put_along_axis(flat, places, np.take_along_axis(flat, places, axis=1) & ~1, axis=1)
    return white


def _fill_region(parts: Lattices, bits: list[Bits]) -> None:
    """Write `bits` into the (cleared) last bits of the parameter pixels."""
    longest = max((b.size for b in bits), default=0)
    table = np.zeros((parts.count, longest), np.int32)
    for i, row in enumerate(bits):
        table[i, : row.size] = row
    places = _region(parts, longest)
    white = parts.white.reshape(parts.count, -1)
    values = np.take_along_axis(white, places, axis=1)
    np.put_along_axis(white, places, values | table, axis=1)


def in_region(parts: Lattices, plan: Plan) -> NDArray[np.bool_]:
    lengths = plan.region_bits()
    places = _region(parts, int(lengths.max(initial=0)))
    inside = np.arange(places.shape[1])[None, :] < lengths[:, None]
    mask = np.zeros((parts.count, parts.white[0].size), np.bool_)
    np.put_along_axis(mask, places, inside, axis=1)
    return mask


def _check(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = (word + np.uint64(0x5DC0DE)) * np.uint64(0x9E3779B97F4A7C15)
    return mixed >> np.uint64(64 - _CHECK_BITS)


def _header_bits(plan: Plan) -> list[Bits]:
    word = np.zeros(plan.threshold.size, np.uint64)
    for name, width in _FIELDS:
        word = (word << np.uint64(width)) | getattr(plan, name).astype(np.uint64)
    word = (word << np.uint64(_CHECK_BITS)) | _check(word)
    shifts = np.arange(HEADER_BITS - 1, -1, -1).astype(np.uint64)
    rows = ((word[:, None] >> shifts) & np.uint64(1)).astype(np.uint8)
    out = list(rows)
    for tile in np.flatnonzero((plan.layers == 1) | (plan.spared == BY_MAP)):
        packed = plan.maps.get(int(tile), b"")
        number = len(packed) if plan.spared[tile] == BY_MAP else int(plan.second_bits[tile])
        tail = np.frombuffer(number.to_bytes(EXTENSION_BITS // 8, "big") + packed, np.uint8)
        out[tile] = np.concatenate([rows[tile], np.unpackbits(tail)])
    return out


def read_headers(parts: Lattices) -> tuple[Plan, NDArray[np.bool_]]:
    """Return the parameters that the tiles claim, and which of them are well formed."""
    plan = Plan.blank(parts.count)
    capacity = free_white(parts)
    if parts.white[0].size < HEADER_BITS:
        return plan, np.zeros(parts.count, np.bool_)
    white = parts.white.reshape(parts.count, -1)
    bits = np.take_along_axis(white, _region(parts, HEADER_BITS), axis=1) & 1
    word = np.zeros(parts.count, np.uint64)
    for i in range(HEADER_BITS):
        word = (word << np.uint64(1)) | bits[:, i].astype(np.uint64)
    check = word & np.uint64((1 << _CHECK_BITS) - 1)
    word >>= np.uint64(_CHECK_BITS)
    good = (capacity >= HEADER_BITS) & (check == _check(word))
    for name, width in reversed(_FIELDS):
        getattr(plan, name)[:] = (word & np.uint64((1 << width) - 1)).astype(np.int64)
        word >>= np.uint64(width)
    good &= (plan.threshold < len(THRESHOLDS)) & (plan.mode <= DOWN) & (plan.spared <= BY_MAP)
    good &= (plan.size_code == parts.grid.size_code) & (plan.kind <= 2)
    good &= (plan.layers == 0) | (plan.spared == ALL)
    hosts = parts.black[0].size
    for tile in np.flatnonzero(good & ((plan.layers == 1) | (plan.spared == BY_MAP))):
        good[tile] = _read_extension(parts, plan, int(tile), int(capacity[tile]), hosts)
    for name in _NAMES:
        getattr(plan, name)[~good] = 0
    return plan, good


def _read_extension(parts: Lattices, plan: Plan, tile: int, capacity: int, hosts: int) -> bool:
    one = parts.subset(np.array([tile]))
    white = one.white.reshape(-1)
    length = HEADER_BITS + EXTENSION_BITS
    if capacity < length:
        return False
    bits = white[_region(one, length)[0, HEADER_BITS:]] & 1
    number = int.from_bytes(np.packbits(bits.astype(np.uint8)).tobytes(), "big")
    if plan.layers[tile]:
        plan.second_bits[tile] = number
        return number <= hosts
    if length + 8 * number > capacity:
        return False
    bits = white[_region(one, length + 8 * number)[0, length:]] & 1
    packed = np.packbits(bits.astype(np.uint8)).tobytes()
    plan.maps[tile] = packed
    return _unpack_map(packed, hosts) is not None


def pack_map(spared: NDArray[np.bool_]) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(np.packbits(spared).tobytes()) + packer.flush()


def _unpack_map(packed: bytes, hosts: int) -> NDArray[np.bool_] | None:
    size = -(-hosts // 8)
    unpacker = zlib.decompressobj(-15)
    try:
        raw = unpacker.decompress(packed, size + 1)
    except zlib.error:
        return None
    if len(raw) != size or not unpacker.eof or unpacker.unused_data:
        return None
    return np.unpackbits(np.frombuffer(raw, np.uint8), count=hosts).astype(np.bool_)


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
        spared = _unpack_map(packed, hosts.shape[1])
        if spared is not None:
            hosts[tile] &= ~spared
    return hosts


def _cramped(values: NDArray[np.int32], plan: Plan, span: Span) -> NDArray[np.bool_]:
    """Return which pixels have less room than the threshold in a direction they could go."""
    t = _T[plan.threshold].astype(np.int32)[:, None]
    above = (span.room_up(values) < t) & (plan.mode != DOWN)[:, None]
    below = (span.room_down(values) < t) & (plan.mode != UP)[:, None]
    return np.asarray(above | below)


def _touched(
    hosts: NDArray[np.bool_], positive: NDArray[np.bool_], plan: Plan
) -> NDArray[np.bool_]:
    """Return hosts on a side of the histogram that the mode moves."""
    if (plan.mode == BOTH).all():
        return hosts
    allowed = np.where(positive, (plan.mode != DOWN)[:, None], (plan.mode != UP)[:, None])
    return hosts & allowed


def _errors(
    values: NDArray[np.int32], predicted: NDArray[np.int32], plan: Plan
) -> NDArray[np.int32]:
    """Return the prediction errors; one less going down, so that a saturated flat has some < 0."""
    error = values - predicted
    down = plan.mode == DOWN
    if down.any():
        error -= down.astype(np.int32)[:, None]
    return error


def embed_layer(
    values: NDArray[np.int32], predicted: NDArray[np.int32], hosts: NDArray[np.bool_],
    plan: Plan, bits: NDArray[np.uint8], need: Ints,
) -> NDArray[np.bool_]:  # fmt: skip
    """Embed ``bits[i, :need[i]]`` into the rows of `values`, in place; return which rows held all."""
    t = _T[plan.threshold].astype(np.int32)[:, None]
    error = _errors(values, predicted, plan)
    positive = error >= 0
    inside = (error < t) & (error >= -t)
    touched = _touched(hosts, positive, plan)
    carriers = touched & inside
    before = np.cumsum(carriers, axis=1, dtype=np.int32)
    before -= carriers
    live = touched & (before < need[:, None].astype(np.int32))
    carriers &= live
    move = np.where(inside, error, np.where(positive, t, -t))
    move *= live
    held = carriers.sum(axis=1)
    index = np.arange(bits.shape[1])[None, :]
    move[carriers] += bits[index < held[:, None]].astype(np.int32)
    values += move
    return np.asarray(held == need)


def _extract_layer(
    values: NDArray[np.int32], predicted: NDArray[np.int32], hosts: NDArray[np.bool_],
    plan: Plan, need: Ints,
) -> tuple[NDArray[np.uint8], Ints, NDArray[np.bool_]]:  # fmt: skip
    """Undo `embed_layer` in place; return the bits, how many there were, and the pixels undone."""
    t = _T[plan.threshold].astype(np.int32)[:, None]
    error = _errors(values, predicted, plan)
    positive = error >= 0
    inside = (error < 2 * t) & (error >= -2 * t)
    touched = _touched(hosts, positive, plan)
    carriers = touched & inside
    before = np.cumsum(carriers, axis=1, dtype=np.int32)
    before -= carriers
    live = touched & (before < need[:, None].astype(np.int32))
    carriers &= live
    found = carriers.sum(axis=1)
    bits = np.zeros((values.shape[0], int(need.max(initial=0))), np.uint8)
    bits[np.arange(bits.shape[1])[None, :] < found[:, None]] = (error & 1)[carriers]
    move = np.where(inside, error - (error >> 1), np.where(positive, t, -t))
    move *= live
    values -= move
    return bits, found, live


def embed_tiles(
    parts: Lattices, span: Span, plan: Plan, streams: NDArray[np.uint8]
) -> NDArray[np.bool_]:
    """Embed one stream per tile, in place; return which tiles held all of theirs.

    Parameters
    ----------
    parts
        The tiles that carry something; all of them fit their stream by `plan`.
    streams
        ``(tiles, bits)`` of 0/1, equal lengths as far as ``share_bytes`` and ``kind`` are equal; rows
        that need less are padded and cut by `stream_bits`.

    Only a second layer can turn out too small: how much it holds depends on the bits of the first.
    """
    old = _clear_region(parts, plan)
    parts.mirror_edges(black=False)
    lengths = stream_bits(plan)
    total = lengths + np.array([b.size for b in old])
    table = np.zeros((parts.count, int(total.max())), np.uint8)
    for i, head in enumerate(old):
        table[i, : head.size] = head
        table[i, head.size : total[i]] = streams[i, : lengths[i]]
    black = parts.black.reshape(parts.count, -1)
    predicted, classes = predict(_coarse(parts.white, plan), of_black=True)
    first = total - plan.second_bits
    hosts = _hosts(parts, plan, classes, black, span)
    held = embed_layer(black, predicted, hosts, plan, table, first)
    two = np.flatnonzero(plan.layers == 1)
    if two.size:
        held[two] &= _embed_white(parts, plan, two, table, first)
    _fill_region(parts, _header_bits(plan))
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


def _white_hosts(
    parts: Lattices, plan: Plan
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
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
        Streams ``(tiles, bits)``, and which tiles are sound: all bits there, and embedding the result
        again would give the same pixels. An unsound tile was not written by `embed_tiles`.
    """
    header = _clear_region(parts, plan)
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
    sound &= ~(span.outside(black) & live).any(axis=1)
    by_value = np.flatnonzero(plan.spared == BY_VALUE)
    if by_value.size:
        cramped = _cramped(black[by_value], plan.subset(by_value), span)
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
    _fill_region(parts, originals)
    return out, sound


def _extract_white(
    parts: Lattices, span: Span, plan: Plan, two: NDArray[np.intp], sound: NDArray[np.bool_]
) -> Bits:
    some, its = parts.subset(two), plan.subset(two)
    some.mirror_edges(black=True)
    predicted, hosts = _white_hosts(some, its)
    white = some.white.reshape(two.size, -1)
    bits, found, live = _extract_layer(white, predicted, hosts, its, its.second_bits)
    sound[two] &= (found == its.second_bits) & ~(span.outside(white) & live).any(axis=1)
    parts.white[two] = some.white
    out = np.zeros((parts.count, bits.shape[1]), np.uint8)
    out[two] = bits
    return out
