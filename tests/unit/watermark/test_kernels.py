"""Every compiled loop says what a short numpy reference says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.watermark import counting, erasure, kernels, layers
from dicom_node.watermark.kernels import BOTH, DOWN, UP
from dicom_node.watermark.parameters import THRESHOLDS
from dicom_node.watermark.tiles import Grid, grid_of, lattices

FEW = settings(max_examples=25)
seeds = st.integers(0, 10**6)
sides = st.integers(8, 70)
HOLES = [(1, 0), (-40, -38), (20, 21)]


def _plane(rows: int, columns: int, seed: int, reach: int = 300) -> Any:
    rng = np.random.default_rng(seed)
    smooth = (
        rng.integers(-reach, reach, (rows // 8 + 2, columns // 8 + 2)).repeat(8, 0).repeat(8, 1)
    )
    noise = rng.integers(-6, 7, (rows, columns))
    return (smooth[:rows, :columns] // 4 + noise).astype(np.int32)


def _colour_of(grid: Grid, row: int, column: int) -> tuple[int, int, int, bool]:
    """Tile, row and place in the tile of a frame's pixel, and whether it is black."""
    tile = row // grid.tile_rows * grid.across + column // grid.tile_columns
    r, c = row % grid.tile_rows, column % grid.tile_columns
    return tile, r, c // 2, (r + c) % 2 == 0


def _room(values: Any, span: tuple[int, int, int, int]) -> tuple[Any, Any]:
    low, high, first, last = span
    hole = first <= last
    up = np.where(hole & (values < first), first - 1, high) - values
    down = values - np.where(hole & (values > last), last + 1, low)
    return up, down


@st.composite
def layer(draw: st.DrawFn) -> dict[str, Any]:
    """One colour of five tiles with a prediction, and how three of them are to be embedded in."""
    rng = np.random.default_rng(draw(seeds))
    hosts = draw(st.integers(1, 120))
    predicted = rng.integers(-90, 90, (5, hosts)).astype(np.int32)
    spread = draw(st.sampled_from([0, 1, 4, 30]))
    values = predicted + rng.integers(-spread, spread + 1, (5, hosts)).astype(np.int32)
    rules = np.stack([
        rng.choice(THRESHOLDS[:9], 3), rng.integers(0, 3, 3), rng.integers(0, 32, 3),
        rng.integers(0, 2, 3),
    ], axis=1).astype(np.int64)  # fmt: skip
    need = rng.integers(0, hosts + 2, 3)
    start = rng.integers(0, 4, 3)
    return {
        "values": values.astype(np.int32), "predicted": predicted,
        "classes": rng.integers(0, 32, (5, hosts)).astype(np.uint8),
        "held": rng.random((5, hosts)) < draw(st.sampled_from([0.0, 0.3])),
        "which": rng.permutation(5)[:3], "rules": rules,
        "span": np.array((-100, 101, *draw(st.sampled_from(HOLES))), np.int64),
        "skip": rng.integers(0, 9, 3), "bits": rng.integers(0, 2, (3, 150)).astype(np.uint8),
        "start": start, "need": need,
    }  # fmt: skip


def _hosts(case: dict[str, Any], i: int) -> Any:
    """Pixels of a tile that the rules let move, and their errors."""
    t, (threshold, mode, limit, by_value) = case["which"][i], case["rules"][i]
    values, free = case["values"][t].astype(int), ~case["held"][t]
    error = values - case["predicted"][t] - (mode == DOWN)
    hosts = free & (np.cumsum(free) > case["skip"][i]) & (case["classes"][t] <= limit)
    hosts &= (mode == BOTH) | ((error < 0) == (mode == DOWN))
    up, down = _room(values, tuple(case["span"]))
    cramped = ((mode != DOWN) & (up < threshold)) | ((mode != UP) & (down < threshold))
    return hosts & ~cramped if by_value else hosts, error


