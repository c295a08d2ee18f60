"""W2, the integrity mark: every pixel of a frame vouched for, tile by tile, and exactly removable.

`embed` puts a keyed digest of each tile and a share of the signed frame record into the tile
itself; `check` takes both out again, says what holds and where it does not, and returns the frame
as it was before. Integer arithmetic throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dicom_node.errors import CapacityError, WatermarkError
from dicom_node.keys import KeySet
from dicom_node.watermark import kernels
from dicom_node.watermark.checking import IntegrityCheck, check
from dicom_node.watermark.embedding import Embedding
from dicom_node.watermark.framing import (
    MIN_SIDE_PX,
    Canvas,
    KnownDigest,
    Side,
    frame_digest,
    host_gap,
    padding_of,
)
from dicom_node.watermark.parameters import THRESHOLDS
from dicom_node.watermark.payload import FrameRecord, OpenedRecord, Profile
from dicom_node.watermark.planning import Capacity, measure
from dicom_node.watermark.tiles import SIZES_PX, UNIT, Bounds, Box, Frame, exact_gap

__all__ = [
    "Bounds", "Box", "Capacity", "FrameRecord", "IntegrityCheck", "IntegrityMark", "KnownDigest",
    "OpenedRecord", "capacity", "check", "embed", "frame_digest",
]  # fmt: skip

# Localisation is given up before restoration leaves the pixels, both before the frame digest.
_ATTEMPTS: tuple[tuple[Profile, int], ...] = (
    ("tiled", 0), ("tiled", 1), ("tiled", 2), ("header", 0), ("header", 1), ("header", 2),
    ("header", 3), ("compact", 3),
)  # fmt: skip


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
    host: Frame, side: Side | None, bounds: Bounds, record: FrameRecord, keys: KeySet, *,
    restoration_in_header: bool = False, unseen: Callable[[Frame], bool] | None = None,
    compact: bool = True,
) -> IntegrityMark:  # fmt: skip
    """Put W2 into one frame.

    Parameters
    ----------
    host
        ``(rows, columns)`` int32 stored values within `bounds`, or padding.
    side
        ``(rows, columns, n)`` uint32: samples that are vouched for but not changed, or None.
    restoration_in_header
        Begin at the "header" profile: attributes, features and restoration leave the pixels, which
        keep about 190 bytes of record. For small frames, where the whole record would be seen: in
        a CT of 128 x 128 it stands 5 dB above what is left then (36.6 and 41.7 dB, W2 alone).
    unseen
        Whether a marked frame of stored values is good enough to look at. While it is not, the
        attempts go on: larger tiles, "header", the frame as one tile, at last "compact", whose
        single digest costs 20 dB less still. If none is good enough, the one that changes least
        (in the mean square of the stored values) is returned. None: the first that fits.
    compact
        False: "compact" only where nothing else fits. A compact frame is known as ours by its
        header block alone.

    Raises
    ------
    WatermarkError
        If the frame is smaller than 8 x 8 or holds values out of bounds.
    CapacityError
        If not even the compact profile fits.
    """
    _validate_shape(host, side)
    host = np.require(host, requirements=("C", "W"))
    _validate(host, bounds)
    found = host_gap(host, bounds)
    i1_digest = frame_digest(host, side)
    gentlest: tuple[float, IntegrityMark] | None = None
    for gap in (found, UNIT) if found.step > 1 else (UNIT,):
        canvas = Canvas(host, side, bounds, gap)
        tried: set[tuple[Profile, int, int]] = set()
        for profile, size_code in _ATTEMPTS:
            grid = canvas.grid(size_code)
            shape = (profile, grid.tile_rows, grid.tile_columns)
            if shape in tried or (restoration_in_header and profile == "tiled"):
                continue
            tried.add(shape)
            if profile == "compact" and not compact and gentlest is not None:
                continue
            made = Embedding(canvas, grid, profile, record, keys, i1_digest).run()
            if made is None:
                continue
            mark = IntegrityMark(
                made.marked, profile, SIZES_PX[size_code], made.header_block,
                KnownDigest(host, side, i1_digest, made.tiles),
            )  # fmt: skip
            if unseen is None or unseen(made.marked):
                return mark
            harm = float(np.mean(np.square((made.marked - host).astype(np.float64))))
            if gentlest is None or harm < gentlest[0]:
                gentlest = harm, mark
    if gentlest is not None:
        return gentlest[1]
    raise CapacityError(
        f"frame {record.frame_number} ({host.shape[0]} x {host.shape[1]}) "
        "cannot hold even one digest"
    )


def _validate_shape(host: Frame, side: Side | None) -> None:
    if host.ndim != 2 or host.dtype != np.int32:
        raise WatermarkError("a frame to mark is int32 and has two axes")
    if min(host.shape) < MIN_SIDE_PX:
        rows, columns = host.shape
        raise CapacityError(
            f"{rows} x {columns} pixels cannot hold a mark: at least {MIN_SIDE_PX} x {MIN_SIDE_PX}"
        )
    if side is not None and (side.shape[:2] != host.shape or side.ndim != 3):
        raise WatermarkError(f"side samples {side.shape} do not fit a frame of {host.shape}")


def _validate(host: Frame, bounds: Bounds) -> None:
    low, high = kernels.extremes(host)
    if low >= bounds.low and high <= bounds.high:
        return
    out = (host < bounds.low) | (host > bounds.high)
    padded = padding_of(host, bounds)
    if bool((out if padded is None else out & ~padded).any()):
        raise WatermarkError(f"the frame holds values outside {bounds.low}..{bounds.high}")


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
