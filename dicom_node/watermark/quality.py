"""How visible a mark is: PSNR and SSIM of display frames."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom_node.compiled import compiled_loosely

Float32 = NDArray[np.float32]

_C1, _C2 = 0.01**2, 0.03**2


def psnr_db(cover: Float32, marked: Float32) -> float:
    """Return the peak signal-to-noise ratio of display frames, peak 1.0, in dB (inf if equal)."""
    error = mean_square_error(cover, marked)
    return float("inf") if error == 0.0 else -10.0 * float(np.log10(error))


def mean_square_error(cover: Float32, marked: Float32) -> float:
    """Return the mean square difference of display frames, ``(rows, columns)``."""
    a, b = (np.ascontiguousarray(each, np.float32).reshape(-1) for each in (cover, marked))
    return float(_square_error(a, b)) / a.size


@compiled_loosely
def _square_error(a: Float32, b: Float32) -> float:
    total = 0.0
    for i in range(a.size):
        difference = a[i] - b[i]
        total += float(difference * difference)
    return total


def ssim(cover: Float32, marked: Float32) -> float:
    """Return the mean structural similarity of display frames, data range 1.

    References
    ----------
    Wang et al., "Image quality assessment: from error visibility to structural similarity",
    IEEE Trans. Image Processing 13(4), 2004: Gaussian window 11 x 11, sigma 1.5, K1 0.01, K2 0.03.
    """
    a, b = cover.astype(np.float32), marked.astype(np.float32)
    mean_a, mean_b = _smooth(a), _smooth(b)
    var_a = _smooth(a * a) - mean_a * mean_a
    var_b = _smooth(b * b) - mean_b * mean_b
    both = _smooth(a * b) - mean_a * mean_b
    top = (2 * mean_a * mean_b + _C1) * (2 * both + _C2)
    bottom = (mean_a**2 + mean_b**2 + _C1) * (var_a + var_b + _C2)
    edge = 5 if min(a.shape) > 11 else 0
    inner = (top / bottom)[edge : a.shape[0] - edge, edge : a.shape[1] - edge]
    return float(np.mean(inner, dtype=np.float64))


def _smooth(values: Float32) -> Float32:
    return np.asarray(cv2.GaussianBlur(values, (11, 11), 1.5), np.float32)
