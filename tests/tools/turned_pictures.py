"""8-bit pictures for tests of the geometric search: marked, turned, and in display values."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from robust_key import Key

from dicom_node.watermark.robust import RobustWatermark

Picture = np.ndarray


class Marked(NamedTuple):
    """A marked frame, its cover and its message."""

    picture: Picture
    cover: Picture
    message: bytes


def marked_frames(watermark: RobustWatermark, shared: Path, count: int, key: Key) -> list[Marked]:
    """Mark frames from all over the validation split."""
    names, frames = sorted((shared / "whole" / "val").rglob("*.webp")), []
    for name in names[:: len(names) // count][:count]:
        frame = cv2.imread(str(name), cv2.IMREAD_GRAYSCALE)
        mark = watermark.embed(frame.astype(np.int32), display(frame), step=1.0, low=0, high=255,
                               padding=None, key=key)  # fmt: skip
        frames.append(Marked(mark.marked.astype(np.uint8), frame, mark.message))
    return frames


def display(picture: Picture) -> np.ndarray:
    """Return display values 0..1."""
    return (picture / 255).astype(np.float32)


def turned(picture: Picture, degrees: float, *, whole: bool = False) -> Picture:
    """Turn anticlockwise; on the same canvas, or on one that holds the whole frame."""
    rows, columns = picture.shape
    matrix = cv2.getRotationMatrix2D(((columns - 1) / 2, (rows - 1) / 2), degrees, 1.0)
    if whole:
        cosine, sine = abs(matrix[0, 0]), abs(matrix[0, 1])
        wide = int(np.ceil(columns * cosine + rows * sine))
        high = int(np.ceil(columns * sine + rows * cosine))
        matrix[:, 2] += (wide - columns) / 2, (high - rows) / 2
        columns, rows = wide, high
    return cv2.warpAffine(picture, matrix, (columns, rows), flags=cv2.INTER_CUBIC)
