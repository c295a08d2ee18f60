"""The residual of W1: rebuilt from a few integers, the same on every machine.

E1 chooses K amplitudes, a 16 x 16 grid of strengths and one gain. Everything after that is
integer arithmetic (matrix products of whole numbers below 2^24, which float32 holds exactly in
any order of summation), so the node that takes the mark off needs no network and no luck.

    carrier  c = clip(round(sum_k amplitude_k P_k * carrier_scale), -1023..1023)      n x n
    delta    = round(up(c) * up(g) * scale)                                 rows x columns

A sample is marked where it lies more than |delta| inside the stored range; saturated samples
therefore stay as they are. The few that the inverse of this rule gets wrong are recorded.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import WatermarkError

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]

CARRIER_LIMIT = 1023
CREST = 2.6
_BAND = 64
_HEAD = struct.Struct("<4sBHBHB")  # patterns, grid side, carrier scale, scale


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
        Flat positions of samples the inverse rule alone would get wrong: they were not changed.
    """

    model_id: bytes
    amplitudes: NDArray[np.int8]
    strengths: NDArray[np.uint8]
    carrier_scale: tuple[int, int]
    scale: tuple[int, int]
    exceptions: NDArray[np.int64]

    def to_bytes(self) -> bytes:
        """Serialise: header, 6-bit amplitudes, packed strengths, exceptions."""
        head = _HEAD.pack(
            self.model_id, len(self.strengths), *self.carrier_scale, *self.scale
        )
        amplitudes = _pack((self.amplitudes.astype(np.int16) + 32).astype(np.uint8), 6)
        strengths = _shorter(_pack(self.strengths.reshape(-1), 3))
        steps = np.diff(self.exceptions, prepend=0).astype("<u4")
        exceptions = _shorter(steps.tobytes())
        counts = struct.pack("<BHI", len(self.amplitudes), len(strengths), len(exceptions))
        return head + counts + amplitudes + strengths + exceptions

    @classmethod
    def from_bytes(cls, blob: bytes) -> RobustRecord:
        """Parse what :meth:`to_bytes` wrote (WatermarkError when it is damaged)."""
        try:
            model_id, side, *factors = _HEAD.unpack_from(blob)
            gain, shift, carrier_gain, carrier_shift = factors[2], factors[3], *factors[:2]
            count, strengths_size, exceptions_size = struct.unpack_from("<BHI", blob, _HEAD.size)
            at = _HEAD.size + 7
            size = (count * 6 + 7) // 8
            amplitudes = _unpack(blob[at : at + size], 6, count).astype(np.int16) - 32
            at += size
            strengths = _unpack(_longer(blob[at : at + strengths_size]), 3, side * side)
            at += strengths_size
            steps = np.frombuffer(_longer(blob[at : at + exceptions_size]), "<u4")
        except (struct.error, zlib.error, ValueError, IndexError) as error:
            raise WatermarkError(f"the record of the robust mark is damaged: {error}") from error
        return cls(model_id, amplitudes.astype(np.int8), strengths.reshape(side, side),
                   (carrier_gain, carrier_shift), (gain, shift),
                   np.cumsum(steps, dtype=np.int64))  # fmt: skip


def carrier_of(amplitudes: NDArray[np.int8], patterns: Float32) -> Float32:
    """Return ``sum_k amplitude_k P_k``, whole numbers, ``(n * n,)``."""
    carrier: Float32 = amplitudes.astype(np.float32) @ patterns
    return carrier


def carrier_scale(carrier: Float32) -> tuple[int, int]:
    """Return the fixed-point scale that cuts the carrier at `CREST` standard deviations."""
    deviation = float(np.sqrt(np.mean(np.square(carrier.astype(np.float64)))))
    return fixed_point(CARRIER_LIMIT / (CREST * max(deviation, 1.0)))


