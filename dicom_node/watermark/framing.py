"""A frame made ready for embedding or reading: its value lattice, its tiles, its digests."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.watermark import kernels
from dicom_node.watermark.lanes import keyed_blake2b, sha3_256_of_two
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
    within,
)

Side = NDArray[np.uint32]
COMPACT_MAC_BYTES = 16
# The smallest side a frame may have: below it a tile has no inside to predict from.
MIN_SIDE_PX = 8
_FORMS = {1: "<i2", 2: "<u2", 3: "<i4"}  # of samples, by their code
_TILE_HEAD = struct.Struct("<6I")
_TOGETHER = 64  # tiles digested at once: half a megabyte


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
    state = hashlib.sha3_256()
    for piece in _digested(host, side):
        state.update(piece)
    return state.digest()


def frame_digests(
    first: tuple[Frame, Side | None], second: tuple[Frame, Side | None]
) -> tuple[bytes, bytes]:
    """Return `frame_digest` of two frames, host and side planes of each, in half the time."""
    return sha3_256_of_two(_digested(*first), _digested(*second))


def _digested(host: Frame, side: Side | None) -> list[bytes | memoryview]:
    """Return what the digest of a frame is over, in pieces."""
    planes = 0 if side is None else side.shape[2]
    host = np.require(host, np.int32, ("C", "W"))
    code = _form(*kernels.extremes(host))
    narrow = np.ascontiguousarray(host, _FORMS[code])
    shape = struct.pack("<IIIB", host.shape[0], host.shape[1], planes, code)
    pieces: list[bytes | memoryview] = [b"dicom-node frame 1", shape, narrow.data]
    if side is not None:
        pieces.append(np.ascontiguousarray(side, "<u4").data)
    return pieces


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


def _form(low: int, high: int) -> int:
    """Return the code of the narrowest samples that hold ``low..high``."""
    if low >= -(1 << 15) and high < 1 << 15:
        return 1
    return 2 if low >= 0 and high < 1 << 16 else 3


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
        value = _commonest(np.array([self.host[b.row, b.column] for b in boxes]))
        return self.inert(grid, value), value

    def bare_tiles(self, grid: Grid) -> tuple[NDArray[np.bool_], int]:
        """Return the tiles that are one value throughout, sides 0, and that value.

        The value is that of most tiles' first pixels: what surrounds the patient.
        """
        value = _commonest(self.host[:: grid.tile_rows, :: grid.tile_columns])
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


def _commonest(samples: NDArray[np.int32]) -> int:
    values, counts = np.unique(samples, return_counts=True)
    return int(values[counts.argmax()])


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
    size, width = 4 * table.shape[1], shares.shape[1]
    headers, carried, lengths = table.tobytes(), shares.tobytes(), plan.share_bytes.tolist()
    out = {}
    for tile in tiles:
        share = carried[tile * width : tile * width + min(lengths[tile], width)]
        map_ = plan.maps.get(tile, b"")
        out[tile] = headers[tile * size : (tile + 1) * size] + map_ + share
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
    groups: dict[int, list[int]] = {}
    for tile in which:
        groups.setdefault(len(said.get(tile, b"")), []).append(tile)
    samples = _FORMS[_form(canvas.bounds.low, canvas.bounds.high)]
    side = None if canvas.side is None else np.ascontiguousarray(canvas.side, "<u4")
    planes = 0 if side is None else side.shape[2]
    out: dict[int, bytes] = {}
    for length, alike in groups.items():
        for first in range(0, len(alike), _TOGETHER):
            some = alike[first : first + _TOGETHER]
            told = b"".join(
                _TILE_HEAD.pack(t, grid.rows, grid.columns, grid.size_code, planes, length)
                + said.get(t, b"")
                for t in some
            )
            heads = np.frombuffer(told, np.uint8).reshape(len(some), -1)
            rows = [heads, _bytes_of(pixels, samples, grid, some)]
            if side is not None:
                rows.append(_bytes_of(side, "<u4", grid, some))
            messages = np.concatenate(rows, axis=1)
            digests = keyed_blake2b(messages, key=key, digest_size=size, person=b"dcmnode-tile")
            out.update(zip(some, digests, strict=True))
    return out


def _bytes_of(plane: NDArray[Any], samples: str, grid: Grid, tiles: list[int]) -> NDArray[np.uint8]:
    """Return the samples of some tiles, zeros where they pass the frame's edge, a row of each."""
    shape = (len(tiles), grid.tile_rows, grid.tile_columns, *plane.shape[2:])
    out = np.empty(shape, samples) if grid.spare == (0, 0) else np.zeros(shape, samples)
    for place, tile in enumerate(tiles):
        row, column, rows, columns = grid.box(tile)
        out[place, :rows, :columns] = plane[row : row + rows, column : column + columns]
    return out.reshape(len(tiles), -1).view(np.uint8)