@given(layer())
@FEW
def test_a_layer_goes_in_as_histogram_shifting_says(case: dict[str, Any]) -> None:
    before = {name: array.copy() for name, array in case.items()}
    found = layers.embed_layer(*case.values())
    expected = before["values"].copy()
    for i, t in enumerate(before["which"]):
        threshold = int(before["rules"][i, 0])
        hosts, error = _hosts(before, i)
        carriers = np.flatnonzero(hosts & (error >= -threshold) & (error < threshold))
        need = int(before["need"][i])
        used = carriers[:need]
        end = 0 if need == 0 else error.size if used.size < need else used[-1] + 1
        shift = np.where(error >= 0, threshold, -threshold)
        moved = np.flatnonzero(hosts[:end])
        expected[t, moved] += shift[moved].astype(np.int32)
        bits = before["bits"][i, before["start"][i] :][: used.size]
        expected[t, used] = before["values"][t, used] + error[used] + bits
        assert found[i] == used.size
    assert (case["values"] == expected).all()


@given(layer())
@FEW
def test_what_went_into_a_layer_comes_out_and_leaves_no_trace(case: dict[str, Any]) -> None:
    case["rules"][:, 3] = 0
    original, stream = case["values"].copy(), case["bits"].copy()
    found = layers.embed_layer(*case.values())
    case["bits"][:] = 7
    span = np.array((-(1 << 20), 1 << 20, 1, 0), np.int64)
    sound = layers.extract_layer(*(case | {"span": span}).values())
    for i, t in enumerate(case["which"]):
        whole = found[i] == case["need"][i]
        if whole:
            assert sound[i]
            assert (case["values"][t] == original[t]).all()
            place = slice(case["start"][i], case["start"][i] + case["need"][i])
            assert (case["bits"][i, place] == stream[i, place]).all()


@given(layer(), st.integers(0, 1))
@FEW
def test_histograms_rooms_and_carriers_are_counted(case: dict[str, Any], lower: int) -> None:
    counts = np.empty((5, 32, 2, counting.STEPS + 1), np.int32)
    values, held, which = case["values"], case["held"], case["which"]
    counting.count(values, case["predicted"], case["classes"], held, which, lower, counts)
    up, down = np.zeros(5, np.int64), np.zeros(5, np.int64)
    counting.rooms(values, held, which, case["span"], up, down)
    offers = np.empty((3, 3, counting.STEPS), np.int64)
    counting.offers(values, case["predicted"], held, which, offers)
    found = counting.carriers(values, case["predicted"], held, which, case["rules"],
                              case["span"], case["skip"])  # fmt: skip
    case["classes"][:] = 0
    for i, t in enumerate(which):
        free = ~held[t]
        error = (values[t] - case["predicted"][t])[free] - lower
        level = np.searchsorted(THRESHOLDS, np.where(error < 0, ~error, error), side="right")
        for side in (0, 1):
            assert (
                counts[t, :, side].sum(axis=0)
                == np.bincount(level[(error < 0) == side], minlength=25)
            ).all()
        for mode in (BOTH, UP, DOWN):
            e = (values[t] - case["predicted"][t])[free] - (mode == DOWN)
            e = e[(mode == BOTH) | ((e < 0) == (mode == DOWN))]
            assert [((e >= -x) & (e < x)).sum() for x in THRESHOLDS] == offers[i, mode].tolist()
        outside = (values[t] < case["span"][2]) | (values[t] > case["span"][3])
        if free.any() and outside[free].all():
            rise, fall = _room(values[t][free].astype(int), tuple(case["span"]))
            assert (up[t], down[t]) == (rise.min(), fall.min())
        hosts, error = _hosts(case, i)
        threshold = case["rules"][i, 0]
        assert found[i] == (hosts & (error >= -threshold) & (error < threshold)).sum()


@given(layer(), st.integers(1, 60), st.integers(1, 24), st.sampled_from([BOTH, UP, DOWN]))
@FEW
def test_the_cheapest_limit_and_threshold_are_picked(
    case: dict[str, Any], need: int, steps: int, mode: int
) -> None:
    counts = np.empty((5, 32, 2, counting.STEPS + 1), np.int32)
    counting.count(case["values"], case["predicted"], case["classes"], case["held"],
                   case["which"], int(mode == DOWN), counts)  # fmt: skip
    best, chosen = np.full(3, np.inf, np.float32), np.zeros((3, 3), np.int64)
    room = np.array([5, 40, 10**6])
    counting.pick(counts, case["which"], need, steps, mode, room, best, chosen)
    low, high = np.array((0, *THRESHOLDS[:-1])), np.array(THRESHOLDS) - 1
    mean = (low**2 + low * high + high**2) / 3 + (low + high) / 2 + 0.5
    for i, t in enumerate(case["which"]):
        costs = {}
        for limit in range(32):
            table = counts[t, : limit + 1, [0, 1] if mode == BOTH else mode - 1]
            table = table.reshape(-1, counting.STEPS + 1).sum(axis=0)
            for step in range(steps):
                bits = table[: step + 1].sum()
                if bits >= need and THRESHOLDS[step] <= room[i]:
                    harm = float(table[: step + 1] @ mean[: step + 1])
                    harm += table[step + 1 :].sum() * THRESHOLDS[step] ** 2
                    costs[limit, step] = harm * need / bits
        if not costs:
            assert np.isinf(best[i])
            continue
        assert chosen[i, 0] == mode
        assert costs[int(chosen[i, 1]), int(chosen[i, 2])] <= min(costs.values()) * (1 + 1e-5)


