"""8-bit pictures for tests of the geometric search: turned, and in display values."""

from __future__ import annotations

import cv2
import numpy as np

Picture = np.ndarray


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
