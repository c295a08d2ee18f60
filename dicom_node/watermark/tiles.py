"""Tiles of a frame, and their checkerboard lattices.

A frame is covered by ``down x across`` equal tiles. Their size is chosen near the nominal one so
that little is left over; the last row and column of tiles may be cut short by the frame's edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.watermark import kernels
from dicom_node.watermark.box import Box

Frame = NDArray[np.int32]
WHOLE = 0
# Nominal tile sizes by their code in the tile header; WHOLE is the frame as one tile.
SIZES_PX = (64, 128, 256, WHOLE)
_SAMPLE_STRIDE = 67


@dataclass(frozen=True)
class Bounds:
    """Stored values the host plane may take: ``low..high``, and the padding range left alone."""

    low: int
    high: int
    padding: tuple[int, int] | None = None


@dataclass(frozen=True)
class Grid:
    """How a frame of ``(rows, columns)`` is tiled."""

    rows: int
    columns: int
    size_code: int
    tile_rows: int
    tile_columns: int

    @property
    def down(self) -> int:
        """Rows of tiles."""
        return -(-self.rows // self.tile_rows)

    @property
    def across(self) -> int:
        """Columns of tiles."""
        return -(-self.columns // self.tile_columns)

    @property
    def count(self) -> int:
        """Number of tiles, counted row by row."""
        return self.down * self.across

    @property
    def spare(self) -> tuple[int, int]:
        """Rows and columns by which the tiles reach past the frame."""
        return (
            self.down * self.tile_rows - self.rows,
            self.across * self.tile_columns - self.columns,
        )

    def box(self, tile: int) -> Box:
        """Return where tile number `tile` lies."""
        row = tile // self.across * self.tile_rows
        column = tile % self.across * self.tile_columns
        return Box(
            row,
            column,
            min(self.tile_rows, self.rows - row),
            min(self.tile_columns, self.columns - column),
        )


@lru_cache(maxsize=256)
def _side(length: int, nominal: int) -> int:
    """Return the even tile side nearest `nominal` that leaves the least over."""
    whole = length + length % 2
    if nominal == WHOLE or length < nominal * 3 // 2:
        return whole

    def waste(side: int) -> tuple[int, int]:
        spare = -length % side
        # An edge tile one pixel thin would have no neighbours to predict from.
        thin = length if spare == side - 1 else 0
        return spare + thin, abs(side - nominal)

    return min(range(nominal * 3 // 4, nominal * 5 // 4 + 1, 2), key=waste)


def grid_of(rows: int, columns: int, size_code: int) -> Grid:
    """Return the grid of a ``(rows, columns)`` frame for ``SIZES_PX[size_code]``."""
    nominal = SIZES_PX[size_code]
    return Grid(rows, columns, size_code, _side(rows, nominal), _side(columns, nominal))


def split(plane: NDArray[np.generic], grid: Grid) -> NDArray[np.generic]:
    """Return the tiles of `plane` ``(rows, columns[, n])``; zeros where they pass the edge.

    Returns
    -------
    numpy.ndarray
        ``(tiles, tile_rows, tile_columns[, n])``, contiguous.
    """
    below, right = grid.spare
    if below or right:
        plane = np.pad(plane, [(0, below), (0, right)] + [(0, 0)] * (plane.ndim - 2))
    shape = (grid.down, grid.tile_rows, grid.across, grid.tile_columns, *plane.shape[2:])
    tiles = np.ascontiguousarray(plane.reshape(shape).swapaxes(1, 2))
    return tiles.reshape(grid.count, grid.tile_rows, grid.tile_columns, *plane.shape[2:])


def within(plane: Frame, low: int, high: int) -> NDArray[np.bool_] | None:
    """Return which values are in ``low..high``; None if none is."""
    out = np.empty(plane.shape, np.bool_)
    span = np.array((-(1 << 31), 1 << 31, low, high), np.int64)
    return out if kernels.outside(plane, span, out) else None


def all_within(plane: Frame, low: int, high: int, grid: Grid) -> NDArray[np.bool_]:
    """Return the tiles whose every pixel inside the frame is in ``low..high``, ``(tiles,)``."""
    out = np.empty((grid.down, grid.across), np.bool_)
    kernels.whole_tiles(plane, low, high, grid.tile_rows, grid.tile_columns, out)
    return out.reshape(-1)


@dataclass
class Lattices:
    """Black and white pixels of every tile, the two colours of a checkerboard.

    Attributes
    ----------
    black, white
        ``(tiles, tile_rows, tile_columns / 2)`` int32: black has the even columns of even rows and
        the odd columns of odd rows, white the others. So a pixel's upper and lower neighbours have
        its own last index, and one of the two beside it as well.
    fixed_black, fixed_white
        Same shape, True where a pixel is never changed.
    has_fixed
        Whether there is such a pixel.
    """

    grid: Grid
    black: NDArray[np.int32]
    white: NDArray[np.int32]
    fixed_black: NDArray[np.bool_]
    fixed_white: NDArray[np.bool_]
    has_fixed: bool

    @property
    def count(self) -> int:
        """Tiles held."""
        return int(self.black.shape[0])

    @property
    def hosts(self) -> int:
        """Pixels of one colour in a tile."""
        return int(self.black[0].size)

    @property
    def edges(self) -> NDArray[np.int64]:
        """Rows and columns past the frame, tiles down and across, as the kernels take them."""
        return np.array((*self.grid.spare, self.grid.down, self.grid.across), np.int64)

    def free(self, *, black: bool) -> NDArray[np.int64]:
        """Return how many pixels of one colour may change, ``(tiles,)``."""
        out = np.full(self.count, self.hosts, np.int64)
        if self.has_fixed:
            kernels.count_free(self.flat(self.fixed_black if black else self.fixed_white), out)
        return out

    def flat(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return one of the arrays as ``(tiles, hosts)``."""
        return values.reshape(self.count, -1)


