"""The residual of W1: rebuilt from a few integers, the same on every machine.

E1 chooses K amplitudes, a 16 x 16 grid of strengths and one gain. Everything after that is
integer arithmetic, so the node that takes the mark off needs no network and no luck.

    carrier  c = clip(round(sum_k amplitude_k P_k * carrier_scale), -1023..1023)      n x n
             (folded: of each sum and those that mirror it, the sum)
    delta    = round(up(c) * up(g) * scale)                                 rows x columns

A sample is marked where it lies more than |delta| inside the stored range; saturated samples
therefore stay as they are. Near the ends a sample of the marked frame may have come there by its
delta or have been there before: of each such *doubtful* one, a bit is recorded.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import WatermarkError
from dicom_node.inference.correlator import superpose
from dicom_node.watermark.residual import (
    Places,
    may_change,
    moved,
    stretched_product,
    was_changed,
)

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]
Int8 = NDArray[np.int8]
Flags = NDArray[np.bool_]
Exceptions = Flags | NDArray[np.int64]

CARRIER_LIMIT = 1023
CREST = 2.6
# Kinds of exceptions from here on are flags; of strengths, 0 or 1. Odd ones are deflated.
_FLAGS = _SINGLE = 2
_HEAD = struct.Struct("<4sBHBHB")  # patterns, grid side and folds, carrier scale, scale
_SIDE_BITS = 5  # of the grid's side; above them the folds, less one: none before 0.2


@dataclass(frozen=True)
class RobustRecord:
    """All that W1 leaves behind: rebuilds the residual of one frame.

    Attributes
    ----------
    model_id
        Which carrier patterns: the first bytes of their SHA-256.
    amplitudes
        ``(K,)`` int8, -31..31.
    strengths
        ``(16, 16)`` uint8, 0..7; 0 where nothing is embedded.
    carrier_scale, scale
        Fixed-point factors, (gain, shift): of the carrier, and of the residual in stored values.
    exceptions
        What the inverse rule alone would get wrong. One flag for each doubtful pixel of the marked
        frame, set where it was not changed; empty where no pixel is an exception. Records written
        before 0.2 have flat positions of the unchanged ones instead (int64).
    folds
        Of the carrier, see `folded`.
    """

    model_id: bytes
    amplitudes: NDArray[np.int8]
    strengths: NDArray[np.uint8]
    carrier_scale: tuple[int, int]
    scale: tuple[int, int]
    exceptions: Exceptions
    folds: int = 1

    def to_bytes(self) -> bytes:
        """Serialise: header, 6-bit amplitudes, packed strengths, exceptions.

        Strengths that are 0 or 1 take a bit each since 0.2, three before and otherwise.
        """
        side = len(self.strengths) | self.folds - 1 << _SIDE_BITS
        head = _HEAD.pack(self.model_id, side, *self.carrier_scale, *self.scale)
        amplitudes = _pack((self.amplitudes.astype(np.int16) + 32).astype(np.uint8), 6)
        strengths = _packed_strengths(self.strengths.reshape(-1))
        exceptions = _packed_exceptions(self.exceptions)
        counts = struct.pack("<BHI", len(self.amplitudes), len(strengths), len(exceptions))
        return head + counts + amplitudes + strengths + exceptions

    @classmethod
    def from_bytes(cls, blob: bytes) -> RobustRecord:
        """Parse what :meth:`to_bytes` wrote (WatermarkError when it is damaged)."""
        try:
            model_id, side, *factors = _HEAD.unpack_from(blob)
            gain, shift, carrier_gain, carrier_shift = factors[2], factors[3], *factors[:2]
            folds, side = (side >> _SIDE_BITS) + 1, side & (1 << _SIDE_BITS) - 1
            count, strengths_size, exceptions_size = struct.unpack_from("<BHI", blob, _HEAD.size)
            at = _HEAD.size + 7
            size = (count * 6 + 7) // 8
            amplitudes = _unpack(blob[at : at + size], 6, count).astype(np.int16) - 32
            at += size
            strengths = _unpacked_strengths(blob[at : at + strengths_size], side * side)
            at += strengths_size
            exceptions = _unpacked_exceptions(blob[at : at + exceptions_size])
        except (struct.error, zlib.error, ValueError, IndexError) as error:
            raise WatermarkError(f"the record of the robust mark is damaged: {error}") from error
        return cls(model_id, amplitudes.astype(np.int8), strengths.reshape(side, side),
                   (carrier_gain, carrier_shift), (gain, shift), exceptions, folds)  # fmt: skip


def folded(carrier: Int32, folds: int) -> Int32:
    """Return what a picture beside its mirror images has to carry for them to carry the carrier.

    Every sample is the sum of those that mirror it: ``(n / folds) ** 2`` of ``n * n``, flat.
    """
    if folds == 1:
        return carrier
    side = math.isqrt(carrier.size)
    small = side // folds
    places = np.pad(
        np.arange(small * small).reshape(small, small), (0, side - small), mode="symmetric"
    )
    sums = np.zeros(small * small, np.int32)
    np.add.at(sums, places.reshape(-1), carrier)
    return sums


def carrier_scale(carrier: Int32, crest: float = CREST) -> tuple[int, int]:
    """Return the fixed-point scale that cuts the carrier at `crest` standard deviations."""
    deviation = float(np.sqrt(np.mean(np.square(carrier.astype(np.float64)))))
    return fixed_point(CARRIER_LIMIT / (crest * max(deviation, 1.0)))


def residual_shape(
    carrier: Int32, strengths: NDArray[np.uint8], carrier_scale: tuple[int, int], rows: int,
    columns: int,
) -> Int32:  # fmt: skip
    """Return ``up(c) * up(g)``, whole numbers ``(rows, columns)``."""
    side, cells = math.isqrt(carrier.size), len(strengths)
    gain, shift = carrier_scale
    small = (carrier.astype(np.int64) * gain + ((1 << shift) >> 1)) >> shift
    small = np.clip(small, -CARRIER_LIMIT, CARRIER_LIMIT).astype(np.int32).reshape(side, side)
    product: Int32 = stretched_product(
        small, strengths.astype(np.int32) * 16, _places(side, rows), _places(side, columns),
        _places(cells, rows), _places(cells, columns),
    )  # fmt: skip
    return product


def delta_of(record: RobustRecord, patterns: Int8, rows: int, columns: int) -> Int32:
    """Return the residual in stored values, ``(rows, columns)``."""
    carrier = folded(superpose(record.amplitudes.astype(np.int32), patterns), record.folds)
    shape = residual_shape(carrier, record.strengths, record.carrier_scale, rows, columns)
    return scale(shape, *record.scale)


def scale(shape: Int32, gain: int, shift: int) -> Int32:
    """Return ``round(shape * gain / 2**shift)``, halves up; `gain` below 2**12."""
    product = shape * np.int32(gain)
    product += np.int32((1 << shift) >> 1)
    product >>= np.int32(shift)
    return product


def fixed_point(factor: float) -> tuple[int, int]:
    """Return ``gain, shift`` with ``gain / 2**shift`` close to `factor` and gain below 2**12."""
    for shift in range(30, -1, -1):
        gain = round(factor * (1 << shift))
        if gain < 4096:
            return gain, shift
    raise WatermarkError(f"a residual scale of {factor:.3g} stored values is out of range")


def apply(
    host: Int32, delta: Int32, low: int, high: int, padding: tuple[int, int] | None
) -> tuple[Int32, Flags]:
    """Return ``host + delta`` where it may be changed, and the exceptions of the inverse.

    Parameters
    ----------
    host
        Stored values, ``(rows, columns)`` or ``(rows, columns, 3)`` (then every sample of a pixel
        is changed by the same delta, or none).
    delta
        ``(rows, columns)``.
    low, high, padding
        Stored range and padding range, inclusive.

    Returns
    -------
    tuple
        The marked frame, and a flag for each doubtful pixel of it (`RobustRecord.exceptions`).
    """
    flat = delta.reshape(-1)
    changes, undone = _rules(host, flat, low, high, padding)
    marked = _moved(host, flat, changes, 1)
    if not np.any(undone & ~changes):
        return marked, np.zeros(0, np.bool_)
    changed, stayed = _seen(marked, flat, low, high, padding)
    doubtful = changed & ~stayed
    return marked, ~changes[doubtful]


def remove(
    marked: Int32, delta: Int32, low: int, high: int, padding: tuple[int, int] | None,
    exceptions: Exceptions,
) -> Int32:  # fmt: skip
    """Return the host that :func:`apply` was given.

    Raises
    ------
    WatermarkError
        `exceptions` are not this frame's.
    """
    flat = delta.reshape(-1)
    pad_low, pad_high = padding or (1, 0)
    if exceptions.dtype == np.bool_ and exceptions.size:
        changed, stayed = _seen(marked, flat, low, high, padding)
        doubtful = np.flatnonzero(changed & ~stayed)
        # Whole bytes are kept: up to seven flags more than pixels.
        if not 0 <= exceptions.size - doubtful.size < 8 or exceptions[doubtful.size :].any():
            raise WatermarkError(_MISFIT)
        changed[doubtful[exceptions[: doubtful.size]]] = False
        return _moved(marked, flat, changed, -1)
    changed = np.ones(flat.size, np.bool_)
    for plane in _planes(marked):
        was_changed(plane, flat, low, high, pad_low, pad_high, changed)
    if exceptions.size:
        if int(exceptions[-1]) >= flat.size:
            raise WatermarkError(_MISFIT)
        changed[exceptions] = False
    return _moved(marked, flat, changed, -1)


def _rules(
    host: Int32, flat: Int32, low: int, high: int, padding: tuple[int, int] | None
) -> tuple[Flags, Flags]:
    """Return which pixels may be changed, and which the inverse would change if they were not."""
    pad_low, pad_high = padding or (1, 0)
    changes, undone = np.ones(flat.size, np.bool_), flat != 0
    for plane in _planes(host):
        may_change(plane, flat, low, high, pad_low, pad_high, changes, undone)
    return changes, undone


def _seen(
    marked: Int32, flat: Int32, low: int, high: int, padding: tuple[int, int] | None
) -> tuple[Flags, Flags]:
    """Return which pixels of a marked frame may have been changed, and which must have been.

    A pixel that would have been changed, had it been there before, cannot have been.
    """
    must, may = _rules(marked, flat, low, high, padding)
    return may, must


def _planes(values: Int32) -> list[Int32]:
    """Return every sample of the pixels by itself, flat: one for grey, three for colour."""
    samples = np.ascontiguousarray(values).reshape(values.shape[0] * values.shape[1], -1)
    if samples.shape[1] == 1:
        return [samples.reshape(-1)]
    return [samples[:, index] for index in range(samples.shape[1])]


def _moved(values: Int32, delta: Int32, flags: NDArray[np.bool_], sign: int) -> Int32:
    result: Int32 = np.empty(values.shape, np.int32)
    for plane, out in zip(_planes(values), _planes(result), strict=True):
        moved(plane, delta, flags, sign, out)
    return result


@lru_cache(maxsize=64)
def _places(source: int, target: int) -> Places:
    """Return where each target sample lies between two of `source`, see `stretched_product`."""
    # centre of sample i in 128ths of a source sample, in integers only
    centre = (2 * np.arange(target, dtype=np.int64) + 1) * source * 64 // target - 64
    left, part = np.divmod(np.clip(centre, 0, (source - 1) * 128), 128)
    right = np.minimum(left + 1, source - 1)
    return np.stack([left, right, (part + 1) // 2]).astype(np.uint32)


_MISFIT = "the record of the robust mark does not fit this frame"


def _packed_strengths(strengths: NDArray[np.uint8]) -> bytes:
    """Serialise strengths behind a byte that says how: 0 and 1 three bits each, 2 and 3 one."""
    if strengths.max(initial=0) > 1:
        return _shorter(_pack(strengths, 3))
    return _shorter(_pack(strengths, 1), _SINGLE)


def _unpacked_strengths(blob: bytes, count: int) -> NDArray[np.uint8]:
    return _unpack(_longer(blob), 3 if blob[0] < _SINGLE else 1, count)


def _packed_exceptions(exceptions: Exceptions) -> bytes:
    """Serialise exceptions behind a byte that says how: 0 and 1 positions, 2 and 3 flags."""
    if exceptions.dtype != np.bool_ or not exceptions.size:
        return _shorter(np.diff(exceptions.astype(np.int64), prepend=0).astype("<u4").tobytes())
    return _shorter(np.packbits(exceptions).tobytes(), _FLAGS)


def _unpacked_exceptions(blob: bytes) -> Exceptions:
    if blob[0] < _FLAGS:
        return np.cumsum(np.frombuffer(_longer(blob), "<u4"), dtype=np.int64)
    return np.unpackbits(np.frombuffer(_longer(blob), np.uint8)).astype(np.bool_)


def _pack(values: NDArray[np.uint8], bits: int) -> bytes:
    planes = np.unpackbits(values[:, None], axis=1)[:, 8 - bits :]
    return np.packbits(planes.reshape(-1)).tobytes()


def _unpack(blob: bytes, bits: int, count: int) -> NDArray[np.uint8]:
    flat = np.unpackbits(np.frombuffer(blob, np.uint8))[: count * bits].reshape(count, bits)
    return np.packbits(np.pad(flat, ((0, 0), (8 - bits, 0))), axis=1)[:, 0]


def _shorter(blob: bytes, kind: int = 0) -> bytes:
    """Return `blob` behind its kind, an even number; deflated behind the next, if shorter."""
    packed = zlib.compress(blob, 9, -15)
    return bytes([kind + 1]) + packed if len(packed) < len(blob) else bytes([kind]) + blob


def _longer(blob: bytes) -> bytes:
    if blob[0] & 1:
        inflate = zlib.decompressobj(-15)
        plain = inflate.decompress(blob[1:], 64 << 20)
        if inflate.unconsumed_tail:
            raise ValueError("it inflates past 64 MiB")
        return plain
    return blob[1:]
