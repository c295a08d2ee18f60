"""Choose, per tile, how to embed a stream of given length with the least distortion."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dicom_node.watermark import counting, kernels, layers
from dicom_node.watermark.counting import STEPS
from dicom_node.watermark.kernels import BOTH, CLASSES, DOWN, UP
from dicom_node.watermark.parameters import (
    ALL,
    BY_MAP,
    BY_VALUE,
    EXTENSION_BITS,
    HEADER_BITS,
    THRESHOLDS,
    Ints,
    Plan,
    pack_map,
)
from dicom_node.watermark.reversible import Forecast, Span, rules
from dicom_node.watermark.tiles import Lattices

_MODES = (BOTH, UP, DOWN)
# Streams of so many bits per black pixel, and thresholds from this step on, may do better with both
# colours.
_LONG, _HIGH_STEP = 0.25, 2
_FEW = 0.1
# Where so many of all pixels carry at the lowest threshold, none are skipped: a stream that lies
# close together costs the archive a tenth less, and the frame a thousandth of a grey level.
_DENSE = 0.35
# A second layer's room depends on the bits themselves; this much is kept back.
_SECOND_RESERVE = 1.1
_SECOND_RESERVE_BITS = 24


def _nothing(count: int) -> Ints:
    return np.zeros(count, np.int64)


class Survey:
    """What the tiles of a frame offer, computed when they are first asked for.

    Attributes
    ----------
    every_value
        Whether a step is one stored value, not one of the few that a frame makes use of.
    white
        ``(tiles,)`` how many white pixels may hold parameters.
    black, held
        ``(tiles, hosts)`` values of black, and which of them never change.
    """

    def __init__(self, parts: Lattices, span: Span, *, every_value: bool) -> None:
        self.parts, self.span, self.every_value = parts, span, every_value
        self.white = parts.free(black=False)
        self.black, self.held = parts.flat(parts.black), parts.flat(parts.fixed_black)
        self._fine = Forecast.blank(parts)
        self._counts = np.empty((parts.count, CLASSES, 2, STEPS + 1), np.int32)
        self._rooms = np.zeros((2, parts.count), np.int64)
        self._seen = np.zeros((2, parts.count), np.bool_)

    def forecast(self, which: Ints, *, coarse: bool = False) -> Forecast:
        """Return black as `embed_tiles` predicts it; `coarse`: with two layers, or a map."""
        made, seen = (self._coarse if coarse else self._fine), self._seen[int(coarse)]
        new = which[~seen[which]]
        if new.size:
            clear = 0 if coarse else HEADER_BITS
            made.look(self.parts, new, of_black=True, clear=clear, coarse=np.full(new.size, coarse))
            seen[new] = True
            if not coarse:
                self._count(made, new, 0, self._counts)
                counting.rooms(self.black, self.held, new, self.span.limits, *self._rooms)
        return made

    @cached_property
    def _coarse(self) -> Forecast:
        return Forecast.blank(self.parts)

    def spoil(self, which: Ints) -> None:
        """Forget what was forecast of some tiles: embedding them in two layers overwrites it."""
        self._seen[0, which] = False

    def renew(self, parts: Lattices) -> None:
        """Go on with `parts` as they were at first, for another attempt on the same tiles."""
        self.parts, self.black = parts, parts.flat(parts.black)

    def counts(self, which: Ints, *, lower: bool = False) -> NDArray[np.int32]:
        """Return the histograms of some tiles, see `counting.count`; of others, anything."""
        made = self.forecast(which)
        if not lower:
            return self._counts
        counts = np.empty_like(self._counts)
        self._count(made, which, 1, counts)
        return counts

    def _count(self, made: Forecast, which: Ints, lower: int, out: NDArray[np.int32]) -> None:
        counting.count(self.black, made.predicted, made.classes, self.held, which, lower, out)

    def rooms(self, which: Ints) -> tuple[Ints, Ints]:
        """Return how far all black pixels of some tiles may rise, and fall."""
        self.forecast(which)
        return self._rooms[0, which], self._rooms[1, which]

    def rooms_of_both(self, which: Ints) -> tuple[Ints, Ints]:
        """Return how far the pixels of both colours may rise, and fall."""
        parts, found = self.parts, np.zeros((2, self.parts.count), np.int64)
        white, fixed = parts.flat(parts.white), parts.flat(parts.fixed_white)
        counting.rooms(white, fixed, which, self.span.limits, *found)
        rise, fall = self.rooms(which)
        return np.minimum(rise, found[0, which]), np.minimum(fall, found[1, which])


def choose(
    survey: Survey, which: Ints, stream_bits: int, steps: int, *, thorough: bool = True
) -> tuple[Plan, NDArray[np.bool_]]:
    """Plan `stream_bits` (digest and share) into each of the tiles `which`.

    Parameters
    ----------
    steps
        Only the first `steps` of `THRESHOLDS` may be used: bounds the largest change.
    thorough
        False: a few tiles that do not fit the quick way are not worth the others.

    Returns
    -------
    tuple
        Plan (only the embedding part is filled in), and which tiles can hold that many bits.
    """
    plan = Plan.blank(which.size)
    possible = survey.white[which] >= HEADER_BITS
    if not possible.any():
        return plan, possible
    counts = survey.counts(which)
    up, down = survey.rooms(which)
    need = stream_bits + HEADER_BITS
    best = np.full(which.size, np.inf, np.float32)
    chosen = np.zeros((which.size, 3), np.int64)
    counting.pick(counts, which, need, steps, BOTH, np.minimum(up, down), best, chosen)
    counting.pick(counts, which, need, steps, UP, up, best, chosen)
    rest = np.flatnonzero(possible & ~np.isfinite(best))
    if rest.size:
        # Down has a prediction of its own; it is for tiles at the top of the range.
        lower, its_best, its = survey.counts(which[rest], lower=True), best[rest], chosen[rest]
        counting.pick(lower, which[rest], need, steps, DOWN, down[rest], its_best, its)
        best[rest], chosen[rest] = its_best, its
    done = possible & np.isfinite(best)
    plan.mode[:], plan.limit[:], plan.threshold[:] = chosen.T
    if survey.every_value:
        _close_up(counts[which], plan, need)
    _improve(survey, which, plan, np.flatnonzero(done), stream_bits)
    if not thorough and (possible & ~done).sum() <= _FEW * which.size:
        return plan, done
    # Where every pixel has room for every threshold, leaving some alone cannot help.
    tight = np.minimum(up, down) < THRESHOLDS[steps - 1]
    for attempt in (_choose_by_value, _choose_second, _choose_by_map):
        left = possible & ~done if attempt is _choose_second else possible & ~done & tight
        rest = np.flatnonzero(left)
        if not rest.size:
            continue
        another = Plan.blank(rest.size)
        fits = attempt(survey, which[rest], another, stream_bits, steps)
        plan.put(rest[fits], another.subset(np.flatnonzero(fits)))
        done[rest[fits]] = True
    return plan, done


def _close_up(counts: NDArray[np.int32], plan: Plan, need: int) -> None:
    """Skip no pixel for its surroundings where nearly all of them carry a bit."""
    free = counts.sum(axis=(1, 2, 3))
    lowest = counts[..., 0].sum(axis=1)
    carriers = np.where(plan.mode == BOTH, lowest.sum(axis=1), lowest[:, 0])
    dense = (plan.threshold == 0) & (plan.mode != DOWN)
    plan.limit[dense & (carriers >= np.maximum(need, _DENSE * free))] = CLASSES - 1


def _improve(
    survey: Survey, which: Ints, plan: Plan, chosen: NDArray[np.intp], stream_bits: int
) -> None:
    """Take both colours at a low threshold where black alone needs a high one for a long stream."""
    if stream_bits < _LONG * survey.parts.hosts:
        return
    crowded = chosen[plan.threshold[chosen] >= _HIGH_STEP]
    if not crowded.size:
        return
    # Twice the pixels at under 7/10 of the threshold change less in the mean square.
    for step in np.unique(plan.threshold[crowded]):
        some = crowded[plan.threshold[crowded] == step]
        most = int(np.searchsorted(THRESHOLDS, 0.6 * THRESHOLDS[step], side="right"))
        its = Plan.blank(some.size)
        fits = _choose_second(survey, which[some], its, stream_bits, most)
        plan.put(some[fits], its.subset(np.flatnonzero(fits)))


def _choose_by_value(
    survey: Survey, which: Ints, plan: Plan, stream_bits: int, steps: int
) -> NDArray[np.bool_]:
    """Saturated pixels stay; nothing that moves may come so near the end as to look like them."""
    made = survey.forecast(which)
    chosen = np.zeros((which.size, 3), np.int64)
    done = counting.pick_by_value(
        survey.black, made.predicted, made.classes, survey.held, which,
        stream_bits + HEADER_BITS, steps, survey.span.limits, chosen,
    )  # fmt: skip
    plan.spared[:] = BY_VALUE
    plan.mode[:], plan.limit[:], plan.threshold[:] = chosen.T
    return done


def _choose_second(
    survey: Survey, which: Ints, plan: Plan, stream_bits: int, steps: int
) -> NDArray[np.bool_]:
    """Use the white pixels, too: for tiles where black alone is too small."""
    need = stream_bits + HEADER_BITS + EXTENSION_BITS
    made = survey.forecast(which, coarse=True)
    offers = np.empty((which.size, len(_MODES), STEPS), np.int64)
    counting.offers(survey.black, made.predicted, survey.held, which, offers)
    up, down = survey.rooms_of_both(which)
    done = np.zeros(which.size, np.bool_)
    enough = survey.white[which] >= HEADER_BITS + EXTENSION_BITS
    t = np.array(THRESHOLDS[:steps])[None, :]
    # One mode a tile: both sides where there is room for both.
    rises, falls = up[:, None] >= t, down[:, None] >= t
    modes = np.where(rises & falls, BOTH, np.where(rises, UP, np.where(falls, DOWN, -1)))
    # White offers about what black does; only then is it worth trying.
    worth = offers[:, :, :steps].transpose(2, 1, 0) >= 0.48 * need
    worth &= (modes.T[:, None] == np.array(_MODES)[:, None]) & enough
    for step, mode in np.argwhere(worth.any(axis=2)):
        rest = np.flatnonzero(worth[step, mode] & ~done)
        if not rest.size:
            continue
        first = offers[rest, mode, step]
        second = np.maximum(need - first, 0)
        its = Plan.blank(rest.size)
        its.threshold[:], its.mode[:], its.limit[:] = step, mode, CLASSES - 1
        its.layers[:], its.second_bits[:] = 1, second
        offered = _second_capacity(survey, which[rest], its, first)
        fits = offered >= second * _SECOND_RESERVE + _SECOND_RESERVE_BITS
        plan.put(rest[fits], its.subset(np.flatnonzero(fits)))
        done[rest[fits]] = True
    return done


@lru_cache(maxsize=8)
def _some_bits(count: int) -> NDArray[np.uint8]:
    """Return random bits, always the same: of more of them, these are the first."""
    return np.random.default_rng(0).integers(0, 2, count, dtype=np.uint8)


def _second_capacity(survey: Survey, which: Ints, plan: Plan, first: Ints) -> Ints:
    """Return the carriers white would offer after black took random bits."""
    parts, limits, its = survey.parts, survey.span.limits, rules(plan)
    width = int(first.max())
    bits = _some_bits(1 << (which.size * width).bit_length())[: which.size * width]
    bits = bits.reshape(which.size, width).copy()
    made, none = survey.forecast(which, coarse=True), _nothing(which.size)
    # Only these tiles are looked at: the rest may hold anything.
    black = np.empty_like(survey.black)
    black[which] = survey.black[which]
    layers.embed_layer(black, made.predicted, made.classes, survey.held, which, its, limits,
                        none, bits, none, first)  # fmt: skip
    ahead = Forecast.blank(parts)
    kernels.predict(black.reshape(parts.black.shape), parts.fixed_black, which, parts.edges, False,
                    0, none != 0, ahead.predicted, ahead.classes)  # fmt: skip
    return counting.carriers(
        parts.flat(parts.white), ahead.predicted, parts.flat(parts.fixed_white), which, its,
        limits, plan.region_bits(),
    )  # fmt: skip


def _choose_by_map(
    survey: Survey, which: Ints, plan: Plan, stream_bits: int, steps: int
) -> NDArray[np.bool_]:
    """Leave cramped pixels alone by a compressed map that goes with the parameters: last of all."""
    made, limits = survey.forecast(which, coarse=True), survey.span.limits
    need = stream_bits + HEADER_BITS + EXTENSION_BITS
    done = np.zeros(which.size, np.bool_)
    trial = Plan.blank(which.size)
    trial.spared[:] = BY_VALUE
    for step, threshold in enumerate(THRESHOLDS[:steps]):
        for mode in _MODES:
            trial.threshold[:], trial.mode[:] = step, mode
            bits = counting.carriers(survey.black, made.predicted, survey.held, which,
                                     rules(trial), limits, _nothing(which.size))  # fmt: skip
            some = np.flatnonzero(~done & (bits > need))
            maps = np.empty((some.size, survey.parts.hosts), np.bool_)
            counting.cramped_pixels(survey.black, survey.held, which[some], threshold, mode,
                                    limits, maps)  # fmt: skip
            for tile, spared in zip(some, maps, strict=True):
                packed = pack_map(spared)
                length = 8 * len(packed)
                white = survey.white[which[tile]]
                if bits[tile] < need + length or white < need - stream_bits + length:
                    continue
                plan.threshold[tile], plan.mode[tile] = step, mode
                plan.limit[tile], plan.spared[tile] = CLASSES - 1, BY_MAP
                plan.maps[int(tile)] = packed
                done[tile] = True
    return done


class Capacity(NamedTuple):
    """What one threshold offers on one frame: bits, and the root mean square change they cost."""

    bits: int
    rmse: float


def measure(parts: Lattices, span: Span, step: int) -> Capacity:
    """Fill black and white of all tiles with random bits at ``THRESHOLDS[step]``."""
    rng = np.random.default_rng(0)
    plan = Plan.blank(parts.count)
    plan.threshold[:], plan.limit[:], plan.spared[:] = step, CLASSES - 1, ALL
    its, none, which = rules(plan), _nothing(parts.count), np.arange(parts.count)
    total, squares = 0, 0.0
    for of_black in (True, False):
        colour, fixed = parts.black, parts.fixed_black
        if not of_black:
            colour, fixed = parts.white, parts.fixed_white
        values, held = parts.flat(colour), parts.flat(fixed)
        cramped = np.empty(values.shape, np.bool_)
        counting.cramped_pixels(values, held, which, THRESHOLDS[step], BOTH, span.limits, cramped)
        held = held | cramped
        made = Forecast.blank(parts).look(parts, which, of_black=of_black)
        need = counting.carriers(values, made.predicted, held, which, its, span.limits, none)
        bits = rng.integers(0, 2, (parts.count, int(need.max(initial=0))), dtype=np.uint8)
        before = values.copy()
        layers.embed_layer(values, made.predicted, made.classes, held, which, its, span.limits,
                            none, bits, none, need)  # fmt: skip
        total += int(need.sum())
        squares += float(((values - before).astype(np.float64) ** 2).sum())
    pixels = parts.grid.rows * parts.grid.columns
    return Capacity(total, float(np.sqrt(squares / pixels)))
