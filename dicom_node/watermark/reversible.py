"""Reversible embedding in tiles: prediction-error expansion on a checkerboard.

Black pixels are predicted from their four white neighbours, ``(l + r + u + d + 2) >> 2``. With
threshold T, an error e in [-T, T) becomes ``2 e + bit`` and any other error moves T outwards, so
the decoder can tell them apart; both are undone exactly. Pixels in busy surroundings (a limit per
tile) are left alone, and the stream stops where its last bit went in. Where black is too small,
white follows, predicted from the changed black.

What a tile needs to be read stands in the least significant bits of its first free white pixels;
the bits that stood there are the head of the embedded stream. Pixels *fixed* from the start
(padding, values out of range) are never changed, and nothing ever becomes one: for every other
pixel, the value with its last bit flipped is allowed, too.

References
----------
Thodi and Rodriguez, "Expansion embedding techniques for reversible watermarking",
IEEE Trans. Image Processing 16(3), 2007.

Sachnev et al., "Reversible watermarking algorithm using sorting and prediction",
IEEE Trans. Circuits and Systems for Video Technology 19(7), 2009.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dicom_node.watermark import kernels, layers
from dicom_node.watermark.parameters import (
    BY_MAP,
    BY_VALUE,
    Bits,
    Ints,
    Plan,
    T,
    header_bits,
    unpack_map,
)
from dicom_node.watermark.tiles import Lattices


@dataclass(frozen=True)
class Span:
    """Values pixels may take, ``low..high``, less the hole ``hole_low..hole_high`` (if any)."""

    low: int
    high: int
    hole_low: int = 1
    hole_high: int = 0

    @property
    def has_hole(self) -> bool:
        """Whether some values inside are taken by padding."""
        return self.hole_low <= self.hole_high

    @cached_property
    def limits(self) -> Ints:
        """Low, high, hole_low and hole_high as the kernels take them."""
        return np.array((self.low, self.high, self.hole_low, self.hole_high), np.int64)

    def outside(self, plane: NDArray[np.int32]) -> NDArray[np.bool_] | None:
        """Which pixels of a frame are out of range or in the hole; None if none is."""
        out = np.empty(plane.shape, np.bool_)
        return out if kernels.outside(plane, self.limits, out) else None


@dataclass(frozen=True)
class Forecast:
    """Prediction and activity class of one colour's pixels, ``(tiles, hosts)`` each."""

    predicted: NDArray[np.int32]
    classes: Bits

    @classmethod
    def blank(cls, parts: Lattices) -> Forecast:
        """Return room for all tiles of `parts`."""
        shape = (parts.count, parts.hosts)
        return cls(np.empty(shape, np.int32), np.empty(shape, np.uint8))

    def look(
        self, parts: Lattices, which: Ints, *, of_black: bool, clear: int = 0,
        coarse: NDArray[np.bool_] | None = None,
    ) -> Forecast:  # fmt: skip
        """Predict the tiles `which`; see `kernels.predict`."""
        other, fixed = parts.white, parts.fixed_white
        if not of_black:
            other, fixed = parts.black, parts.fixed_black
        if coarse is None:
            coarse = np.zeros(which.size, np.bool_)
        kernels.predict(
            other, fixed, which, parts.edges, of_black, clear, coarse,
            self.predicted, self.classes,
        )  # fmt: skip
        return self


def rules(plan: Plan) -> Ints:
    """Return what the kernels follow, ``(tiles, 4)``."""
    fields = (T[plan.threshold], plan.mode, plan.limit, plan.spared == BY_VALUE)
    return np.ascontiguousarray(np.stack(fields, axis=1), np.int64)


def stream_bits(plan: Plan) -> Ints:
    """Return the bits each tile carries beside the head: digest (compact: 128 bits) and share."""
    return np.where(plan.kind == 2, 128, 64) + 8 * plan.share_bytes


def is_coarse(plan: Plan) -> NDArray[np.bool_]:
    """Which tiles predict black without white's last bits, as any of them may change."""
    return np.asarray((plan.layers == 1) | (plan.spared == BY_MAP))


def _held_black(parts: Lattices, plan: Plan, which: Ints) -> NDArray[np.bool_]:
    """Return the black pixels left alone: fixed, or by a map."""
    held = parts.flat(parts.fixed_black)
    if plan.maps:
        held = held.copy()
    for i, packed in plan.maps.items():
        spared = unpack_map(packed, parts.hosts)
        if spared is not None:
            held[which[i]] |= spared
    return held


