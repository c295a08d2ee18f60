"""A frame made ready for embedding or reading: its value lattice, its tiles, its digests."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dicom_node.watermark import kernels
from dicom_node.watermark.parameters import Plan
from dicom_node.watermark.payload import MAC_BYTES
from dicom_node.watermark.reversible import Span
from dicom_node.watermark.tiles import (
    UNIT,
    Bounds,
    Frame,
    Grid,
    Lattice1D,
    Lattices,
    all_within,
    exact_gap,
    find_gap,
    grid_of,
    lattices,
    mostly_unit,
    split,
    within,
)

Side = NDArray[np.uint32]
COMPACT_MAC_BYTES = 16
# The smallest side a frame may have: below it a tile has no inside to predict from.
MIN_SIDE_PX = 8


def frame_digest(host: Frame, side: Side | None) -> bytes:
    """Return SHA3-256 over shape and samples of one frame.

    Parameters
    ----------
    host
        ``(rows, columns)`` stored values.
    side
        ``(rows, columns, n)`` the other samples and high bits, or None.

    Notes
    -----
    Samples are hashed little-endian in the narrowest of int16, uint16, int32 that holds them, its
    code hashed first: the same samples always give the same bytes, and hashing is most of the cost.
    """
    planes = 0 if side is None else side.shape[2]
    host = np.require(host, np.int32, ("C", "W"))
    code, narrow = _narrow(host, *kernels.extremes(host))
    state = hashlib.sha3_256(b"dicom-node frame 1")
    state.update(struct.pack("<IIIB", host.shape[0], host.shape[1], planes, code))
    state.update(narrow.data)
    if side is not None:
        state.update(np.ascontiguousarray(side, "<u4").data)
    return state.digest()


@dataclass(frozen=True)
class KnownDigest:
    """A frame whose digests are known: comparing costs a tenth of hashing, and proves the same.

    Attributes
    ----------
    host, side
        As `frame_digest` takes them.
    digest
        Of the frame.
    tiles
        Of its tiles, by `tile_claim`.
    """

    host: Frame
    side: Side | None
    digest: bytes
    tiles: Mapping[bytes, bytes] = field(default_factory=dict)

    def of(self, host: Frame, side: Side | None) -> bytes | None:
        """Return the digest of a frame that is the same as this; None of any other."""
        both = self.side is not None and side is not None and np.array_equal(self.side, side)
        same = both if side is not None else self.side is None
        return self.digest if same and np.array_equal(self.host, host) else None


def _narrow(values: Frame, low: int, high: int) -> tuple[int, NDArray[np.generic]]:
    if low >= -(1 << 15) and high < 1 << 15:
        return 1, np.ascontiguousarray(values, "<i2")
    if low >= 0 and high < 1 << 16:
        return 2, np.ascontiguousarray(values, "<u2")
    return 3, np.ascontiguousarray(values, "<i4")


def frame_key(mac_key: bytes, tag: bytes, frame_number: int) -> bytes:
    """Return the key of one frame's tile digests: what they say holds for no other frame."""
    return hashlib.blake2b(
        tag + frame_number.to_bytes(8, "little"),
        key=mac_key,
        digest_size=32,
        person=b"dcmnode-frame",
    ).digest()


