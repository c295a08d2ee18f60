"""A frame made ready for embedding or reading: its value lattice, its tiles, its digests."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dicom_node.watermark.parameters import Plan
from dicom_node.watermark.payload import MAC_BYTES
from dicom_node.watermark.reversible import Span
from dicom_node.watermark.tiles import (
    Bounds,
    Frame,
    Grid,
    Lattice1D,
    Lattices,
    grid_of,
    inside_of,
    lattices,
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
        if self.padded is None and not span.has_hole:
            low, high = int(self.scaled.min()), int(self.scaled.max())
            if low >= span.low and high <= span.high:
                return None
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
    first, last = sorted(bounds.padding)
    padded = (host >= first) & (host <= last)
    return padded if padded.any() else None


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
