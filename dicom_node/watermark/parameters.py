"""What a tile tells the decoder about itself, and where it stands in the tile.

The parameters are written into the least significant bits of the tile's first free white pixels
(its *region*); the bits that stood there go into the embedded stream.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicom_node.watermark import kernels
from dicom_node.watermark.kernels import DOWN
from dicom_node.watermark.tiles import Frame, Grid, Lattices

Ints = NDArray[np.int64]
Bits = NDArray[np.uint8]

THRESHOLDS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768,
              1024, 1536, 2048, 3072, 4096)  # fmt: skip
T = np.array(THRESHOLDS, np.int64)
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


def _check(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = (word + np.uint64(0x5DC0DE)) * np.uint64(0x9E3779B97F4A7C15)
    return mixed >> np.uint64(64 - _CHECK_BITS)


def header_bits(plan: Plan) -> Bits:
    """Return what each tile's region is to hold, ``(tiles, longest)``; zeros follow."""
    word = np.zeros(plan.threshold.size, np.uint64)
    for name, width in _FIELDS:
        word = (word << np.uint64(width)) | getattr(plan, name).astype(np.uint64)
    word = (word << np.uint64(_CHECK_BITS)) | _check(word)
    out = np.zeros((word.size, int(plan.region_bits().max(initial=0))), np.uint8)
    shifts = np.arange(HEADER_BITS - 1, -1, -1).astype(np.uint64)
    out[:, :HEADER_BITS] = (word[:, None] >> shifts) & np.uint64(1)
    for tile in np.flatnonzero((plan.layers == 1) | (plan.spared == BY_MAP)):
        packed = plan.maps.get(int(tile), b"")
        number = len(packed) if plan.spared[tile] == BY_MAP else int(plan.second_bits[tile])
        tail = np.frombuffer(number.to_bytes(EXTENSION_BITS // 8, "big") + packed, np.uint8)
        out[tile, HEADER_BITS : HEADER_BITS + 8 * tail.size] = np.unpackbits(tail)
    return out


def read_headers(
    plane: Frame, fixed: NDArray[np.bool_] | None, grid: Grid
) -> tuple[Plan, NDArray[np.bool_]]:
    """Return the parameters that tiles claim, and which are well formed, extensions not read.

    Parameters
    ----------
    plane, fixed
        The frame on its value lattice, and its pixels that are never changed.
    """
    words = np.empty((grid.down, grid.across), np.uint64)
    if fixed is None:
        fixed = np.zeros(plane.shape, np.bool_)
    sides = grid.tile_rows, grid.tile_columns
    kernels.header_words(plane, fixed, *sides, HEADER_BITS, words)
    word = words.reshape(-1)
    plan = Plan.blank(grid.count)
    # Above the header stands a 1; a tile with too few free pixels has neither.
    good = (word >> np.uint64(HEADER_BITS)) == 1
    word = word & np.uint64((1 << HEADER_BITS) - 1)
    check = word & np.uint64((1 << _CHECK_BITS) - 1)
    word = word >> np.uint64(_CHECK_BITS)
    good &= check == _check(word)
    if not good.any():
        return plan, good
    for name, width in reversed(_FIELDS):
        getattr(plan, name)[:] = word & np.uint64((1 << width) - 1)
        word = word >> np.uint64(width)
    good &= (plan.threshold < len(THRESHOLDS)) & (plan.mode <= DOWN) & (plan.spared <= BY_MAP)
    good &= (plan.size_code == grid.size_code) & (plan.kind <= 2)
    good &= (plan.layers == 0) | (plan.spared == ALL)
    return plan, np.asarray(good)


def read_extensions(parts: Lattices, plan: Plan, good: NDArray[np.bool_]) -> None:
    """Complete `plan` by what stands after the headers of `good` tiles; clear both of others."""
    extended = np.flatnonzero(good & ((plan.layers == 1) | (plan.spared == BY_MAP)))
    if extended.size:
        capacity = parts.free(black=False)
        for tile in extended:
            good[tile] = _read_extension(parts, plan, int(tile), int(capacity[tile]))
    for name in _NAMES:
        getattr(plan, name)[~good] = 0


def _read_extension(parts: Lattices, plan: Plan, tile: int, capacity: int) -> bool:
    length = HEADER_BITS + EXTENSION_BITS
    if capacity < length:
        return False
    number = int.from_bytes(_after(parts, tile, HEADER_BITS, EXTENSION_BITS), "big")
    if plan.layers[tile]:
        plan.second_bits[tile] = number
        return number <= parts.hosts
    if length + 8 * number > capacity:
        return False
    packed = _after(parts, tile, length, 8 * number)
    plan.maps[tile] = packed
    return unpack_map(packed, parts.hosts) is not None


def _after(parts: Lattices, tile: int, start: int, count: int) -> bytes:
    """Return the `count` bits that follow the first `start` of a tile's region."""
    bits = np.zeros((1, start + count), np.uint8)
    which, counts = np.array([tile]), np.array([start + count])
    white, fixed = parts.flat(parts.white), parts.flat(parts.fixed_white)
    kernels.take_bits(white, fixed, which, counts, False, bits)
    return np.packbits(bits[0, start:]).tobytes()


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