def residual_shape(
    carrier: Float32, strengths: NDArray[np.uint8], carrier_scale: tuple[int, int], rows: int,
    columns: int,
) -> Int32:  # fmt: skip
    """Return ``up(c) * up(g)``, whole numbers ``(rows, columns)``."""
    side = int(np.sqrt(carrier.size))
    gain, shift = carrier_scale
    # float64: the products stay below 2**53, so this is exact as well
    small = np.floor((carrier.astype(np.float64) * gain + ((1 << shift) >> 1)) / (1 << shift))
    np.clip(small, -CARRIER_LIMIT, CARRIER_LIMIT, out=small)
    shape = _up(small.reshape(side, side).astype(np.float32), rows, columns)
    shape *= _up(strengths.astype(np.float32) * np.float32(16), rows, columns)
    return shape.astype(np.int32)


def delta_of(record: RobustRecord, patterns: Float32, rows: int, columns: int) -> Int32:
    """Return the residual in stored values, ``(rows, columns)``."""
    carrier = carrier_of(record.amplitudes, patterns)
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
) -> tuple[Int32, NDArray[np.int64]]:
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
    """
    marked: Int32 = host + _spread(delta, host)
    reach = reach_of(delta)
    inside = int(host.min()) >= low + reach and int(host.max()) <= high - reach
    if padding is None and inside:
        return marked, np.empty(0, np.int64)
    kept = np.zeros(delta.shape, np.bool_)
    if not inside:
        kept = _any(~_has_room(host, delta, low, high), delta)
    if padding is not None:
        kept |= _any(_between(marked, *padding), delta)
        kept |= _any(_between(host, *padding), delta)
    np.copyto(marked, host, where=_spread(kept, host))
    # A changed sample satisfies the inverse rule; of the others, only trying it out can tell.
    places = np.flatnonzero(kept)
    samples = host.reshape(delta.size, *host.shape[2:])[places]
    there = delta.reshape(-1)[places]
    back = _invert(samples, there, low, high, padding)
    return marked, places[_any(back != samples, there)]


def remove(
    marked: Int32, delta: Int32, low: int, high: int, padding: tuple[int, int] | None,
    exceptions: NDArray[np.int64],
) -> Int32:  # fmt: skip
    """Return the host that :func:`apply` was given."""
    host = _invert(marked, delta, low, high, padding)
    if exceptions.size:
        if int(exceptions[-1]) >= delta.size:
            raise WatermarkError("the record of the robust mark does not fit this frame")
        samples = host.reshape(delta.size, -1)
        samples[exceptions] = marked.reshape(delta.size, -1)[exceptions]
    return host


def _invert(
    marked: Int32, delta: Int32, low: int, high: int, padding: tuple[int, int] | None
) -> Int32:
    """Undo `delta` by the rule alone."""
    before: Int32 = marked - _spread(delta, marked)
    if not before.size:
        return before
    kept, reach = None, reach_of(delta)
    if int(before.min()) < low + reach or int(before.max()) > high - reach:
        kept = _any(~_has_room(before, delta, low, high), delta)
    if padding is not None:
        padded = _any(_between(marked, *padding), delta)
        kept = padded if kept is None else kept | padded
    if kept is not None:
        np.copyto(before, marked, where=_spread(kept, marked))
    return before


def reach_of(delta: Int32) -> int:
    """Return how far from the ends of the stored range every sample may be changed."""
    return max(int(delta.max(initial=0)), -int(delta.min(initial=0))) + 1


def _has_room(values: Int32, delta: Int32, low: int, high: int) -> NDArray[np.bool_]:
    """Return which samples stay inside the stored range whichever way their delta points."""
    size = _spread(np.abs(delta), values)
    result: NDArray[np.bool_] = (values - size > low) & (values + size < high)
    return result


def _between(values: Int32, low: int, high: int) -> NDArray[np.bool_]:
    """Return which values are in ``low..high``: one comparison, because what is below wraps."""
    if high < low:
        return np.zeros(values.shape, np.bool_)
    shifted = np.subtract(values, np.int32(low), dtype=np.int32).view(np.uint32)
    return np.asarray(shifted <= np.uint32(high - low))


def _any(flags: NDArray[np.bool_], delta: Int32) -> NDArray[np.bool_]:
    """Return which pixels have a flag on any sample; `delta` has an entry a pixel."""
    return flags if flags.ndim == delta.ndim else np.logical_or.reduce(flags, axis=-1)


def _spread(plane: NDArray[Any], like: Int32) -> NDArray[Any]:
    return plane if plane.ndim == like.ndim else plane[..., None]


def _up(small: Float32, rows: int, columns: int) -> Float32:
    """Return `small` resampled bilinearly to ``(rows, columns)``; weights in 64ths, halves up."""
    tall: Float32 = np.empty((rows, small.shape[1]), np.float32)
    for target, source, weights in _bands(small.shape[0], rows):
        np.matmul(weights, small[source], out=tall[target])
    tall += np.float32(0.5)
    np.floor(tall, out=tall)
    wide: Float32 = np.empty((rows, columns), np.float32)
    for target, source, weights in _bands(small.shape[1], columns):
        np.matmul(tall[:, source], weights.T, out=wide[:, target])
    wide += np.float32(0.5)
    np.floor(wide, out=wide)
    return wide


@lru_cache(maxsize=64)
def _bands(source: int, target: int) -> tuple[tuple[slice, slice, Float32], ...]:
    """Cut the weights (of 1) into blocks of target samples, each with the source it sees.

    The matrix is nearly all zeros: in blocks the same sums take a third of the time. They are
    exact in any order, being whole numbers of 64ths below 2**24.
    """
    whole = _weights(source, target) * np.float32(1 / 64)
    bands = []
    for first in range(0, target, _BAND):
        block = whole[first : first + _BAND]
        seen = np.flatnonzero(block.any(axis=0))
        low, high = int(seen[0]), int(seen[-1]) + 1
        weights = np.ascontiguousarray(block[:, low:high])
        bands.append((slice(first, first + len(block)), slice(low, high), weights))
    return tuple(bands)


@lru_cache(maxsize=16)
def _weights(source: int, target: int) -> Float32:
    """Return the bilinear weights in 64ths, ``(target, source)``: whole numbers, rows sum to 64."""
    matrix: Float32 = np.zeros((target, source), np.float32)
    for i in range(target):
        # centre of sample i in 128ths of a source sample, in integers only
        place = ((2 * i + 1) * source * 64) // target - 64
        place = min(max(place, 0), (source - 1) * 128)
        left, part = divmod(place, 128)
        weight = (part + 1) // 2
        matrix[i, left] += 64 - weight
        if weight:
            matrix[i, left + 1] += weight
    return matrix


def _pack(values: NDArray[np.uint8], bits: int) -> bytes:
    planes = np.unpackbits(values[:, None], axis=1)[:, 8 - bits :]
    return np.packbits(planes.reshape(-1)).tobytes()


def _unpack(blob: bytes, bits: int, count: int) -> NDArray[np.uint8]:
    flat = np.unpackbits(np.frombuffer(blob, np.uint8))[: count * bits].reshape(count, bits)
    return np.packbits(np.pad(flat, ((0, 0), (8 - bits, 0))), axis=1)[:, 0]


def _shorter(blob: bytes) -> bytes:
    """Return `blob` behind a byte that says whether it is deflated: whichever is shorter."""
    packed = zlib.compress(blob, 9, -15)
    return b"\x01" + packed if len(packed) < len(blob) else b"\x00" + blob


def _longer(blob: bytes) -> bytes:
    if blob[:1] == b"\x01":
        inflate = zlib.decompressobj(-15)
        plain = inflate.decompress(blob[1:], 64 << 20)
        if inflate.unconsumed_tail:
            raise ValueError("it inflates past 64 MiB")
        return plain
    return blob[1:]
