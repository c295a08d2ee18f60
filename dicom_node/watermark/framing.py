"""A frame made ready for embedding or reading: its value lattice, its tiles, its digests."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dicom_node.watermark.parameters import HEADER_BITS, Plan, free_white, headers_pass, passes
from dicom_node.watermark.payload import MAC_BYTES
from dicom_node.watermark.reversible import Span
from dicom_node.watermark.tiles import (
    UNIT,
    Bounds,
    Box,
    Frame,
    Grid,
    Lattice1D,
    Lattices,
    between,
    exact_gap,
    find_gap,
    grid_of,
    inside_of,
    lattices,
    mostly_unit,
    split,
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
    code, narrow = _narrow(host, int(host.min()), int(host.max()))
    state = hashlib.sha3_256(b"dicom-node frame 1")
    state.update(struct.pack("<IIIB", host.shape[0], host.shape[1], planes, code))
    state.update(narrow.data)
    if side is not None:
        state.update(np.ascontiguousarray(side, "<u4").data)
    return state.digest()


@dataclass(frozen=True)
class KnownDigest:
    """A frame whose digest is known: comparing costs a tenth of hashing, and proves the same."""

    host: Frame
    side: Side | None
    digest: bytes

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
        span = self.span
        inside = int(self.scaled.min()) >= span.low and int(self.scaled.max()) <= span.high
        if inside and not span.has_hole and self.padded is None:
            return None
        if inside and self.gap.step == 1:
            # The hole is the padding range, widened: one look at it says all.
            fixed = between(self.scaled, span.hole_low, span.hole_high)
        else:
            fixed = span.outside(self.scaled)
            if self.padded is not None:
                fixed |= self.padded
        return fixed if fixed.any() else None

    def grid(self, size_code: int) -> Grid:
        """Return the tiling for one of the tile sizes."""
        return grid_of(self.host.shape[0], self.host.shape[1], size_code)

    def parts(self, grid: Grid) -> Lattices:
        """Return the checkerboards of all tiles, fresh copies."""
        return lattices(self.scaled, self.fixed, grid)

    def may_hold_headers(self, grid: Grid) -> bool:
        """Whether some tile can have a header; False only if `read_headers` would find none.

        Looks at the first rows of every tile alone: most frames that were never marked are done
        with here, without being taken apart.
        """
        rows = -(-2 * HEADER_BITS // grid.tile_columns) + 1
        if self.gap.step > 1 or grid.spare != (0, 0) or rows >= grid.tile_rows:
            return True
        rows += rows % 2
        shape = (grid.down, grid.tile_rows, grid.columns)
        heads = Grid(grid.down * rows, grid.columns, grid.size_code, rows, grid.tile_columns)
        head = self.host.reshape(shape)[:, :rows].reshape(heads.rows, heads.columns)
        fixed = self.fixed
        if fixed is not None:
            fixed = fixed.reshape(shape)[:, :rows].reshape(heads.rows, heads.columns)
        parts = lattices(head, fixed, heads)
        return bool(headers_pass(parts).any()) or self._may_begin_lower(parts, grid)

    def _may_begin_lower(self, heads: Lattices, grid: Grid) -> bool:
        """Whether a tile whose first rows have too few free pixels can have a header further on."""
        fixed = self.fixed
        if fixed is None:
            return False
        words = []
        for tile in np.flatnonzero(free_white(heads) < HEADER_BITS):
            bits = self._first_bits(grid.box(int(tile)), fixed)
            if bits is not None:
                words.append(bits)
        return bool(words) and bool(passes(np.stack(words), grid.size_code).any())

    def _first_bits(self, box: Box, fixed: NDArray[np.bool_]) -> NDArray[np.uint8] | None:
        """Return the last bits of a tile's first free white pixels; None if it has too few."""
        area = np.s_[box.row : box.row + box.rows, box.column : box.column + box.columns]
        taken, values = fixed[area], self.host[area]
        open_rows = np.flatnonzero(~taken.all(axis=1))
        found, have = [], 0
        for row in open_rows:
            white = np.s_[row, 1 - row % 2 :: 2]
            found.append(values[white][~taken[white]][: HEADER_BITS - have] & 1)
            have += found[-1].size
            if have == HEADER_BITS:
                return np.concatenate(found).astype(np.uint8)
        return None

    def constant_tiles(self, grid: Grid) -> tuple[NDArray[np.bool_], int]:
        """Return the tiles that are one padding value throughout, sides 0, and that value."""
        none = np.zeros(grid.count, np.bool_)
        if self.padded is None:
            return none, 0
        padded = inside_all(self.padded, grid)
        if not padded.any():
            return none, 0
        tiles = np.flatnonzero(padded)
        boxes = [grid.box(int(t)) for t in tiles]
        values, counts = np.unique([self.host[b.row, b.column] for b in boxes], return_counts=True)
        value = int(values[counts.argmax()])
        return self.inert(grid, value), value

    def inert(self, grid: Grid, value: int) -> NDArray[np.bool_]:
        """Return the tiles whose every pixel is `value` and every side sample 0."""
        same = self.host == value
        if self.side is not None:
            same &= ~self.side.any(axis=2)
        return inside_all(same, grid)


def padding_of(host: Frame, bounds: Bounds) -> NDArray[np.bool_] | None:
    """Return which pixels are padding; None where none is."""
    if bounds.padding is None:
        return None
    padded = between(host, *sorted(bounds.padding))
    return padded if padded.any() else None


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
        some = some[~between(some, *sorted(bounds.padding))]
    if some.size and int(np.gcd.reduce(some - some[0])) == 1:
        return UNIT
    return exact_gap(host, padding_of(host, bounds))


def inside_all(mask: NDArray[np.bool_], grid: Grid) -> NDArray[np.bool_]:
    """Return the tiles in which `mask` holds for every pixel inside the frame."""
    return ~inside_of(~mask, grid)


def spoken(plan: Plan, shares: NDArray[np.uint8], tiles: Iterable[int]) -> dict[int, bytes]:
    """Return what each tile's digest covers beside its pixels: parameters and share."""
    table = plan.header_table()
    out = {}
    for tile in tiles:
        share = shares[tile, : plan.share_bytes[tile]].tobytes()
        out[tile] = table[tile].tobytes() + plan.maps.get(tile, b"") + share
    return out


def tile_digests(
    canvas: Canvas, pixels: Frame, grid: Grid, key: bytes, which: Iterable[int],
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