def lattices(plane: Frame, fixed: NDArray[np.bool_] | None, grid: Grid) -> Lattices:
    """Split `plane` ``(rows, columns)`` into the checkerboards of its tiles."""
    shape = (grid.count, grid.tile_rows, grid.tile_columns // 2)
    black, white = np.empty(shape, np.int32), np.empty(shape, np.int32)
    held_black, held_white = np.empty(shape, np.bool_), np.empty(shape, np.bool_)
    has_fixed = grid.spare != (0, 0) or (fixed is not None and bool(fixed.any()))
    mask = np.zeros(plane.shape, np.bool_) if fixed is None else fixed
    kernels.split_colours(plane, mask, grid.across, black, white, held_black, held_white)
    return Lattices(grid, black, white, held_black, held_white, has_fixed)


def join(parts: Lattices) -> Frame:
    """Return the frame ``(rows, columns)`` int32 that the lattices of all tiles make."""
    grid = parts.grid
    plane = np.empty((grid.rows, grid.columns), np.int32)
    kernels.join_colours(parts.black, parts.white, grid.across, plane)
    return plane


@dataclass(frozen=True)
class Lattice1D:
    """Values an image really uses: ``offset + k * step``. Embedding works on k."""

    step: int
    offset: int

    def to_k(self, plane: Frame) -> Frame:
        """Return k of every pixel, rounded down where a pixel is off the lattice."""
        if self.step == 1:
            return plane
        return (plane - np.int32(self.offset)) // np.int32(self.step)

    def from_k(self, plane: Frame) -> Frame:
        """Return the stored values of k."""
        if self.step == 1:
            return plane
        return plane * np.int32(self.step) + np.int32(self.offset)

    def off(self, plane: Frame) -> NDArray[np.bool_]:
        """Return which pixels are not on the lattice."""
        return np.asarray((plane - np.int32(self.offset)) % np.int32(self.step) != 0)


UNIT = Lattice1D(1, 0)


def find_gap(plane: Frame, padded: NDArray[np.bool_] | None, grid: Grid) -> Lattice1D:
    """Return the value lattice that most tiles of `plane` lie on; UNIT if there is no gap.

    The majority decides, so that a local change to a marked frame does not hide it in the others.
    """
    flat = np.asarray(split(plane, grid), np.int32).reshape(grid.count, -1)
    use = None if padded is None else ~split(padded, grid).reshape(grid.count, -1).astype(np.bool_)
    if grid.spare != (0, 0):
        inside = split(np.ones(plane.shape, np.bool_), grid).reshape(grid.count, -1)
        use = inside.astype(np.bool_) if use is None else use & inside.astype(np.bool_)
    start = np.zeros(grid.count, np.intp) if use is None else use.argmax(axis=1)
    first = flat[np.arange(grid.count), start][:, None]
    # Nearly every image shows step 1 within a few dozen pixels of most tiles.
    stride = max(1, flat.shape[1] // 61)
    for step in (stride, 1) if stride > 1 else (1,):
        some = (flat[:, ::step] - first).astype(np.int64)
        if use is not None:
            some = np.where(use[:, ::step], some, 0)
        gaps = np.gcd.reduce(some, axis=1)
        kinds, counts = np.unique(gaps[gaps > 0], return_counts=True)
        if kinds.size and kinds[counts.argmax()] == 1:
            return UNIT
    if not kinds.size:
        return UNIT
    gap = int(kinds[counts.argmax()])
    residues, counts = np.unique((first % gap)[gaps > 0], return_counts=True)
    return Lattice1D(gap, int(residues[counts.argmax()]))


def mostly_unit(plane: Frame, padding: tuple[int, int] | None, grid: Grid) -> bool:
    """Whether a few pixels show already that most tiles lie on no lattice: nearly every image.

    More than half of the tiles, so that `find_gap` could not come to another majority; `padding`
    is the range of values that do not count.
    """
    out = np.empty((grid.down, grid.across), np.int64)
    skipped = np.array(padding or (1, 0), np.int64)
    kernels.gaps(plane, skipped, grid.tile_rows, grid.tile_columns, _SAMPLE_STRIDE, out)
    return 2 * int(np.count_nonzero(out == 1)) > grid.count


def exact_gap(plane: Frame, padded: NDArray[np.bool_] | None) -> Lattice1D:
    """Return the value lattice that every pixel of `plane` outside the padding lies on."""
    values = plane.reshape(-1) if padded is None else plane[~padded]
    if not values.size:
        return UNIT
    reference = int(values[0])
    gap = int(np.gcd.reduce(values[:: max(1, values.size // 509)].astype(np.int64) - reference))
    if gap == 1:
        return UNIT
    gap = int(np.gcd.reduce(values.astype(np.int64) - reference))
    return UNIT if gap <= 1 else Lattice1D(gap, reference % gap)