def embed_tiles(
    parts: Lattices, span: Span, plan: Plan, which: Ints, streams: Bits,
    forecast: Forecast | None = None,
) -> NDArray[np.bool_]:  # fmt: skip
    """Embed one stream into each of some tiles, in place; return which held all of theirs.

    Parameters
    ----------
    plan
        Of the tiles `which`, all of which fit their stream by it.
    streams
        ``(which, bits)`` of 0/1, equal lengths as far as ``share_bytes`` and ``kind`` are equal;
        rows that need less are padded and cut by `stream_bits`.
    forecast
        Of black, from planning: good for tiles whose white is not coarse.

    Only a second layer can turn out too small: how much it holds depends on the bits of the first.
    """
    white, fixed_white = parts.flat(parts.white), parts.flat(parts.fixed_white)
    lengths, heads = stream_bits(plan), plan.region_bits()
    total = lengths + heads
    table = np.zeros((which.size, int(total.max(initial=0))), np.uint8)
    kernels.take_bits(white, fixed_white, which, heads, True, table)
    for head in np.unique(heads):
        rows = heads == head
        table[rows, head : head + streams.shape[1]] = streams[rows, : table.shape[1] - head]
    coarse = is_coarse(plan)
    if forecast is None:
        forecast = Forecast.blank(parts).look(parts, which, of_black=True, coarse=coarse)
    elif coarse.any():
        some = np.flatnonzero(coarse)
        forecast.look(parts, which[some], of_black=True, coarse=coarse[some])
    first = total - plan.second_bits
    none = np.zeros(which.size, np.int64)
    found = layers.embed_layer(
        parts.flat(parts.black), forecast.predicted, forecast.classes,
        _held_black(parts, plan, which), which, rules(plan), span.limits, none, table, none, first,
    )  # fmt: skip
    held = np.asarray(found == first)
    two = np.flatnonzero(plan.layers == 1)
    if two.size:
        its = plan.subset(two)
        ahead = Forecast.blank(parts).look(parts, which[two], of_black=False)
        found = layers.embed_layer(
            white, ahead.predicted, ahead.classes, fixed_white, which[two], rules(its),
            span.limits, heads[two], table[two], first[two], its.second_bits,
        )  # fmt: skip
        held[two] &= found == its.second_bits
    kernels.put_bits(white, fixed_white, which, heads, header_bits(plan))
    return held


def extract_tiles(
    parts: Lattices, span: Span, plan: Plan, which: Ints
) -> tuple[Bits, NDArray[np.bool_]]:
    """Undo `embed_tiles` in place.

    Parameters
    ----------
    parts
        Sound tiles are changed into what they were before embedding, others into anything.
    plan
        Of the tiles `which`, from `read_headers` and `read_extensions`.

    Returns
    -------
    tuple
        Streams ``(which, bits)``, and which tiles are sound: all bits there, and embedding the
        result again would give the same pixels. An unsound tile was not written by `embed_tiles`.
    """
    white, fixed_white = parts.flat(parts.white), parts.flat(parts.fixed_white)
    lengths, heads = stream_bits(plan), plan.region_bits()
    total = lengths + heads
    first = total - plan.second_bits
    sound = (first >= 0) & (total <= 2 * parts.hosts)
    if not sound.all():
        first, total = np.where(sound, first, 0), np.where(sound, total, 0)
    table = np.zeros((which.size, int(np.maximum(total, heads).max(initial=0))), np.uint8)
    kernels.take_bits(white, fixed_white, which, heads, True, table)
    two = np.flatnonzero((plan.layers == 1) & sound)
    if two.size:
        its, bits = plan.subset(two), table[two]
        ahead = Forecast.blank(parts).look(parts, which[two], of_black=False)
        sound[two] &= layers.extract_layer(
            white, ahead.predicted, ahead.classes, fixed_white, which[two], rules(its),
            span.limits, heads[two], bits, first[two], its.second_bits,
        )  # fmt: skip
        table[two] = bits
    forecast = Forecast.blank(parts).look(parts, which, of_black=True, coarse=is_coarse(plan))
    none = np.zeros(which.size, np.int64)
    sound &= layers.extract_layer(
        parts.flat(parts.black), forecast.predicted, forecast.classes,
        _held_black(parts, plan, which), which, rules(plan), span.limits, none, table, none, first,
    )  # fmt: skip
    kernels.put_bits(white, fixed_white, which, heads, table)
    out = np.zeros((which.size, int(lengths.max(initial=0))), np.uint8)
    for i in np.flatnonzero(sound):
        out[i, : lengths[i]] = table[i, heads[i] : total[i]]
    return out, sound
