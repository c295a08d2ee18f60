"""Read W2: what a frame says, whether it holds, where it does not, and the frame before marking."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicom_node.keys import KeyRing, KeySet
from dicom_node.watermark import erasure, payload
from dicom_node.watermark.box import Box
from dicom_node.watermark.framing import (
    COMPACT_MAC_BYTES,
    MIN_SIDE_PX,
    Canvas,
    KnownDigest,
    Side,
    frame_key,
    gap_of,
    spoken,
    tile_claim,
    tile_digests,
)
from dicom_node.watermark.parameters import Plan, read_extensions, read_headers
from dicom_node.watermark.payload import Parsed, TileStates
from dicom_node.watermark.reversible import extract_tiles
from dicom_node.watermark.tiles import (
    SIZES_PX,
    Bounds,
    Frame,
    Grid,
    Lattices,
    all_within,
    join,
)
from dicom_node.watermark.whole import IntegrityCheck, WholeFrame

_FULL, _COMPACT = 0, 2
# Decoding without knowing which tiles are wrong is tried on this many copies of the record.
_BLIND_GROUPS = 2
# The digest of a frame whose header block is gone is looked for in the lowest bits of small frames.
_SMALL_PIXELS = 1 << 16
# With headers in this part of the tiles, no other tile size needs to be looked at first.
_PLAIN_SHARE = 0.25


def check(
    host: Frame, side: Side | None, bounds: Bounds, *, ring: KeyRing, sop_instance_uid: str,
    frame_number: int, header_block: bytes = b"", known: KnownDigest | None = None,
) -> IntegrityCheck:  # fmt: skip
    """Read and judge W2 of one frame; any array gets an answer.

    Parameters
    ----------
    host, side, bounds
        As for `embed`.
    ring
        With secrets: tiles are judged one by one and restoration is opened. With public keys
        only: the signature over the recovered frame is checked.
    sop_instance_uid, frame_number
        The frame this claims to be.
    header_block
        From `IntegrityMark`, b"" if there was none or it is gone.
    known
        What the frame should be recovered as; only saves time.
    """
    host = np.require(host, np.int32, ("C", "W"))
    absent = IntegrityCheck("absent", False, None, host, (), None, 0, bound=False)
    if host.ndim != 2 or min(host.shape) < MIN_SIDE_PX:
        return absent
    asked = (payload.uid_tag(sop_instance_uid), frame_number)
    whole = WholeFrame(host, side, bounds, ring, asked, header_block, known)
    if header_block and (found := whole.of_lowest_bits()) is not None:
        return found
    canvas = Canvas(host, side, bounds, gap_of(host, bounds))
    best = absent
    for reading in _readings(canvas):
        found = _Judge(canvas, reading, ring, asked, header_block, known, whole).verdict()
        if found is not None and found.status == "valid":
            return found
        if found is not None and best.status == "absent":
            best = found
    if best.status == "absent" and not header_block and host.size <= _SMALL_PIXELS:
        best = whole.of_lowest_bits() or best
    return best


@dataclass
class _Reading:
    """What one tile size yields.

    Attributes
    ----------
    plan, streams
        Parameters of all tiles, and their bytes ``(tiles, n)``: digest, then share.
    sound
        ``(tiles,)``: tiles that may have been written by us.
    recovered
        The frame with every sound tile as it was before embedding.
    """

    grid: Grid
    plan: Plan
    streams: NDArray[np.uint8]
    sound: NDArray[np.bool_]
    recovered: Frame


def _readings(canvas: Canvas) -> Iterator[_Reading]:
    """Read the frame at every tile size at which some tile has a header, the likeliest first."""
    seen: list[tuple[float, Grid, Lattices, Plan, NDArray[np.bool_]]] = []
    for code in range(len(SIZES_PX)):
        grid = canvas.grid(code)
        plan, good = read_headers(canvas.scaled, canvas.fixed, grid)
        if not good.any():
            continue
        parts = canvas.parts(grid)
        read_extensions(parts, plan, good)
        share = float(good.mean())
        if share > _PLAIN_SHARE:
            yield from _read(canvas, grid, parts, plan, good)
        elif good.any():
            seen.append((share, grid, parts, plan, good))
    for _, grid, parts, plan, good in sorted(seen, key=lambda item: -item[0]):
        yield from _read(canvas, grid, parts, plan, good)


def _read(
    canvas: Canvas, grid: Grid, parts: Lattices, plan: Plan, good: NDArray[np.bool_]
) -> Iterator[_Reading]:
    """Undo the embedding in all tiles with a `good` header; nothing if none is left."""
    off = np.zeros(0, np.bool_)
    if canvas.gap.step > 1:
        off = canvas.gap.off(canvas.host)
        if canvas.padded is not None:
            off &= ~canvas.padded
        good &= all_within(off.astype(np.int32), 0, 0, grid)
    chosen = np.flatnonzero(good)
    if not chosen.size:
        return
    bits, sound = extract_tiles(parts, canvas.span, plan.subset(chosen), chosen)
    if not sound.all():
        before, wrong = canvas.parts(grid), chosen[~sound]
        parts.black[wrong], parts.white[wrong] = before.black[wrong], before.white[wrong]
    streams = np.zeros((grid.count, bits.shape[1] // 8), np.uint8)
    streams[chosen] = np.packbits(bits, axis=1)
    all_sound = np.zeros(grid.count, np.bool_)
    all_sound[chosen] = sound
    recovered = canvas.gap.from_k(join(parts))
    if canvas.gap.step > 1:
        # Fixed pixels and pixels off the lattice have no k of their own.
        kept = off if canvas.fixed is None else off | canvas.fixed
        np.copyto(recovered, canvas.host, where=kept)
    yield _Reading(grid, plan, streams, all_sound, recovered)


@dataclass
class _Judge:
    """One reading, judged."""

    canvas: Canvas
    reading: _Reading
    ring: KeyRing
    asked: tuple[bytes, int]
    header_block: bytes
    known: KnownDigest | None
    whole: WholeFrame

    def verdict(self) -> IntegrityCheck | None:
        """Return the result, or None if nothing here is ours."""
        compact = self.reading.plan.kind == _COMPACT
        if compact.any() and self.reading.grid.count == 1:
            return self._compact_verdict()
        valid = np.zeros(self.reading.grid.count, np.bool_)
        keys: KeySet | None = None
        for candidate in self.ring.all():
            valid = self._holding(candidate, self.asked)
            if valid.any():
                keys = candidate
                break
        said = self.asked
        parsed = self._record(valid if keys is not None else None)
        if keys is None:
            if parsed is None:
                return None
            said = (parsed.uid_tag, parsed.frame_number)
            keys = self.ring.get(parsed.key_id)
            if keys is None:
                return None
            valid = self._holding(keys, said)
            if valid.any():
                parsed = self._record(valid) or parsed
        return self._judge(parsed, keys, valid, said)

    def _judge(
        self, parsed: Parsed | None, keys: KeySet, valid: NDArray[np.bool_], said: tuple[bytes, int]
    ) -> IntegrityCheck | None:
        reading = self.reading
        if parsed is not None and parsed.key_id != keys.key_id:
            parsed = None
        recovered = self._trusted(valid, keys)
        signed, authentic = False, False
        if parsed is not None:
            digest = self.whole.digest(recovered)
            signed = parsed.authentic(keys, digest)
            stored = parsed.i1_digest
            authentic = signed or (stored is not None and parsed.authentic(keys, stored))
        elif not valid.any():
            return None
        believed = parsed if authentic else None
        bound = said == self.asked
        holding = self._all_holding(believed, keys, valid, said)
        tampered: tuple[Box, ...] = ()
        if keys.has_secrets:
            tampered = tuple(reading.grid.box(int(t)) for t in np.flatnonzero(~holding))
        elif keys.has_secrets is False:
            holding = np.ones_like(valid) if signed else holding
        whole = bool(holding.all()) and signed and bound
        outside = parsed is not None and parsed.outside
        return IntegrityCheck(
            "valid" if whole else "partial", signed and bool(holding.all()),
            believed.open(keys) if believed is not None else None,
            recovered, tampered, "header" if outside else "tiled",
            SIZES_PX[reading.grid.size_code], bound, authentic,
        )  # fmt: skip

    def _trusted(self, valid: NDArray[np.bool_], keys: KeySet) -> Frame:
        """Return the recovered frame, with tiles that do not hold as they were received."""
        if not keys.has_secrets or bool(valid[self.reading.sound].all()):
            return self.reading.recovered
        grid = self.reading.grid
        out = self.reading.recovered.copy()
        for tile in np.flatnonzero(self.reading.sound & ~valid):
            box = grid.box(int(tile))
            area = np.s_[box.row : box.row + box.rows, box.column : box.column + box.columns]
            out[area] = self.canvas.host[area]
        return out

    def _all_holding(
        self, parsed: Parsed | None, keys: KeySet, valid: NDArray[np.bool_], said: tuple[bytes, int]
    ) -> NDArray[np.bool_]:
        """Return which tiles hold: by their digest, as padding, or by a digest in the record."""
        grid = self.reading.grid
        if not keys.has_secrets:
            return valid
        holding = valid.copy()
        states = None
        if parsed is not None:
            states = _states(parsed, grid.count)
        if states is None:
            # The record is lost: constant padding is what an untouched inert tile looks like.
            return holding | self.canvas.constant_tiles(grid)[0]
        if states.inert.any():
            inert = self.canvas.inert(grid, states.inert_value)
            holding = np.where(states.inert, inert, holding)
        if states.mute:
            key = frame_key(keys.mac_key, *said)
            digests = tile_digests(self.canvas, self.canvas.host, grid, key, states.mute, {})
            for tile, digest in states.mute.items():
                holding[tile] = digests[tile] == digest
        return holding

    def _holding(self, keys: KeySet, said: tuple[bytes, int]) -> NDArray[np.bool_]:
        """Return which tiles hold their own digest under `keys` for the frame `said`."""
        reading = self.reading
        out = np.zeros(reading.grid.count, np.bool_)
        if not keys.has_secrets:
            return out
        tiles = [int(t) for t in np.flatnonzero(reading.sound)]
        told = self._told(tiles, payload.MAC_BYTES)
        key = frame_key(keys.mac_key, *said)
        digests = self._remembered(tiles, told, key)
        rest = [tile for tile in tiles if tile not in digests]
        digests |= tile_digests(self.canvas, reading.recovered, reading.grid, key, rest, told)
        for tile in tiles:
            out[tile] = digests[tile] == reading.streams[tile, : payload.MAC_BYTES].tobytes()
        return out

    def _remembered(
        self, tiles: list[int], told: dict[int, bytes], key: bytes
    ) -> dict[int, bytes]:
        """Return the digests of tiles that are known to be those of the frame recovered."""
        known, reading = self.known, self.reading
        if known is None or known.of(reading.recovered, self.canvas.side) is None:
            return {}
        claims = {tile: tile_claim(key, reading.grid, tile, told[tile]) for tile in tiles}
        return {t: known.tiles[claim] for t, claim in claims.items() if claim in known.tiles}

    def _told(self, tiles: list[int], digest_bytes: int) -> dict[int, bytes]:
        return spoken(self.reading.plan, self.reading.streams[:, digest_bytes:], tiles)

    def _record(self, valid: NDArray[np.bool_] | None) -> Parsed | None:
        """Put the record together; `valid` None: it is not known which tiles hold."""
        plan, grid = self.reading.plan, self.reading.grid
        usable = (self.reading.sound if valid is None else valid) & (plan.kind == _FULL)
        if not usable.any():
            return None
        share = int(np.bincount(plan.share_bytes[usable]).argmax())
        number = -(-grid.count // erasure.MAX_SYMBOLS)
        for first in range(number if valid is not None else min(number, _BLIND_GROUPS)):
            members = np.arange(first, grid.count, number)
            here = usable[members] & (plan.share_bytes[members] == share)
            if not here.any() or not share:
                continue
            k = int(np.bincount(plan.data_tiles[members][here]).argmax())
            here &= plan.data_tiles[members] == k
            end = payload.MAC_BYTES + share
            values = self.reading.streams[members, payload.MAC_BYTES : end]
            data = erasure.decode(values, ~here, k)
            if data is None:
                continue
            try:
                return payload.parse(data.tobytes(), self.header_block)
            except ValueError:
                continue
        return None

    def _compact_verdict(self) -> IntegrityCheck | None:
        """Judge a frame whose pixels hold one digest, and the header block all else."""
        try:
            parsed = payload.parse_compact(self.header_block)
        except ValueError:
            parsed = None
        reading = self.reading
        told = self._told([0], COMPACT_MAC_BYTES)

        def holds(key: bytes) -> bool:
            digest = tile_digests(self.canvas, reading.recovered, reading.grid, key, [0], told,
                                  size=COMPACT_MAC_BYTES)[0]  # fmt: skip
            return digest == reading.streams[0, :COMPACT_MAC_BYTES].tobytes()

        return self.whole.judged("compact", reading.recovered, parsed, holds)


def _states(parsed: Parsed, count: int) -> TileStates | None:
    try:
        return TileStates.unpack(parsed.tile_states, count)
    except ValueError:
        return None
