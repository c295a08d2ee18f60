"""A stored frame as the integrity mark sees it: one host plane, and side planes it only watches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicom_node.instance.frames import Instance
from dicom_node.instance.model import StoredFrame
from dicom_node.watermark.integrity import Bounds
from dicom_node.watermark.synthesis import RobustRecord

Int32 = NDArray[np.int32]


@dataclass(frozen=True)
class Planes:
    """`host` carries W2, ``(rows, columns)``; its digest covers `side`, ``(rows, columns, n)``."""

    host: Int32
    side: NDArray[np.uint32] | None


@dataclass(frozen=True, eq=False)
class KnownResidual:
    """What a record of W1 comes to: whoever reads the same record need not build it again."""

    record: RobustRecord
    delta: NDArray[np.int32]

    def of(self, record: RobustRecord) -> NDArray[np.int32] | None:
        """Return the residual of a record that says the same; None of any other."""
        return self.delta if record.to_bytes() == self.record.to_bytes() else None


def split(frame: StoredFrame, host_index: int | None) -> Planes:
    """Return host and side planes: other colour samples and the bits above Bits Stored."""
    values = frame.values
    if host_index is None:
        side = None if frame.high_bits is None else frame.high_bits[..., None]
        return Planes(values, side)
    others = [values[..., i].astype(np.uint32) for i in range(values.shape[2]) if i != host_index]
    if frame.high_bits is not None:
        others += [frame.high_bits[..., i] for i in range(values.shape[2])]
    return Planes(np.ascontiguousarray(values[..., host_index]), np.stack(others, axis=-1))


def with_host(frame: StoredFrame, host_index: int | None, host: Int32) -> StoredFrame:
    """Return `frame` with another host plane."""
    if host_index is None:
        return StoredFrame(host, frame.high_bits)
    values = frame.values.copy()
    values[..., host_index] = host
    return StoredFrame(values, frame.high_bits)


def robust_part(frame: StoredFrame, instance: Instance) -> Int32:
    """Return what W1 changes: the samples themselves, or Y alone where luma is a plane."""
    if instance.host_index is None or instance.photometric_interpretation == "RGB":
        return frame.values
    return np.ascontiguousarray(frame.values[..., 0])


def with_robust_part(frame: StoredFrame, instance: Instance, part: Int32) -> StoredFrame:
    """Return `frame` with what W1 changed put back in its place."""
    if part.shape == frame.values.shape:
        return StoredFrame(part, frame.high_bits)
    return with_host(frame, 0, part)


def bounds_of(instance: Instance) -> Bounds:
    """Return the range of stored values and the padding range of an instance."""
    return Bounds(instance.low, instance.high, instance.padding)


def polarity(values: Int32, display: NDArray[np.float32]) -> int:
    """Return 1 where display rises with the stored values, -1 where it falls (MONOCHROME1)."""
    stored = values if values.ndim == 2 else values[..., 1]
    a = stored[::4, ::4].astype(np.float64)
    b = display[::4, ::4].astype(np.float64)
    return -1 if float(np.sum((a - a.mean()) * (b - b.mean()))) < 0 else 1
