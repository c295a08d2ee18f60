"""What the rest of the node sees of an instance's pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.instance import kernels

Codes = NDArray[Any]  # of uint8 or uint16


@dataclass(frozen=True, slots=True)
class PixelForm:
    """How samples are stored: the attributes of the Image Pixel Module that codecs need.

    Attributes
    ----------
    photometric
        As the header says it, e.g. ``YBR_FULL_422``.
    planar
        Planar Configuration; 0 for one sample per pixel.
    """

    rows: int
    columns: int
    samples: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    photometric: str
    planar: int

    @property
    def pixels(self) -> int:
        """Pixels of a frame."""
        return self.rows * self.columns

    @property
    def subsampled(self) -> bool:
        """Whether two pixels share one pair of chroma samples (native 4:2:2)."""
        return self.photometric == "YBR_FULL_422"

    @property
    def native_bytes(self) -> int:
        """Bytes of one native frame."""
        samples = 2 if self.subsampled else self.samples
        return self.pixels * samples * self.bits_allocated // 8

    @property
    def shape(self) -> tuple[int, ...]:
        """``(rows, columns)`` or ``(rows, columns, 3)``."""
        return (self.rows, self.columns) if self.samples == 1 else (self.rows, self.columns, 3)

    @property
    def low(self) -> int:
        """Smallest value that can be stored."""
        return -(1 << (self.bits_stored - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        """Largest value that can be stored."""
        return (1 << (self.bits_stored - self.signed)) - 1


@dataclass(frozen=True, slots=True)
class StoredFrame:
    """One frame in stored values.

    Attributes
    ----------
    values
        int32, ``(rows, columns)`` or ``(rows, columns, 3)``, in the colour space as stored.
    high_bits
        uint32 of the same shape: the bits above Bits Stored (overlays, old markers), as their
        difference (exclusive or) from what the value alone would put there, that is zeros, or the
        sign where samples are signed. None when there is no difference.
    """

    values: NDArray[np.int32]
    high_bits: NDArray[np.uint32] | None = None


def unpack(codes: Codes, precision: int, form: PixelForm) -> StoredFrame:
    """Split sample containers into stored values and the bits above them.

    Parameters
    ----------
    codes
        Containers as unsigned integers, shape `PixelForm.shape`.
    precision
        Bits of a container that the codec carries; where no more than Bits Stored, there is
        nothing above.
    """
    stored = form.bits_stored
    if form.signed and precision == codes.dtype.itemsize * 8 == stored:
        signed = codes.view(np.int16 if precision == 16 else np.int8)
        return StoredFrame(signed.astype(np.int32))
    if precision <= stored:
        return StoredFrame(_sign_extended(codes.astype(np.int32), precision, form.signed))
    wide = codes.astype(np.int32)
    if not form.signed and codes.max(initial=0) >> stored == 0:
        return StoredFrame(wide)
    above = wide >> stored
    values = _sign_extended(wide & ((1 << stored) - 1), stored, form.signed)
    high = (above ^ _fill(values, precision - stored)).view(np.uint32)
    return StoredFrame(values, high if high.any() else None)


def reach(before: NDArray[np.int32], after: NDArray[np.int32]) -> tuple[int, int, int]:
    """Return the largest absolute change of a stored value, and the smallest and largest after."""
    flat = (np.ascontiguousarray(values).reshape(-1) for values in (before, after))
    most, low, high = kernels.reach(*flat)
    return int(most), int(low), int(high)


def pack(frame: StoredFrame, form: PixelForm, precision: int) -> Codes:
    """Build sample containers of `precision` bits; the inverse of `unpack`.

    Raises
    ------
    ValueError
        If a value does not fit Bits Stored, or there are high bits and no room for them.
    """
    values = np.ascontiguousarray(frame.values)
    if values.shape != form.shape:
        raise ValueError(f"a frame has shape {form.shape}, not {values.shape}")
    if frame.high_bits is not None and precision <= form.bits_stored:
        raise ValueError("high bits need a container wider than Bits Stored")
    codes: Codes = np.empty(values.shape, np.uint8 if precision <= 8 else np.uint16)
    # Taking the low bits of a two's complement value also carries its sign upwards.
    mask = (1 << (precision if frame.high_bits is None else form.bits_stored)) - 1
    if not kernels.contain(values.reshape(-1), form.low, form.high, mask, codes.reshape(-1)):
        raise ValueError(f"a value is outside {form.low}..{form.high}")
    if frame.high_bits is not None:
        high = frame.high_bits.view(np.int32) ^ _fill(values, precision - form.bits_stored)
        codes |= (high << form.bits_stored).astype(codes.dtype)
    return codes


def _sign_extended(codes: NDArray[np.int32], bits: int, signed: bool) -> NDArray[np.int32]:
    if not signed:
        return codes
    sign = 1 << (bits - 1)
    return (codes ^ sign) - sign


def _fill(values: NDArray[np.int32], bits: int) -> NDArray[np.int32]:
    return (values >> 31) & ((1 << bits) - 1)
