"""Attackers who know the method, own the software, and have many marked frames; but no key of ours.

The copy attack stands apart (`transplanted`): there the question is not whether our mark is still
read but whether it is believed in a picture that it was not made for.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom_node.bench.attacks.base import Attack, Pair, Picture, Rng, Scene, rounded, steady
from dicom_node.watermark.robust import RobustKey, RobustWatermark

_FAMILY = "hostile"
_SUBTRACTED_GREY = 2.0  # rms at which the mean residual is taken off: more than a mark has
_LEAST_OTHERS = 4


def marked_again(picture: Picture, robust: RobustWatermark, key: RobustKey) -> Picture:
    """Return the picture with a robust mark of `key`; as it is where it can carry none."""
    shown = np.asarray(picture * np.float32(1 / 255), np.float32)
    mark = robust.embed(
        picture.astype(np.int32), shown, step=1.0, low=0, high=255, padding=None, key=key
    )
    return mark.marked.astype(np.uint8)


def transplanted(pair: Pair, cover: Picture) -> Picture:
    """Return `cover` with the residual of another marked frame added to it."""
    return rounded(cover + _resized(_residual(pair), cover.shape))


def _overwritten(scene: Scene, rng: Rng) -> Picture | None:
    del rng
    return marked_again(scene.exports["plain"], scene.robust, scene.keys[0])


def _copies_averaged(count: int) -> Callable[[Scene, Rng], Picture | None]:
    """Average the frame with copies of it that were marked for other owners."""

    def attack(scene: Scene, rng: Rng) -> Picture | None:
        del rng
        keys = scene.keys[: count - 1]
        if len(keys) < count - 1:
            return None
        copies = [marked_again(scene.cover, scene.robust, key) for key in keys]
        stack = np.stack([scene.exports["plain"], *copies]).astype(np.float32)
        return rounded(stack.mean(axis=0))

    return attack


def _mean_subtracted(scene: Scene, rng: Rng) -> Picture | None:
    """Take off the mean of the residuals of other frames, enlarged to what a mark has."""
    del rng
    if len(scene.others) < _LEAST_OTHERS:
        return None
    picture = scene.exports["plain"]
    total = np.mean([_resized(_estimated(p), picture.shape) for p in scene.others], axis=0)
    size = float(np.sqrt(np.mean(np.square(total, dtype=np.float64))))
    return rounded(picture - total * (_SUBTRACTED_GREY / max(size, 1e-6)))


def _by_network(times: float) -> Callable[[Scene, Rng], Picture | None]:
    """Take off what the trained network takes for the mark, that many times."""

    def attack(scene: Scene, rng: Rng) -> Picture | None:
        del rng
        if scene.remover is None:
            return None
        picture = scene.exports["plain"]
        return rounded(picture - np.float32(times) * scene.remover.residual(picture))

    return attack


def _residual(pair: Pair) -> NDArray[np.float32]:
    return np.asarray(pair.marked.astype(np.float32) - pair.cover, np.float32)


def _estimated(pair: Pair) -> NDArray[np.float32]:
    """Return the residual as somebody guesses it who does not have the cover."""
    smooth = cv2.medianBlur(pair.marked, 5)
    return np.asarray(pair.marked.astype(np.float32) - smooth, np.float32)


def _resized(values: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    how = cv2.INTER_AREA if values.shape[0] > shape[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(values, (shape[1], shape[0]), interpolation=how), np.float32)


def _hostile(name: str, knowing: Callable[[Scene, Rng], Picture | None]) -> Attack:
    return Attack(name, _FAMILY, steady(lambda p: p), knowing=knowing)


HOSTILE: tuple[Attack, ...] = (
    _hostile("overwritten with another key", _overwritten),
    _hostile("averaged over 2 owners' copies", _copies_averaged(2)),
    _hostile("averaged over 4 owners' copies", _copies_averaged(4)),
    _hostile("mean residual of other frames subtracted", _mean_subtracted),
    _hostile("surrogate network", _by_network(1)),
    _hostile("surrogate network, 4 times", _by_network(4)),
)
