"""What a tile tells the decoder about itself, and where it stands in the tile.

The parameters are written into the least significant bits of the tile's first free white pixels
(its *region*); the bits that stood there go into the embedded stream.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicom_node.watermark.tiles import Lattices

Ints = NDArray[np.int64]
Bits = NDArray[np.uint8]

THRESHOLDS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768,
              1024, 1536, 2048, 3072, 4096)  # fmt: skip
T = np.array(THRESHOLDS, np.int64)
CLASSES = 32
BOTH, UP, DOWN = 0, 1, 2
# How the decoder knows a pixel left alone for want of room: there is none; by its value; by a map.
ALL, BY_VALUE, BY_MAP = 0, 1, 2

# Name and width in bits of what a tile's header holds; the check is a hash of the rest.
_FIELDS = (("threshold", 5), ("mode", 2), ("limit", 5), ("spared", 2), ("layers", 1),
           ("share_bytes", 14), ("data_tiles", 8), ("size_code", 3), ("kind", 2))  # fmt: skip
_CHECK_BITS = 10
HEADER_BITS = sum(width for _, width in _FIELDS) + _CHECK_BITS
_BIT_WEIGHTS = np.uint64(1) << np.arange(HEADER_BITS - 1, -1, -1).astype(np.uint64)
# Only tiles with a map or a second layer have these: bytes of the map, or bits in the second layer.
EXTENSION_BITS = 32
MAX_SHARE_BYTES = (1 << 14) - 1


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
        return cls(**{name: np.zeros(count, np.int64) for name in _NAMES}, maps={})

    def subset(self, chosen: NDArray[np.intp]) -> Plan:
        """Return the entries of the `chosen` tiles."""
        arrays = {name: getattr(self, name)[chosen] for name in _NAMES}
        maps = {i: self.maps[int(t)] for i, t in enumerate(chosen) if int(t) in self.maps}
        return Plan(**arrays, maps=maps)

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

    def header_table(self) -> NDArray[np.uint32]:
        """Return the parameters of all tiles, ``(tiles, 10)``, for the digests."""
        table = np.stack([getattr(self, name) for name in _NAMES], axis=1)
        return np.ascontiguousarray(table.astype("<u4"))


_NAMES = (*(name for name, _ in _FIELDS), "second_bits")


def free_white(parts: Lattices) -> Ints:
    """Return how many white pixels of each tile may hold parameters."""
    if parts.fixed_white is None:
        return np.full(parts.count, parts.white[0].size, np.int64)
    free = ~parts.fixed_white.reshape(parts.count, -1)
    return np.asarray(free.sum(axis=1), np.int64)


def region(parts: Lattices, bits: int) -> NDArray[np.intp]:
    """Return the places of each tile's first `bits` free white pixels, ``(tiles, bits)``."""
    if parts.fixed_white is None:
        return np.broadcast_to(np.arange(bits), (parts.count, bits))
    fixed = parts.fixed_white.reshape(parts.count, -1)
    # Sorting False before True, stably, lists the free pixels in order; mostly a few rows will do.
    places = np.argsort(fixed[:, : 4 * bits], axis=1, kind="stable")[:, :bits]
    short = np.flatnonzero((~fixed[:, : 4 * bits]).sum(axis=1) < bits)
    if short.size:
        places[short] = np.argsort(fixed[short], axis=1, kind="stable")[:, :bits]
    return places


def clear_region(parts: Lattices, plan: Plan) -> list[Bits]:
    """Clear the last bit of the parameter pixels; return the bits that stood there, per tile."""
    lengths = plan.region_bits()
    places = region(parts, int(lengths.max(initial=0)))
    white = parts.white.reshape(parts.count, -1)
    values = np.take_along_axis(white, places, axis=1)
    inside = np.arange(places.shape[1])[None, :] < lengths[:, None]
    np.put_along_axis(white, places, np.where(inside, values & ~1, values), axis=1)
    old = (values & 1).astype(np.uint8)
    return [old[i, : lengths[i]] for i in range(parts.count)]


def clear_head(parts: Lattices, bits: int) -> NDArray[np.int32]:
    """Return a copy of the white pixels as prediction sees them: the first last-bits cleared."""
    places = region(parts, bits)
    white = parts.white.copy()
    flat = white.reshape(parts.count, -1)
    np.put_along_axis(flat, places, np.take_along_axis(flat, places, axis=1) & ~1, axis=1)
    return white


def fill_region(parts: Lattices, bits: list[Bits]) -> None:
    """Write `bits` into the (cleared) last bits of the parameter pixels."""
    longest = max((b.size for b in bits), default=0)
    table = np.zeros((parts.count, longest), np.int32)
    for i, row in enumerate(bits):
        table[i, : row.size] = row
    places = region(parts, longest)
    white = parts.white.reshape(parts.count, -1)
    values = np.take_along_axis(white, places, axis=1)
    np.put_along_axis(white, places, values | table, axis=1)


