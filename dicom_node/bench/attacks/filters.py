"""Filters: blur, mean, median, sharpening, and an edge-keeping smoother."""

from __future__ import annotations

import cv2
import numpy as np

from dicom_node.bench.attacks.base import Attack, Picture, steady

_FAMILY = "filters"
_SHARPEN = np.array([[0, -1, 0], [-1, 5, -1], [0, -1, 0]], np.float32)


def blur(picture: Picture) -> Picture:
    """Return the picture after OpenCV's 7 x 7 Gaussian, whose sigma it derives as 1.4."""
    return np.asarray(cv2.GaussianBlur(picture, (7, 7), 0), np.uint8)


def mean(picture: Picture, side: int) -> Picture:
    """Return the mean of each pixel's `side` x `side` neighbourhood."""
    return np.asarray(cv2.blur(picture, (side, side)), np.uint8)


def median(picture: Picture, side: int) -> Picture:
    """Return the median of each pixel's `side` x `side` neighbourhood."""
    return np.asarray(cv2.medianBlur(picture, side), np.uint8)


FILTERS: tuple[Attack, ...] = (
    Attack("blur 7 x 7", _FAMILY, steady(blur), target=0.99, paper="100; 93.5"),
    Attack("mean 3 x 3", _FAMILY, steady(lambda p: mean(p, 3)), target=0.99, paper="100"),
    Attack("mean 5 x 5", _FAMILY, steady(lambda p: mean(p, 5))),
    Attack("median 3 x 3", _FAMILY, steady(lambda p: median(p, 3)), target=0.99,
           paper="100; 93.5"),
    Attack("median 5 x 5", _FAMILY, steady(lambda p: median(p, 5))),
    Attack("sharpened", _FAMILY, steady(lambda p: cv2.filter2D(p, -1, _SHARPEN)), paper="93.5"),
    Attack("bilateral 7", _FAMILY, steady(lambda p: cv2.bilateralFilter(p, 7, 20, 3))),
)  # fmt: skip
