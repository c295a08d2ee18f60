"""Tiling and value lattices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.watermark import tiles

side_px = st.one_of(st.integers(8, 140), st.integers(8, 5000))


@given(side_px, side_px, st.integers(0, 3))
@settings(max_examples=200)
def test_boxes_cover_the_frame_once(rows: int, columns: int, code: int) -> None:
    grid = tiles.grid_of(rows, columns, code)
    boxes = [grid.box(i) for i in range(grid.count)]
    assert sum(box.rows * box.columns for box in boxes) == rows * columns
    assert min(min(box.rows, box.columns) for box in boxes) >= 2
    assert grid.tile_rows % 2 == grid.tile_columns % 2 == 0


@given(st.integers(8, 200), st.integers(8, 200), st.integers(0, 3))
@settings(max_examples=40)
def test_join_undoes_lattices(rows: int, columns: int, code: int) -> None:
    plane = np.random.default_rng(rows).integers(-999, 999, (rows, columns)).astype(np.int32)
    grid = tiles.grid_of(rows, columns, code)
    assert (tiles.join(tiles.lattices(plane, None, grid)) == plane).all()
    assert tiles.split(plane, grid).shape == (grid.count, grid.tile_rows, grid.tile_columns)


@pytest.mark.parametrize(("rows", "columns"), [(512, 512), (256, 256), (1024, 768), (320, 640)])
def test_usual_frames_have_tiles_of_64(rows: int, columns: int) -> None:
    grid = tiles.grid_of(rows, columns, 0)
    assert (grid.tile_rows, grid.tile_columns) == (64, 64)


@given(st.integers(2, 50), st.integers(-100, 100), st.integers(0, 99))
@settings(max_examples=40)
def test_gaps_are_found_in_spite_of_a_changed_tile(step: int, offset: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    plane = (rng.integers(0, 60, (128, 128)) * step + offset).astype(np.int32)
    expected = tiles.Lattice1D(step, offset % step)
    assert tiles.exact_gap(plane, None) == expected
    plane[70:90, 70:90] += 1
    assert tiles.find_gap(plane, None, tiles.grid_of(128, 128, 0)) == expected


def test_padding_does_not_hide_a_gap() -> None:
    plane = (np.arange(64 * 64).reshape(64, 64) * 4).astype(np.int32)
    plane[:20] = 7
    padded = plane == 7
    assert tiles.exact_gap(plane, padded).step == 4
    assert tiles.find_gap(plane, padded, tiles.grid_of(64, 64, 0)).step == 4