@dataclass
class Canvas:
    """One frame, its bounds, and the value lattice it is worked on in.

    Attributes
    ----------
    host
        ``(rows, columns)`` int32 stored values.
    side
        ``(rows, columns, n)`` uint32 samples covered but not changed, or None.
    """

    host: Frame
    side: Side | None
    bounds: Bounds
    gap: Lattice1D

    @cached_property
    def padded(self) -> NDArray[np.bool_] | None:
        """Which pixels are padding; None where none is."""
        return padding_of(self.host, self.bounds)

    @cached_property
    def span(self) -> Span:
        """The values a pixel may take while embedding.

        Narrowed so that flipping a last bit never leaves it: low is even, high odd, and the hole of
        the padding is widened likewise.
        """
        step, offset = self.gap.step, self.gap.offset
        low = -((offset - self.bounds.low) // step)
        high = (self.bounds.high - offset) // step
        hole = (1, 0)
        if self.bounds.padding is not None:
            first, last = sorted(self.bounds.padding)
            inside = (-((offset - first) // step), (last - offset) // step)
            if inside[0] <= inside[1]:
                hole = (inside[0] & ~1, inside[1] | 1)
        return Span(low + (low & 1), high - (1 - (high & 1)), *hole)

    @cached_property
    def scaled(self) -> Frame:
        """The host on its value lattice."""
        return self.gap.to_k(self.host)

    @cached_property
    def fixed(self) -> NDArray[np.bool_] | None:
        """Pixels never changed: padding, out of range, next to either; None where there is none."""
        fixed = self.span.outside(self.scaled)
        if self.gap.step == 1 or self.padded is None:
            return fixed
        return self.padded if fixed is None else fixed | self.padded

    def grid(self, size_code: int) -> Grid:
        """Return the tiling for one of the tile sizes."""
        return grid_of(self.host.shape[0], self.host.shape[1], size_code)

    def parts(self, grid: Grid) -> Lattices:
        """Return the checkerboards of all tiles, fresh copies."""
        return lattices(self.scaled, self.fixed, grid)

    def constant_tiles(self, grid: Grid) -> tuple[NDArray[np.bool_], int]:
        """Return the tiles that are one padding value throughout, sides 0, and that value."""
        if self.bounds.padding is None:
            return np.zeros(grid.count, np.bool_), 0
        first, last = sorted(self.bounds.padding)
        padded = all_within(self.host, first, last, grid)
        if not padded.any():
            return padded, 0
        boxes = [grid.box(int(t)) for t in np.flatnonzero(padded)]
        values, counts = np.unique([self.host[b.row, b.column] for b in boxes], return_counts=True)
        value = int(values[counts.argmax()])
        return self.inert(grid, value), value

    def inert(self, grid: Grid, value: int) -> NDArray[np.bool_]:
        """Return the tiles whose every pixel is `value` and every side sample 0."""
        same = all_within(self.host, value, value, grid)
        if self.side is not None:
            for tile in np.flatnonzero(same):
                box = grid.box(int(tile))
                area = np.s_[box.row : box.row + box.rows, box.column : box.column + box.columns]
                same[tile] = not self.side[area].any()
        return same


def padding_of(host: Frame, bounds: Bounds) -> NDArray[np.bool_] | None:
    """Return which pixels are padding; None where none is."""
    if bounds.padding is None:
        return None
    first, last = sorted(bounds.padding)
    return within(host, first, last)


def gap_of(host: Frame, bounds: Bounds) -> Lattice1D:
    """Return the value lattice a reader finds; see `find_gap`."""
    grid = grid_of(host.shape[0], host.shape[1], 0)
    padding = None
    if bounds.padding is not None:
        first, last = sorted(bounds.padding)
        padding = (first, last)
    if mostly_unit(host, padding, grid):
        return UNIT
    return find_gap(host, padding_of(host, bounds), grid)


def host_gap(host: Frame, bounds: Bounds) -> Lattice1D:
    """Return the value lattice of a frame to mark; see `exact_gap`."""
    some = host.reshape(-1)[:: max(1, host.size // 509)]
    if bounds.padding is not None:
        first, last = sorted(bounds.padding)
        some = some[(some < first) | (some > last)]
    if some.size and int(np.gcd.reduce(some - some[0])) == 1:
        return UNIT
    return exact_gap(host, padding_of(host, bounds))


def spoken(plan: Plan, shares: NDArray[np.uint8], tiles: Iterable[int]) -> dict[int, bytes]:
    """Return what each tile's digest covers beside its pixels: parameters and share."""
    table = plan.header_table()
    out = {}
    for tile in tiles:
        share = shares[tile, : plan.share_bytes[tile]].tobytes()
        out[tile] = table[tile].tobytes() + plan.maps.get(tile, b"") + share
    return out


def tile_claim(key: bytes, grid: Grid, tile: int, told: bytes) -> bytes:
    """Return all that a tile's digest depends on beside its pixels, to remember the digest by."""
    return key + struct.pack("<BI", grid.size_code, tile) + told


def tile_digests(
    canvas: Canvas, pixels: Frame, grid: Grid, key: bytes, which: Collection[int],
    said: dict[int, bytes], *, size: int = MAC_BYTES,
) -> dict[int, bytes]:  # fmt: skip
    """Return the keyed digest of some tiles.

    Parameters
    ----------
    pixels
        The frame as it was before embedding (`canvas.host` or what was recovered).
    key
        From `frame_key`.
    said
        Parameters and share of each tile, covered by its digest; empty for a mute tile.
    """
    if not which:
        return {}
    bounds = canvas.bounds
    _, narrow = _narrow(pixels, bounds.low, bounds.high)
    tiles = split(narrow, grid)
    side = None if canvas.side is None else split(np.ascontiguousarray(canvas.side, "<u4"), grid)
    planes = 0 if canvas.side is None else canvas.side.shape[2]
    out: dict[int, bytes] = {}
    for tile in which:
        told = said.get(tile, b"")
        head = struct.pack("<6I", tile, grid.rows, grid.columns, grid.size_code, planes, len(told))
        state = hashlib.blake2b(head + told, key=key, digest_size=size, person=b"dcmnode-tile")
        state.update(tiles[tile].data)
        if side is not None:
            state.update(side[tile].data)
        out[tile] = state.digest()
    return out
