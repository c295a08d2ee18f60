"""Changes of grey values alone: gamma, equalisation, brightness, contrast, inversion."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom_node.bench.attacks.base import Attack, Picture, rounded, steady

_FAMILY = "tone"
_GREY = np.arange(256, dtype=np.float64)


Curve = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def looked_up(picture: Picture, curve: Curve) -> Picture:
    """Return the picture with every grey value v (0..255) replaced by ``curve(v)``, rounded."""
    return np.asarray(rounded(curve(_GREY))[picture], np.uint8)


def gamma(picture: Picture, exponent: float) -> Picture:
    """Return ``255 (v / 255) ** exponent``, rounded."""
    return looked_up(picture, lambda v: 255 * (v / 255) ** exponent)


def contrast(picture: Picture, factor: float) -> Picture:
    """Return the picture with the distance from middle grey multiplied."""
    return looked_up(picture, lambda v: 127.5 + factor * (v - 127.5))


def clahe(picture: Picture) -> Picture:
    """Return the picture after contrast-limited adaptive equalisation: 8 x 8 tiles, limit 2."""
    return np.asarray(cv2.createCLAHE(2.0, (8, 8)).apply(picture), np.uint8)


TONE: tuple[Attack, ...] = (
    Attack("gamma 0.5", _FAMILY, steady(lambda p: gamma(p, 0.5)), target=0.99, paper="100"),
    Attack("gamma 2", _FAMILY, steady(lambda p: gamma(p, 2.0))),
    Attack("hist. equalised", _FAMILY, steady(cv2.equalizeHist), target=0.99, paper="100"),
    Attack("CLAHE", _FAMILY, steady(clahe)),
    Attack("brightness +50", _FAMILY, steady(lambda p: looked_up(p, lambda v: v + 50)),
           target=0.99, paper="100"),
    Attack("brightness -50", _FAMILY, steady(lambda p: looked_up(p, lambda v: v - 50))),
    Attack("contrast x 1.5", _FAMILY, steady(lambda p: contrast(p, 1.5)), target=0.99,
           paper="100"),
    Attack("contrast x 0.6", _FAMILY, steady(lambda p: contrast(p, 0.6))),
    Attack("16 grey levels", _FAMILY, steady(lambda p: p // 16 * 17)),
)  # fmt: skip