def in_region(parts: Lattices, plan: Plan) -> NDArray[np.bool_]:
    """Return the white pixels that hold parameters, ``(tiles, hosts)``."""
    lengths = plan.region_bits()
    places = region(parts, int(lengths.max(initial=0)))
    inside = np.arange(places.shape[1])[None, :] < lengths[:, None]
    mask = np.zeros((parts.count, parts.white[0].size), np.bool_)
    np.put_along_axis(mask, places, inside, axis=1)
    return mask


def _check(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = (word + np.uint64(0x5DC0DE)) * np.uint64(0x9E3779B97F4A7C15)
    return mixed >> np.uint64(64 - _CHECK_BITS)


def header_bits(plan: Plan) -> list[Bits]:
    """Return what each tile's region is to hold."""
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


def headers_pass(parts: Lattices) -> NDArray[np.bool_]:
    """Return which tiles have a header that passes its check, extensions not looked at.

    `parts` may be the tops of tiles: where a top has pixels enough, it says what the tile would.
    """
    if parts.white[0].size < HEADER_BITS:
        return np.zeros(parts.count, np.bool_)
    good = passes(_first_bits(parts), parts.grid.size_code)
    good &= free_white(parts) >= HEADER_BITS
    return good


def passes(bits: Bits, size_code: int) -> NDArray[np.bool_]:
    """Return which rows of `bits` ``(tiles, HEADER_BITS)`` are a header of that tile size."""
    return _fields(bits, size_code)[1]


def read_headers(parts: Lattices) -> tuple[Plan, NDArray[np.bool_]]:
    """Return the parameters that the tiles claim, and which of them are well formed."""
    if parts.white[0].size < HEADER_BITS:
        return Plan.blank(parts.count), np.zeros(parts.count, np.bool_)
    plan, good = _fields(_first_bits(parts), parts.grid.size_code)
    good &= free_white(parts) >= HEADER_BITS
    hosts = parts.black[0].size
    extended = np.flatnonzero(good & ((plan.layers == 1) | (plan.spared == BY_MAP)))
    if extended.size:
        capacity = free_white(parts)
        for tile in extended:
            good[tile] = _read_extension(parts, plan, int(tile), int(capacity[tile]), hosts)
    for name in _NAMES:
        getattr(plan, name)[~good] = 0
    return plan, good


def _first_bits(parts: Lattices) -> Bits:
    white = parts.white.reshape(parts.count, -1)
    bits = np.take_along_axis(white, region(parts, HEADER_BITS), axis=1) & 1
    return bits.astype(np.uint8)


def _fields(bits: Bits, size_code: int) -> tuple[Plan, NDArray[np.bool_]]:
    """Take header bits apart; return what they say, and which of them are a header at all."""
    plan = Plan.blank(bits.shape[0])
    word = bits.astype(np.uint64) @ _BIT_WEIGHTS
    check = word & np.uint64((1 << _CHECK_BITS) - 1)
    word >>= np.uint64(_CHECK_BITS)
    good = np.asarray(check == _check(word))
    if not good.any():
        return plan, good
    for name, width in reversed(_FIELDS):
        getattr(plan, name)[:] = (word & np.uint64((1 << width) - 1)).astype(np.int64)
        word >>= np.uint64(width)
    good &= (plan.threshold < len(THRESHOLDS)) & (plan.mode <= DOWN) & (plan.spared <= BY_MAP)
    good &= (plan.size_code == size_code) & (plan.kind <= 2)
    good &= (plan.layers == 0) | (plan.spared == ALL)
    return plan, good


def _read_extension(parts: Lattices, plan: Plan, tile: int, capacity: int, hosts: int) -> bool:
    one = parts.subset(np.array([tile]))
    white = one.white.reshape(-1)
    length = HEADER_BITS + EXTENSION_BITS
    if capacity < length:
        return False
    bits = white[region(one, length)[0, HEADER_BITS:]] & 1
    number = int.from_bytes(np.packbits(bits.astype(np.uint8)).tobytes(), "big")
    if plan.layers[tile]:
        plan.second_bits[tile] = number
        return number <= hosts
    if length + 8 * number > capacity:
        return False
    bits = white[region(one, length + 8 * number)[0, length:]] & 1
    packed = np.packbits(bits.astype(np.uint8)).tobytes()
    plan.maps[tile] = packed
    return unpack_map(packed, hosts) is not None


def pack_map(spared: NDArray[np.bool_]) -> bytes:
    """Return the location map ``(hosts,)`` of one tile, compressed."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(np.packbits(spared).tobytes()) + packer.flush()


def unpack_map(packed: bytes, hosts: int) -> NDArray[np.bool_] | None:
    """Undo `pack_map`; None if `packed` is not exactly one map of that many pixels."""
    size = -(-hosts // 8)
    unpacker = zlib.decompressobj(-15)
    try:
        raw = unpacker.decompress(packed, size + 1)
    except zlib.error:
        return None
    if len(raw) != size or not unpacker.eof or unpacker.unused_data:
        return None
    return np.unpackbits(np.frombuffer(raw, np.uint8), count=hosts).astype(np.bool_)