@given(sides, sides, st.integers(0, 3), seeds, st.booleans())
@FEW
def test_tiles_and_their_fixed_pixels_stand_where_the_checkerboard_says(
    rows: int, columns: int, code: int, seed: int, masked: bool
) -> None:
    plane, grid = _plane(rows, columns, seed), grid_of(rows, columns, code)
    fixed = np.random.default_rng(seed).random(plane.shape) < 0.2 if masked else None
    parts = lattices(plane, fixed, grid)
    seen = 0
    for row in range(rows):
        for column in range(columns):
            tile, r, place, black = _colour_of(grid, row, column)
            values = parts.black if black else parts.white
            held = parts.fixed_black if black else parts.fixed_white
            assert values[tile, r, place] == plane[row, column]
            assert held[tile, r, place] == (fixed is not None and fixed[row, column])
            seen += not held[tile, r, place]
    assert seen == (~parts.fixed_black).sum() + (~parts.fixed_white).sum()
    assert parts.free(black=True).sum() + parts.free(black=False).sum() == seen


@given(sides, sides, st.integers(0, 3), seeds, st.booleans(), st.integers(0, 60))
@FEW
def test_prediction_is_the_rhombus_mean_within_the_tile_and_the_frame(
    rows: int, columns: int, code: int, seed: int, of_black: bool, clear: int
) -> None:
    plane, grid = _plane(rows, columns, seed), grid_of(rows, columns, code)
    parts = lattices(plane, None, grid)
    predicted = np.zeros((grid.count, parts.hosts), np.int32)
    classes = np.zeros((grid.count, parts.hosts), np.uint8)
    other = parts.white if of_black else parts.black
    fixed = parts.fixed_white if of_black else parts.fixed_black
    kernels.predict(other, fixed, np.arange(grid.count), parts.edges, of_black, clear,
                    np.zeros(grid.count, np.bool_), predicted, classes)  # fmt: skip
    for tile in range(grid.count):
        box = grid.box(tile)
        seen = plane[box.row : box.row + box.rows, box.column : box.column + box.columns].copy()
        y, x = np.nonzero(np.indices(seen.shape).sum(axis=0) % 2 == int(of_black))
        seen[y[:clear], x[:clear]] &= ~1
        for r in range(box.rows):
            for c in range(box.columns):
                if ((r + c) % 2 == 0) != of_black:
                    continue
                pairs = [((r - 1, c), (r + 1, c)), ((r, c - 1), (r, c + 1))]
                near = []
                for a, b in pairs:
                    inside = [p for p in (a, b) if 0 <= p[0] < box.rows and 0 <= p[1] < box.columns]
                    near += [int(seen[p]) for p in (inside * 2)[:2]]
                place = r * (grid.tile_columns // 2) + c // 2
                assert predicted[tile, place] == (sum(near) + 2) >> 2
                spread = max(near) - min(near)
                step = int(np.searchsorted(THRESHOLDS, spread, side="right"))
                assert classes[tile, place] == min(step, 31)


@given(sides, sides, st.integers(0, 3), seeds)
@FEW
def test_parameters_stand_in_the_first_free_white_pixels(
    rows: int, columns: int, code: int, seed: int
) -> None:
    plane, grid = _plane(rows, columns, seed), grid_of(rows, columns, code)
    rng = np.random.default_rng(seed)
    fixed = rng.random(plane.shape) < rng.choice([0, 0.5, 0.95])
    words = np.empty((grid.down, grid.across), np.uint64)
    kernels.header_words(plane, fixed, grid.tile_rows, grid.tile_columns, 53, words)
    parts = lattices(plane, fixed, grid)
    white, held = parts.flat(parts.white), parts.flat(parts.fixed_white)
    tile = int(rng.integers(grid.count))
    free = np.flatnonzero(~held[tile])
    expected = 0
    if free.size >= 53:
        expected = int("1" + "".join(str(v & 1) for v in white[tile, free[:53]]), 2)
    assert int(words.reshape(-1)[tile]) == expected
    count = min(40, free.size)
    before, old = white.copy(), np.zeros((1, 40), np.uint8)
    which, counts = np.array([tile]), np.array([count])
    kernels.take_bits(white, held, which, counts, True, old)
    assert (white[tile, free[:count]] == before[tile, free[:count]] & ~1).all()
    kernels.put_bits(white, held, which, counts, old)
    assert (white == before).all()


@given(sides, sides, seeds, st.sampled_from(HOLES), st.integers(2, 30), st.integers(2, 30))
@FEW
def test_masks_extremes_and_gaps_are_those_of_numpy(
    rows: int, columns: int, seed: int, hole: tuple[int, int], tall: int, wide: int
) -> None:
    plane = _plane(rows, columns, seed, 90)
    plane[: rows // 2] = plane[: rows // 2] // 6 * 6
    out = np.empty(plane.shape, np.bool_)
    found = kernels.outside(plane, np.array((-60, 70, *hole), np.int64), out)
    expected = (plane < -60) | (plane > 70) | ((plane >= hole[0]) & (plane <= hole[1]))
    assert (out == expected).all()
    assert found == expected.any()
    assert kernels.extremes(plane) == (plane.min(), plane.max())
    down, across = -(-rows // tall), -(-columns // wide)
    whole, gaps = np.empty((down, across), np.bool_), np.empty((down, across), np.int64)
    kernels.whole_tiles(plane, -20, 20, tall, wide, whole)
    kernels.gaps(plane, np.array(hole, np.int64), tall, wide, 1, gaps)
    for i in range(down):
        for j in range(across):
            tile = plane[i * tall : (i + 1) * tall, j * wide : (j + 1) * wide]
            assert whole[i, j] == ((tile >= -20) & (tile <= 20)).all()
            use = tile[(tile < hole[0]) | (tile > hole[1])].astype(np.int64)
            assert gaps[i, j] == (np.gcd.reduce(use - use[0]) if use.size else 0)


@pytest.mark.parametrize(("m", "k", "width"), [(1, 1, 1), (13, 51, 40), (40, 3, 7)])
def test_products_over_the_field_are_sums_of_products(m: int, k: int, width: int) -> None:
    rng = np.random.default_rng(m)
    a, b = (rng.integers(0, 256, shape).astype(np.uint8) for shape in ((m, k), (k, width)))
    table = erasure._MUL[a[:, :, None], b[None, :, :]]
    assert (erasure._matmul(a, b) == np.bitwise_xor.reduce(table, axis=1)).all()


@given(layer(), st.integers(1, 20), st.integers(1, 12))
@FEW
def test_saturated_pixels_stay_and_nothing_may_land_among_them(
    case: dict[str, Any], need: int, steps: int
) -> None:
    case["classes"] = (case["classes"] // 8).astype(np.uint8)
    chosen = np.zeros((3, 3), np.int64)
    arrays = [case[name] for name in ("values", "predicted", "classes", "held", "which")]
    done = counting.pick_by_value(*arrays, need, steps, case["span"], chosen)
    for i, t in enumerate(case["which"]):
        values = case["values"][t].astype(int)
        up, down = _room(values, tuple(case["span"]))
        expected = None
        for step, mode in ((s, m) for s in range(steps) for m in (BOTH, UP, DOWN)):
            threshold = THRESHOLDS[step]
            error = values - case["predicted"][t] - (mode == DOWN)
            room = np.where(error < 0, down, up)
            stays = ((mode != DOWN) & (up < threshold)) | ((mode != UP) & (down < threshold))
            moves = ~case["held"][t] & ~stays & ((mode == BOTH) | ((error < 0) == (mode == DOWN)))
            lands = moves & (room < 2 * threshold)
            carries = moves & (error >= -threshold) & (error < threshold)
            for limit in range(32):
                inside = case["classes"][t] <= limit
                if (carries & inside).sum() >= need and not (lands & inside).any():
                    expected = expected or (mode, limit, step)
        assert done[i] == (expected is not None)
        if expected:
            assert tuple(chosen[i]) == expected
