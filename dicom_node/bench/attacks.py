"""What happens to an exported picture before somebody tries to read its mark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]  # (rows, columns)


@dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes
    ----------
    apply
        From an 8-bit picture to an 8-bit picture, perhaps of another size.
    upright
        Turns the attacked picture back, for counting bits; the blind decoder is not told.
    target
        Least share of frames whose message must be recovered.
    """

    name: str
    apply: Callable[[Picture], Picture]
    upright: Callable[[Picture], Picture]
    target: float


def jpeg(picture: Picture, quality: int) -> Picture:
    """Return the picture after JPEG compression (baseline, `quality` 0 to 100)."""
    done, code = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return np.asarray(cv2.imdecode(code, cv2.IMREAD_GRAYSCALE), np.uint8)


def gamma(picture: Picture, exponent: float) -> Picture:
    """Return ``255 (v / 255) ** exponent``, rounded."""
    table = np.rint(255 * (np.arange(256) / 255) ** exponent).astype(np.uint8)
    return np.asarray(table[picture], np.uint8)


def half(picture: Picture) -> Picture:
    """Return the picture at half its size in both directions, by area."""
    size = (max(1, picture.shape[1] // 2), max(1, picture.shape[0] // 2))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def _same(picture: Picture) -> Picture:
    return picture


def _turn(quarters: int) -> Callable[[Picture], Picture]:
    return lambda picture: np.ascontiguousarray(np.rot90(picture, quarters))


def _flip(axis: int) -> Callable[[Picture], Picture]:
    return lambda picture: np.ascontiguousarray(np.flip(picture, axis))


def _filtered(result: object) -> Picture:
    return np.asarray(result, np.uint8)


PLAIN = "plain 8-bit export"
ATTACKS: tuple[Attack, ...] = (
    Attack(PLAIN, _same, _same, 0.97),
    Attack("JPEG 70", lambda p: jpeg(p, 70), _same, 0.93),
    # sigma 0: OpenCV derives 1.4 from the size of the window
    Attack("blur 7 x 7", lambda p: _filtered(cv2.GaussianBlur(p, (7, 7), 0)), _same, 0.93),
    Attack("mean 3 x 3", lambda p: _filtered(cv2.blur(p, (3, 3))), _same, 0.93),
    Attack("median 3 x 3", lambda p: _filtered(cv2.medianBlur(p, 3)), _same, 0.93),
    Attack("half size", half, _same, 0.93),
    Attack("gamma 0.5", lambda p: gamma(p, 0.5), _same, 0.93),
    Attack("hist. equalised", lambda p: _filtered(cv2.equalizeHist(p)), _same, 0.93),
    Attack("rotated 90", _turn(1), _turn(-1), 0.93),
    Attack("rotated 180", _turn(2), _turn(-2), 0.93),
    Attack("rotated 270", _turn(3), _turn(-3), 0.93),
    Attack("flip horiz.", _flip(1), _flip(1), 0.93),
    Attack("flip vert.", _flip(0), _flip(0), 0.93),
)
