"""One attempt to embed W2: a profile and a tile size, the record fitted into the tiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicom_node.keys import KeySet
from dicom_node.watermark import erasure, payload
from dicom_node.watermark.framing import (
    COMPACT_MAC_BYTES,
    Canvas,
    frame_key,
    gap_of,
    spoken,
    tile_claim,
    tile_digests,
)
from dicom_node.watermark.parameters import (
    HEADER_BITS,
    MAX_SHARE_BYTES,
    THRESHOLDS,
    Plan,
)
from dicom_node.watermark.payload import FrameRecord, Profile, TileStates
from dicom_node.watermark.planning import Survey, choose
from dicom_node.watermark.reversible import embed_tiles, is_coarse
from dicom_node.watermark.tiles import Frame, Grid, Lattices, join

_FULL, _DIGEST_ONLY, _COMPACT = 0, 1, 2
# A fifth of the tiles that carry may be destroyed.
_SPARE_SHARE = 5
# Shares in fewer than this part of the tiles would leave the rest of the frame to chance.
_LEAST_FULL = 0.6
_ROUNDS = 5
# Black pixels per bit that a tile should have to be thought of as a carrier of shares.
_ROOMY = 1.5
_DROP_SHARE = 20
_SPREAD_SHARE, _LEAST_CHANGE = 64, 3
# Tiles of one value may be left as they are while so many carry: fewer have too much to carry each.
_LEAST_CARRYING = 32


@dataclass(frozen=True)
class Embedded:
    """What one attempt made of a frame.

    Attributes
    ----------
    marked
        ``(rows, columns)`` int32.
    header_block
        What goes into the header.
    tiles
        The digests of its tiles, by `tile_claim`.
    """

    marked: Frame
    header_block: bytes
    tiles: dict[bytes, bytes]


@dataclass
class _Layout:
    """Which tiles carry what: the outcome of fitting the record into the frame."""

    plan: Plan
    carries: NDArray[np.bool_]
    states: TileStates
    groups: list[tuple[NDArray[np.intp], int]]
    share_bytes: int


@dataclass
class Embedding:
    """One attempt: a profile with a tile size, whose tiles `survey` has as they were at first.

    Attributes
    ----------
    most
        Largest change of a sample, stored values, unless only a digest fits; None: `_steps`.
    """

    canvas: Canvas
    grid: Grid
    profile: Profile
    record: FrameRecord
    keys: KeySet
    i1_digest: bytes
    survey: Survey
    most: int | None = None

    def run(self) -> Embedded | None:
        """Return the marked frame, or None if it does not fit this way."""
        survey, steps = self.survey, self._steps()
        parts = survey.parts
        layout = (
            self._compact(survey, steps) if self.profile == "compact" else self._fit(survey, steps)
        )
        if layout is None:
            return None
        pixels, header_block = payload.pack(
            self.record,
            self.profile,
            layout.states,
            self.keys,
            self.i1_digest,
            keep_i1=self._keep_i1,
        )
        shares = self._shares(layout, pixels)
        streams, claimed = self._streams(layout, shares)
        tiles = np.flatnonzero(layout.carries)
        plan, forecast = layout.plan.subset(tiles), survey.forecast(tiles)
        held = embed_tiles(parts, self.canvas.span, plan, tiles, streams, forecast)
        survey.spoil(tiles[is_coarse(plan)])
        if not held.all():
            return None
        marked = self.canvas.gap.from_k(join(parts))
        if self.canvas.gap.step > 1 and self.canvas.fixed is not None:
            # Padding off the lattice has no k of its own.
            np.copyto(marked, self.canvas.host, where=self.canvas.fixed)
        # The reader finds the lattice by itself; a frame where it would find another is no use.
        if gap_of(marked, self.canvas.bounds) != self.canvas.gap:
            return None
        return Embedded(marked, header_block, claimed)

    @property
    def _keep_i1(self) -> bool:
        # With one tile there is no partly destroyed frame to verify.
        return self.grid.count > 1 and self.profile != "compact"

    def _steps(self) -> int:
        """How many thresholds are allowed, so that noise does not buy room at any price.

        The largest change is a 64th of the spread of the values outside padding (0.5 to 99.7
        percentile, like a window without a window), but at least 3 steps. A digest alone is worth
        any change.
        """
        if self.profile == "compact":
            return len(THRESHOLDS)
        some = self.canvas.scaled[::4, ::4]
        if self.canvas.fixed is not None:
            some = some[~self.canvas.fixed[::4, ::4]]
        # Sorting integers is much faster than numpy's percentiles.
        some = np.sort(some, axis=None)
        spread = _percentile(some, 99.7) - _percentile(some, 0.5) if some.size else 0.0
        most = max(_LEAST_CHANGE, spread / _SPREAD_SHARE)
        if self.most is not None:
            most = min(most, max(1, self.most / self.canvas.gap.step))
        return sum(1 for t in THRESHOLDS if t <= most)

    def _compact(self, survey: Survey, steps: int) -> _Layout | None:
        plan, fits = choose(survey, np.arange(1), 8 * COMPACT_MAC_BYTES, steps)
        if not fits.all():
            return None
        plan.kind[:], plan.size_code[:] = _COMPACT, self.grid.size_code
        return _Layout(plan, fits, TileStates(np.zeros(1, np.bool_)), [], 0)

    def _fit(self, survey: Survey, steps: int) -> _Layout | None:
        """Fit the record into the frame; tiles of one value stay as they are if it fits easily."""
        inert, value = self.canvas.constant_tiles(self.grid)
        if not inert.any():
            around = self._fit_around_bare(survey)
            if around is not None:
                return around
        return self._fit_around(survey, steps, inert, value, counted=~inert)

    def _fit_around_bare(self, survey: Survey) -> _Layout | None:
        """Leave tiles of one value as they are; None if the others would have to change for it.

        To a lossless file a digest in what is flat costs ten times its length, and the record says
        as surely what such a tile is. All others have to hold their longer shares at the lowest
        threshold, and as many of them may be destroyed as if every tile carried.
        """
        bare, value = self.canvas.bare_tiles(self.grid)
        most = min(self.grid.count // 2, max(0, self.grid.count - _LEAST_CARRYING))
        bare[np.flatnonzero(bare)[most:]] = False
        if not bare.any():
            return None
        layout = self._fit_around(survey, 1, bare, value, counted=np.ones_like(bare))
        if layout is None or (layout.carries & (layout.plan.kind == _FULL) != ~bare).any():
            return None
        return layout

    def _fit_around(
        self, survey: Survey, steps: int, inert: NDArray[np.bool_], value: int, *,
        counted: NDArray[np.bool_],
    ) -> _Layout | None:  # fmt: skip
        """Find share length and tile roles that agree: roles set the length, length the roles.

        Parameters
        ----------
        inert, value
            Tiles that carry nothing, and their pixels' value.
        counted
            A fifth of these is how many of those that carry may be destroyed.
        """
        active = ~inert
        mute = active & (survey.white < HEADER_BITS)
        full = active & ~mute & self._roomy(survey.parts, active)
        states = TileStates(inert, value)
        plan = Plan.blank(self.grid.count)
        planned = -1
        for _ in range(_ROUNDS):
            states.mute = dict.fromkeys(map(int, np.flatnonzero(mute)), bytes(payload.MAC_BYTES))
            if (
                full.sum() < max(1, _LEAST_FULL * active.sum())
                or mute.sum() > 2 + active.sum() // 8
            ):
                return None
            length = payload.size(self.record, self.profile, states, keep_i1=self._keep_i1)
            groups = self._groups(counted, full)
            # Among padding some tiles will drop out: planning for it saves a second round.
            fewer = planned < 0 and survey.parts.has_fixed
            rows = [max(1, k - (-(-k // _DROP_SHARE) if fewer else 0)) for _, k in groups]
            share = max(-(-length // k) for k in rows)
            if share > MAX_SHARE_BYTES:
                return None
            if share <= planned:
                return self._layout(plan, full, mute, states, groups, planned)
            full, failed = self._plan(survey, plan, active & ~mute, full, 8 * share, steps)
            mute = mute | failed
            planned = share
        return None

    def _roomy(self, parts: Lattices, active: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the tiles with pixels enough for a share: not the rims of a round image."""
        if not parts.has_fixed:
            return np.ones(parts.count, np.bool_)
        free = parts.free(black=True)
        states = TileStates(np.zeros(parts.count, np.bool_))
        length = payload.size(self.record, self.profile, states, keep_i1=self._keep_i1)
        share_bits = 8 * length * _SPARE_SHARE // (_SPARE_SHARE - 1) // max(1, int(active.sum()))
        need = 8 * payload.MAC_BYTES + HEADER_BITS + share_bits
        roomy = np.asarray(free >= _ROOMY * need)
        # Where few have room, nothing is gained by leaving out the others.
        return roomy if roomy.sum() > 0.8 * active.sum() else np.ones_like(roomy)

    def _plan(
        self, survey: Survey, plan: Plan, active: NDArray[np.bool_], wanted: NDArray[np.bool_],
        share_bits: int, steps: int,
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:  # fmt: skip
        """Plan a share into the `wanted` tiles, else a digest; return which are full, and mute."""
        full, mute = np.zeros_like(active), active.copy()
        for extra in (share_bits, 0):
            rest = np.flatnonzero(mute & wanted if extra else mute)
            if not rest.size:
                continue
            bits = 8 * payload.MAC_BYTES + extra
            its, fits = choose(survey, rest, bits, steps, thorough=not extra)
            plan.put(rest[fits], its.subset(np.flatnonzero(fits)))
            full[rest[fits]] = extra > 0
            mute[rest[fits]] = False
        return full, mute

    def _groups(
        self, counted: NDArray[np.bool_], full: NDArray[np.bool_]
    ) -> list[tuple[NDArray[np.intp], int]]:
        """Return the members of every code group, and how many of its rows are data."""
        number = -(-self.grid.count // erasure.MAX_SYMBOLS)
        groups = []
        for first in range(number):
            members = np.arange(first, self.grid.count, number)
            here = int(full[members].sum())
            if here:
                spare = -(-int(counted[members].sum()) // _SPARE_SHARE)
                groups.append((members, max(1, here - spare)))
        return groups

    def _layout(
        self, plan: Plan, full: NDArray[np.bool_], mute: NDArray[np.bool_], states: TileStates,
        groups: list[tuple[NDArray[np.intp], int]], share: int,
    ) -> _Layout:  # fmt: skip
        key = self._frame_key()
        which = [int(t) for t in np.flatnonzero(mute)]
        states.mute = tile_digests(self.canvas, self.canvas.host, self.grid, key, which, {})
        plan.size_code[:] = self.grid.size_code
        plan.kind[:] = np.where(full, _FULL, _DIGEST_ONLY)
        plan.share_bytes[:] = np.where(full, share, 0)
        for members, k in groups:
            plan.data_tiles[members] = k
        return _Layout(plan, ~mute & ~states.inert, states, groups, share)

    def _shares(self, layout: _Layout, pixels: bytes) -> NDArray[np.uint8]:
        """Return what every tile carries of the record, ``(tiles, share_bytes)``."""
        shares = np.zeros((self.grid.count, layout.share_bytes), np.uint8)
        for members, k in layout.groups:
            padded = pixels.ljust(k * layout.share_bytes, b"\0")
            data = np.frombuffer(padded, np.uint8).reshape(k, layout.share_bytes)
            shares[members] = erasure.encode(data, members.size)
        return shares

    def _streams(
        self, layout: _Layout, shares: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], dict[bytes, bytes]]:
        """Return digest and share of every tile that carries, as bits, and the digests by claim."""
        tiles = [int(t) for t in np.flatnonzero(layout.carries)]
        said = spoken(layout.plan, shares, tiles)
        size = COMPACT_MAC_BYTES if self.profile == "compact" else payload.MAC_BYTES
        key = self._frame_key()
        digests = tile_digests(
            self.canvas, self.canvas.host, self.grid, key, tiles, said, size=size
        )
        table = np.frombuffer(b"".join(digests[t] for t in tiles), np.uint8).reshape(-1, size)
        claimed = {tile_claim(key, self.grid, tile, said[tile]): digests[tile] for tile in tiles}
        return np.unpackbits(np.concatenate([table, shares[tiles]], axis=1), axis=1), claimed

    def _frame_key(self) -> bytes:
        tag = payload.uid_tag(self.record.sop_instance_uid)
        return frame_key(self.keys.mac_key, tag, self.record.frame_number)


def _percentile(ordered: Frame, percent: float) -> float:
    """Return a percentile of sorted values, linear between two of them."""
    place = percent / 100 * (ordered.size - 1)
    below = int(place)
    above = min(below + 1, ordered.size - 1)
    return float(ordered[below] + (place - below) * (ordered[above] - ordered[below]))
