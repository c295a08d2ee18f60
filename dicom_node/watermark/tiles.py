"""Tiles of a frame, and their checkerboard lattices.

A frame is covered by ``down x across`` equal tiles. Their size is chosen near the nominal one so
that little is left over; the last row and column of tiles may be cut short by the frame's edge.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.int32]
WHOLE = 0
# Nominal tile sizes by their code in the tile header; WHOLE is the frame as one tile.
SIZES_PX = (64, 128, 256, WHOLE)


class Box(NamedTuple):
    """A rectangle in frame pixels."""

    row: int
    column: int
    rows: int
    columns: int


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


def between(values: Frame, low: int, high: int) -> NDArray[np.bool_]:
    """Return which of int32 `values` are in ``low..high``: one comparison, the sign wraps round."""
    shifted = np.subtract(values, np.int32(low), dtype=np.int32).view(np.uint32)
    return np.asarray(shifted <= np.uint32(high - low))


def inside_of(mask: NDArray[np.bool_], grid: Grid) -> NDArray[np.bool_]:
    """Return the tiles in which `mask` holds for some pixel, ``(tiles,)``."""
    return np.asarray(split(mask, grid).reshape(grid.count, -1).astype(np.bool_).any(axis=1))


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
        Same shape, True where a pixel is never changed; None where there is no such pixel.
    tiles
        ``(tiles,)`` their numbers in the grid.
    forecast
        Prediction and activity class of black, ``(tiles, hosts)`` each, kept from planning.
    """

    grid: Grid
    black: NDArray[np.int32]
    white: NDArray[np.int32]
    fixed_black: NDArray[np.bool_] | None = None
    fixed_white: NDArray[np.bool_] | None = None
    tiles: NDArray[np.intp] = field(default_factory=lambda: np.zeros(0, np.intp))
    forecast: tuple[NDArray[np.int32], NDArray[np.int32]] | None = None

    @property
    def count(self) -> int:
        """Tiles held."""
        return int(self.black.shape[0])

    def subset(self, chosen: NDArray[np.intp]) -> Lattices:
        """Return copies of the `chosen` tiles (positions in this object)."""
        black, white = self.fixed_black, self.fixed_white
        return Lattices(
            self.grid,
            self.black[chosen],
            self.white[chosen],
            None if black is None else black[chosen],
            None if white is None else white[chosen],
            self.tiles[chosen],
            None if self.forecast is None else (self.forecast[0][chosen], self.forecast[1][chosen]),
        )

    def remember(self, chosen: NDArray[np.intp], other: Lattices) -> None:
        """Take over the forecast of `other`, the subset of the `chosen` tiles."""
        if other.forecast is None:
            return
        if self.forecast is None:
            hosts = (self.count, self.black[0].size)
            self.forecast = (np.zeros(hosts, np.int32), np.zeros(hosts, np.int32))
        for mine, its in zip(self.forecast, other.forecast, strict=True):
            mine[chosen] = its

    def mirror_edges(self, *, black: bool) -> None:
        """Refill what lies past the frame's edge, so that edge pixels see only their own frame.

        The first row past the edge repeats the row before the last: same colours, and to the
        predictor it means that the missing neighbour counts as its opposite.
        """
        values = self.black if black else self.white
        below, right = self.grid.spare
        if below:
            bottom = self.tiles >= (self.grid.down - 1) * self.grid.across
            row = self.grid.tile_rows - below
            values[bottom, row] = values[bottom, row - 2]
        if right:
            last = self.tiles % self.grid.across == self.grid.across - 1
            column = self.grid.tile_columns - right
            # Rows in which that column is of this colour.
            first = column % 2 if black else 1 - column % 2
            values[last, first::2, column // 2] = values[last, first::2, column // 2 - 1]


def _colour(plane: NDArray[np.generic], grid: Grid, colour: int) -> NDArray[np.generic]:
    """Return one colour (0 black, 1 white) of every tile, shaped as in `Lattices`."""
    width = grid.tile_columns // 2
    out = np.empty((grid.count, grid.tile_rows, width), plane.dtype)
    view = out.reshape(grid.down, grid.across, grid.tile_rows, width)
    for row in (0, 1):
        sub = plane[row::2, row ^ colour :: 2]
        sub = sub.reshape(grid.down, grid.tile_rows // 2, grid.across, width)
        view[:, :, row::2] = sub.swapaxes(1, 2)
    return out


def lattices(plane: Frame, fixed: NDArray[np.bool_] | None, grid: Grid) -> Lattices:
    """Split `plane` ``(rows, columns)`` into the checkerboards of its tiles."""
    below, right = grid.spare
    if below or right:
        if fixed is None:
            fixed = np.zeros(plane.shape, np.bool_)
        fixed = np.pad(fixed, ((0, below), (0, right)), constant_values=True)
        plane = np.pad(plane, ((0, below), (0, right)), mode="edge")
    made = Lattices(
        grid,
        _colour(plane, grid, 0).astype(np.int32, copy=False),
        _colour(plane, grid, 1).astype(np.int32, copy=False),
        tiles=np.arange(grid.count),
    )
    if fixed is not None and fixed.any():
        made.fixed_black = _colour(fixed, grid, 0).astype(np.bool_, copy=False)
        made.fixed_white = _colour(fixed, grid, 1).astype(np.bool_, copy=False)
    return made


def join(parts: Lattices) -> Frame:
    """Return the frame ``(rows, columns)`` int32 that the lattices of all tiles make."""
    grid = parts.grid
    width = grid.tile_columns // 2
    plane = np.empty((grid.down * grid.tile_rows, grid.across * grid.tile_columns), np.int32)
    for colour, values in enumerate((parts.black, parts.white)):
        view = values.reshape(grid.down, grid.across, grid.tile_rows, width)
        for row in (0, 1):
            sub = view[:, :, row::2].swapaxes(1, 2)
            plane[row::2, row ^ colour :: 2] = sub.reshape(-1, grid.across * width)
    return np.ascontiguousarray(plane[: grid.rows, : grid.columns])


def beside(other: NDArray[np.int32], *, of_black: bool) -> NDArray[np.int32]:
    """Return the horizontal neighbour whose last index differs from the pixel's own.

    Parameters
    ----------
    other
        The other colour's pixels, ``(tiles, tile_rows, w)``. At a tile's edge the missing neighbour
        is replaced by its opposite: no tile looks into another, so damage stays where it is.
    """
    out = np.empty_like(other)
    # Black starts even rows and so has its left neighbour one place before; white the odd ones.
    before, after = (0, 1) if of_black else (1, 0)
    out[:, before::2, 1:] = other[:, before::2, :-1]
    out[:, before::2, 0] = other[:, before::2, 0]
    out[:, after::2, :-1] = other[:, after::2, 1:]
    out[:, after::2, -1] = other[:, after::2, -1]
    return out


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


@lru_cache(maxsize=32)
def _sampled_places(grid: Grid) -> NDArray[np.intp]:
    """Return where about every 61st pixel of each tile stands in the frame, ``(tiles, n)``."""
    inside = np.arange(0, grid.tile_rows * grid.tile_columns, 67)
    rows, columns = np.divmod(inside, grid.tile_columns)
    tile = np.arange(grid.count)
    top = tile // grid.across * grid.tile_rows
    left = tile % grid.across * grid.tile_columns
    return np.asarray((top[:, None] + rows) * grid.columns + left[:, None] + columns)


def mostly_unit(plane: Frame, padding: tuple[int, int] | None, grid: Grid) -> bool:
    """Whether a few pixels show already that most tiles lie on no lattice: nearly every image.

    More than half of the tiles, so that `find_gap` could not come to another majority; `padding`
    is the range of values that do not count.
    """
    if grid.spare != (0, 0):
        return False
    some = np.take(plane, _sampled_places(grid))
    first = some[:, :1]
    if padding is not None:
        out = (some >= padding[0]) & (some <= padding[1])
        first = np.take_along_axis(some, out.argmin(axis=1)[:, None], axis=1)
        some = np.where(out, first, some)
    gaps = np.gcd.reduce(some - first, axis=1)
    return 2 * int(np.count_nonzero(gaps == 1)) > grid.count


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
