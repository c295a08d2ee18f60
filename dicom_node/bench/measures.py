"""Figures of one frame: how the marked one differs from its cover, what it costs, what it holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from dicom_node.instance.codecs import jpeg2000, jpegls
from dicom_node.instance.display import Display
from dicom_node.instance.frames import Instance
from dicom_node.instance.model import PixelForm, StoredFrame, pack
from dicom_node.planes import bounds_of, split
from dicom_node.watermark import integrity, perceptual, quality
from dicom_node.watermark.parameters import THRESHOLDS

_LEAST_JPEG_2000_PX = 32
# Beyond this distortion nobody embeds: the curve ends.
_CURVE_ENDS_DB = 34.0
_CURVE_PX = 1024


@dataclass(frozen=True)
class Quality:
    """How far a marked frame is from its cover.

    Attributes
    ----------
    psnr_db, ssim
        In the display window of the cover; peak 1.
    stored_psnr_db
        Over stored values; the peak is the stored range.
    largest_change
        In stored values.
    largest_hu, largest_share
        The same in Hounsfield units (CT only), and as a share of the window's width.
    phash_distance
        Bits of 64.
    """

    psnr_db: float
    ssim: float
    stored_psnr_db: float
    largest_change: int
    largest_hu: float | None
    largest_share: float
    phash_distance: int


@dataclass(frozen=True)
class CapacityPoint:
    """What W2's embedding holds at one threshold: bit/pixel, and PSNR in the display window."""

    threshold: int
    bits_per_px: float
    psnr_db: float


def quality_of(
    instance: Instance, display: Display, index: int, cover: StoredFrame, marked: StoredFrame
) -> Quality:
    """Compare a frame with its cover, both in the window of the cover."""
    shown = display.image(cover, index)
    after = display.image(marked, index, like=cover)
    difference = marked.values.astype(np.int64) - cover.values
    error = float(np.mean(np.square(difference, dtype=np.float64)))
    peak = instance.high - instance.low
    largest = int(np.abs(difference).max())
    slope = instance.header.get("RescaleSlope")
    is_hounsfield = instance.modality == "CT" and instance.samples == 1 and slope is not None
    return Quality(
        psnr_db=quality.psnr_db(shown, after),
        ssim=quality.ssim(shown, after),
        stored_psnr_db=10 * float(np.log10(peak**2 / error)) if error else float("inf"),
        largest_change=largest,
        largest_hu=largest * abs(float(slope)) if is_hounsfield else None,
        largest_share=largest / display.width(index),
        phash_distance=perceptual.distance(
            perceptual.perceptual_hash(shown), perceptual.perceptual_hash(after)
        ),
    )


def lossless_bytes(instance: Instance, frame: StoredFrame) -> tuple[int, int | None]:
    """Return the bytes of the frame in lossless JPEG-LS and in lossless JPEG 2000.

    None where a frame is too small for JPEG 2000's wavelet levels.
    """
    form = _plain(instance.form)
    precision = form.bits_allocated if frame.high_bits is not None else form.bits_stored
    codes = pack(frame, form, precision)
    first = len(jpegls.encode(codes, form, precision))
    if min(form.rows, form.columns) < _LEAST_JPEG_2000_PX:
        return first, None
    return first, len(jpeg2000.encode(codes, form, precision))


def capacity_curve(
    instance: Instance, display: Display, index: int, frame: StoredFrame
) -> Iterator[CapacityPoint]:
    """Yield what W2's embedding would hold, threshold by threshold, until it shows.

    Of a frame over 1024 pixels wide or high its middle is measured.
    """
    whole = split(frame, instance.host_index).host
    top, left = (max(0, (side - _CURVE_PX) // 2) for side in whole.shape)
    host = np.ascontiguousarray(whole[top : top + _CURVE_PX, left : left + _CURVE_PX])
    step = display.step(index)
    for threshold in THRESHOLDS:
        found = integrity.capacity(host, bounds_of(instance), threshold)
        change = found.rmse / (256 * step)
        psnr_db = -20 * float(np.log10(change)) if change else float("inf")
        if not found.bits or psnr_db < _CURVE_ENDS_DB:
            return
        yield CapacityPoint(threshold, found.bits / host.size, psnr_db)


def same(a: Instance, b: Instance) -> bool:
    """Whether two instances have the same pixels in every frame, high bits included."""
    if a.frame_count != b.frame_count:
        return False
    for first, second in zip(a.frames(), b.frames(), strict=True):
        if not np.array_equal(first.values, second.values):
            return False
        high = [f.high_bits for f in (first, second)]
        if (high[0] is None) != (high[1] is None):
            return False
        if high[0] is not None and high[1] is not None and not np.array_equal(high[0], high[1]):
            return False
    return True


def _plain(form: PixelForm) -> PixelForm:
    """Return the form as frames are decoded: no chroma subsampling, samples by pixel."""
    if form.samples == 1:
        return form
    return replace(form, photometric="RGB", planar=0)
