"""W2, the integrity mark: every pixel of a frame vouched for, tile by tile, and exactly removable.

`embed` puts a keyed digest of each tile and a share of the signed frame record into the tile
itself; `check` takes both out again, says what holds and where it does not, and returns the frame
as it was before. Integer arithmetic throughout.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import CapacityError, WatermarkError
from dicom_node.keys import KeySet
from dicom_node.watermark import erasure, payload
from dicom_node.watermark.checking import IntegrityCheck, check
from dicom_node.watermark.framing import (
    COMPACT_MAC_BYTES,
    MIN_SIDE_PX,
    Canvas,
    KnownDigest,
    Side,
    frame_digest,
    frame_key,
    gap_of,
    host_gap,
    padding_of,
    spoken,
    tile_digests,
)
from dicom_node.watermark.parameters import (
    HEADER_BITS,
    MAX_SHARE_BYTES,
    THRESHOLDS,
    Plan,
    free_white,
)
from dicom_node.watermark.payload import FrameRecord, OpenedRecord, Profile, TileStates
from dicom_node.watermark.planning import Capacity, choose, measure
from dicom_node.watermark.reversible import embed_tiles
from dicom_node.watermark.tiles import (
    SIZES_PX,
    UNIT,
    Bounds,
    Box,
    Frame,
    Grid,
    Lattices,
    exact_gap,
    join,
)

__all__ = [
    "Bounds", "Box", "Capacity", "FrameRecord", "IntegrityCheck", "IntegrityMark", "KnownDigest",
    "OpenedRecord", "capacity", "check", "embed", "frame_digest",
]  # fmt: skip

_FULL, _DIGEST_ONLY, _COMPACT = 0, 1, 2
# Localisation is given up before restoration leaves the pixels, both before the frame digest.
_ATTEMPTS: tuple[tuple[Profile, int], ...] = (
    ("tiled", 0), ("tiled", 1), ("tiled", 2), ("header", 0), ("header", 1), ("header", 2),
    ("header", 3), ("compact", 3),
)  # fmt: skip
# A fifth of the tiles that carry may be destroyed.
_SPARE_SHARE = 5
# Shares in fewer than this part of the tiles would leave the rest of the frame to chance.
_LEAST_FULL = 0.6
_ROUNDS = 5
# Black pixels per bit that a tile should have to be thought of as a carrier of shares.
_ROOMY = 1.5
_DROP_SHARE = 20
_SPREAD_SHARE, _LEAST_CHANGE = 64, 3


@dataclass(frozen=True)
class IntegrityMark:
    """A marked frame.

    Attributes
    ----------
    marked
        ``(rows, columns)`` int32 stored values, within the bounds.
    profile
        Where the record stands: all in the pixels ("tiled"), restoration in the header block
        ("header"), or all but one digest there ("compact").
    tile_px
        Nominal tile side; 0: the frame is one tile.
    header_block
        b"" unless part of the record had to leave the pixels.
    carried
        The frame that W2 went into, with its digest: what `check` is to recover.
    """

    marked: Frame
    profile: Profile
    tile_px: int
    header_block: bytes
    carried: KnownDigest


def embed(
    host: Frame, side: Side | None, bounds: Bounds, record: FrameRecord, keys: KeySet
) -> IntegrityMark:
    """Put W2 into one frame.

    Parameters
    ----------
    host
        ``(rows, columns)`` int32 stored values within `bounds`, or padding.
    side
        ``(rows, columns, n)`` uint32: samples that are vouched for but not changed, or None.

    Raises
    ------
    WatermarkError
        If the frame is smaller than 8 x 8 or holds values out of bounds.
    CapacityError
        If not even the compact profile fits.
    """
    _validate(host, side, bounds)
    found = host_gap(host, bounds)
    i1_digest = frame_digest(host, side)
    for gap in (found, UNIT) if found.step > 1 else (UNIT,):
        canvas = Canvas(host, side, bounds, gap)
        tried: set[tuple[Profile, int, int]] = set()
        for profile, size_code in _ATTEMPTS:
            grid = canvas.grid(size_code)
            shape = (profile, grid.tile_rows, grid.tile_columns)
            if shape in tried:
                continue
            tried.add(shape)
            mark = _Embedding(canvas, grid, profile, record, keys, i1_digest).run()
            if mark is not None:
                return mark
    raise CapacityError(
        f"frame {record.frame_number} ({host.shape[0]} x {host.shape[1]}) "
        "cannot hold even one digest"
    )


def _validate(host: Frame, side: Side | None, bounds: Bounds) -> None:
    if host.ndim != 2 or host.dtype != np.int32:
        raise WatermarkError("a frame to mark is int32 and has two axes")
    if min(host.shape) < MIN_SIDE_PX:
        rows, columns = host.shape
        raise CapacityError(
            f"{rows} x {columns} pixels cannot hold a mark: at least {MIN_SIDE_PX} x {MIN_SIDE_PX}"
        )
    if side is not None and (side.shape[:2] != host.shape or side.ndim != 3):
        raise WatermarkError(f"side samples {side.shape} do not fit a frame of {host.shape}")
    if int(host.min()) >= bounds.low and int(host.max()) <= bounds.high:
        return
    out = (host < bounds.low) | (host > bounds.high)
    padded = padding_of(host, bounds)
    if bool((out if padded is None else out & ~padded).any()):
        raise WatermarkError(f"the frame holds values outside {bounds.low}..{bounds.high}")


@dataclass
class _Layout:
    """Which tiles carry what: the outcome of fitting the record into the frame."""

    plan: Plan
    carries: NDArray[np.bool_]
    states: TileStates
    groups: list[tuple[NDArray[np.intp], int]]
    share_bytes: int


@dataclass
class _Embedding:
    """One attempt: a profile with a tile size."""

    canvas: Canvas
    grid: Grid
    profile: Profile
    record: FrameRecord
    keys: KeySet
    i1_digest: bytes

    def run(self) -> IntegrityMark | None:
        """Return the marked frame, or None if it does not fit this way."""
        parts = self.canvas.parts(self.grid)
        steps = self._steps()
        layout = (
            self._compact(parts, steps) if self.profile == "compact" else self._fit(parts, steps)
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
        streams = self._streams(layout, shares)
        tiles = np.flatnonzero(layout.carries)
        everything = tiles.size == parts.count
        carriers = parts if everything else parts.subset(tiles)
        plan = layout.plan if everything else layout.plan.subset(tiles)
        if not embed_tiles(carriers, self.canvas.span, plan, streams).all():
            return None
        if not everything:
            parts.black[tiles], parts.white[tiles] = carriers.black, carriers.white
        marked = self.canvas.gap.from_k(join(parts))
        if self.canvas.fixed is not None:
            np.copyto(marked, self.canvas.host, where=self.canvas.fixed)
        # The reader finds the lattice by itself; a frame where it would find another is no use.
        if gap_of(marked, self.canvas.bounds) != self.canvas.gap:
            return None
        carried = KnownDigest(self.canvas.host, self.canvas.side, self.i1_digest)
        return IntegrityMark(
            marked, self.profile, SIZES_PX[self.grid.size_code], header_block, carried
        )

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
        spread = np.subtract(*np.percentile(some, (99.7, 0.5))) if some.size else 0
        most = max(_LEAST_CHANGE, spread / _SPREAD_SHARE)
        return sum(1 for t in THRESHOLDS if t <= most)

    def _compact(self, parts: Lattices, steps: int) -> _Layout | None:
        plan, fits = choose(parts, self.canvas.span, 8 * COMPACT_MAC_BYTES, steps)
        if not fits.all():
            return None
        plan.kind[:], plan.size_code[:] = _COMPACT, self.grid.size_code
        return _Layout(plan, fits, TileStates(np.zeros(1, np.bool_)), [], 0)

    def _fit(self, parts: Lattices, steps: int) -> _Layout | None:
        """Find share length and tile roles that agree: roles set the length, length the roles."""
        inert, value = self.canvas.constant_tiles(self.grid)
        active = ~inert
        mute = active & (free_white(parts) < HEADER_BITS)
        full = active & ~mute & self._roomy(parts, active)
        states = TileStates(inert, value)
        plan = Plan.blank(parts.count)
        planned = -1
        for _ in range(_ROUNDS):
            states.mute = dict.fromkeys(map(int, np.flatnonzero(mute)), bytes(payload.MAC_BYTES))
            if (
                full.sum() < max(1, _LEAST_FULL * active.sum())
                or mute.sum() > 2 + active.sum() // 8
            ):
                return None
            length = payload.size(self.record, self.profile, states, keep_i1=self._keep_i1)
            groups = self._groups(active, full)
            # Among padding some tiles will drop out: planning for it saves a second round.
            fewer = planned < 0 and parts.fixed_black is not None
            rows = [max(1, k - (-(-k // _DROP_SHARE) if fewer else 0)) for _, k in groups]
            share = max(-(-length // k) for k in rows)
            if share > MAX_SHARE_BYTES:
                return None
            if share <= planned:
                return self._layout(plan, full, mute, states, groups, planned)
            full, failed = self._plan(parts, plan, active & ~mute, full, 8 * share, steps)
            mute = mute | failed
            planned = share
        return None

    def _roomy(self, parts: Lattices, active: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the tiles with pixels enough for a share: not the rims of a round image."""
        if parts.fixed_black is None:
            return np.ones(parts.count, np.bool_)
        free = parts.fixed_black[0].size - parts.fixed_black.reshape(parts.count, -1).sum(axis=1)
        states = TileStates(np.zeros(parts.count, np.bool_))
        length = payload.size(self.record, self.profile, states, keep_i1=self._keep_i1)
        share_bits = 8 * length * _SPARE_SHARE // (_SPARE_SHARE - 1) // max(1, int(active.sum()))
        need = 8 * payload.MAC_BYTES + HEADER_BITS + share_bits
        roomy = np.asarray(free >= _ROOMY * need)
        # Where few have room, nothing is gained by leaving out the others.
        return roomy if roomy.sum() > 0.8 * active.sum() else np.ones_like(roomy)

    def _plan(
        self, parts: Lattices, plan: Plan, active: NDArray[np.bool_], wanted: NDArray[np.bool_],
        share_bits: int, steps: int,
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:  # fmt: skip
        """Plan a share into the `wanted` tiles, else a digest; return which are full, and mute."""
        full, mute = np.zeros_like(active), active.copy()
        for extra in (share_bits, 0):
            rest = np.flatnonzero(mute & wanted if extra else mute)
            if not rest.size:
                continue
            some = parts if rest.size == parts.count else parts.subset(rest)
            bits = 8 * payload.MAC_BYTES + extra
            its, fits = choose(some, self.canvas.span, bits, steps, thorough=not extra)
            if some is not parts:
                parts.remember(rest, some)
            plan.put(rest[fits], its.subset(np.flatnonzero(fits)))
            full[rest[fits]] = extra > 0
            mute[rest[fits]] = False
        return full, mute

    def _groups(
        self, active: NDArray[np.bool_], full: NDArray[np.bool_]
    ) -> list[tuple[NDArray[np.intp], int]]:
        """Return the members of every code group, and how many of its rows are data."""
        number = -(-self.grid.count // erasure.MAX_SYMBOLS)
        groups = []
        for first in range(number):
            members = np.arange(first, self.grid.count, number)
            here = int(full[members].sum())
            if here:
                spare = -(-int(active[members].sum()) // _SPARE_SHARE)
                groups.append((members, max(1, here - spare)))
        return groups

    def _layout(
        self, plan: Plan, full: NDArray[np.bool_], mute: NDArray[np.bool_], states: TileStates,
        groups: list[tuple[NDArray[np.intp], int]], share: int,
    ) -> _Layout:  # fmt: skip
        key = self._frame_key()
        which = map(int, np.flatnonzero(mute))
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

    def _streams(self, layout: _Layout, shares: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return digest and share of every tile that carries, as bits."""
        tiles = [int(t) for t in np.flatnonzero(layout.carries)]
        said = spoken(layout.plan, shares, tiles)
        size = COMPACT_MAC_BYTES if self.profile == "compact" else payload.MAC_BYTES
        digests = tile_digests(
            self.canvas, self.canvas.host, self.grid, self._frame_key(), tiles, said, size=size
        )
        table = np.frombuffer(b"".join(digests[t] for t in tiles), np.uint8).reshape(-1, size)
        return np.unpackbits(np.concatenate([table, shares[tiles]], axis=1), axis=1)

    def _frame_key(self) -> bytes:
        tag = payload.uid_tag(self.record.sop_instance_uid)
        return frame_key(self.keys.mac_key, tag, self.record.frame_number)


def capacity(host: Frame, bounds: Bounds, threshold: int) -> Capacity:
    """Return the bits one pass holds at `threshold`, and their distortion.

    Parameters
    ----------
    host
        ``(rows, columns)`` int32 stored values.
    threshold
        One of `THRESHOLDS`.

    Returns
    -------
    Capacity
        ``bits`` (black and white pixels of 64-pixel tiles; pixels with too little room are left
        out, parameters and location maps are not charged) and ``rmse`` in stored values.
    """
    if threshold not in THRESHOLDS:
        raise WatermarkError(f"threshold {threshold} is none of {THRESHOLDS}")
    canvas = Canvas(host, None, bounds, exact_gap(host, padding_of(host, bounds)))
    offered = measure(canvas.parts(canvas.grid(0)), canvas.span, THRESHOLDS.index(threshold))
    return Capacity(offered.bits, offered.rmse * canvas.gap.step)
