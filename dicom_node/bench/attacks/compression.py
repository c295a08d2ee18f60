"""Lossy files: JPEG at every quality, WebP, JPEG 2000, and one format after another."""

from __future__ import annotations

import cv2
import numpy as np

from dicom_node.bench.attacks.base import PLAIN, Attack, Picture, steady

_FAMILY = "compression"
_TARGETS = {90: 0.99, 70: 0.98, 50: 0.96, 30: 0.90, 10: 0.40}
_QUALITIES = (90, 80, 70, 60, 50, 40, 30, 20, 10)


def coded(picture: Picture, suffix: str, *parameters: int) -> Picture:
    """Return the picture written in a format and read again (OpenCV's coders)."""
    done, code = cv2.imencode(suffix, picture, parameters)
    assert done, f"OpenCV writes no {suffix}"
    return np.asarray(cv2.imdecode(code, cv2.IMREAD_GRAYSCALE), np.uint8)


def jpeg(picture: Picture, quality: int) -> Picture:
    """Return the picture after JPEG compression (baseline, `quality` 0 to 100)."""
    return coded(picture, ".jpg", cv2.IMWRITE_JPEG_QUALITY, quality)


def webp(picture: Picture, quality: int) -> Picture:
    """Return the picture after lossy WebP (`quality` 1 to 100)."""
    return coded(picture, ".webp", cv2.IMWRITE_WEBP_QUALITY, quality)


def jpeg_2000(picture: Picture, ratio: float) -> Picture:
    """Return the picture after irreversible JPEG 2000 at a compression of `ratio` to 1."""
    return coded(picture, ".jp2", cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, round(1000 / ratio))


def converted(picture: Picture) -> Picture:
    """Return the picture as it goes from format to format: JPEG 90, PNG, WebP 80, JPEG 2000."""
    return jpeg_2000(webp(coded(jpeg(picture, 90), ".png"), 80), 10)


def _jpeg(quality: int) -> Attack:
    return Attack(
        f"JPEG {quality}", _FAMILY, steady(lambda p: jpeg(p, quality)),
        target=_TARGETS.get(quality), curve=("JPEG quality", quality),
        paper="91-93; 95.8-98.1" if quality in _TARGETS else "",
    )  # fmt: skip


COMPRESSION: tuple[Attack, ...] = (
    Attack(PLAIN, _FAMILY, steady(lambda p: p), target=0.99, curve=("JPEG quality", 100)),
    *map(_jpeg, _QUALITIES),
    Attack("WebP 80", _FAMILY, steady(lambda p: webp(p, 80)), paper="95.0"),
    Attack("WebP 50", _FAMILY, steady(lambda p: webp(p, 50)), paper="95.0"),
    Attack("JPEG 2000 10:1", _FAMILY, steady(lambda p: jpeg_2000(p, 10)), paper="95.0"),
    Attack("JPEG 2000 20:1", _FAMILY, steady(lambda p: jpeg_2000(p, 20)), paper="95.0"),
    Attack("JPEG, PNG, WebP, JPEG 2000", _FAMILY, steady(converted), paper="95.0"),
)
