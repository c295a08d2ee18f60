"""Pictures of the benchmarks: to and from display values, and strips to look at."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import ConfigError

Picture = NDArray[np.uint8]

_PICTURE_PX = 320
_AMPLIFIED = 20


def eight_bit(shown: NDArray[np.float32]) -> Picture:
    """Return display values 0..1 as the grey values of an exported picture."""
    return np.rint(shown * 255).astype(np.uint8)


def display_values(picture: Picture) -> NDArray[np.float32]:
    """Return an exported picture as display values 0..1."""
    return np.asarray(picture * np.float32(1 / 255), np.float32)


def draw(path: Path, cover: Picture, marked: Picture) -> None:
    """Write cover, marked and difference x 20 side by side (ConfigError)."""
    scale = _PICTURE_PX / max(cover.shape)
    size = (round(cover.shape[1] * scale), round(cover.shape[0] * scale))
    middle = 128 + _AMPLIFIED * (marked.astype(np.int32) - cover)
    parts = [cover, marked, np.clip(middle, 0, 255).astype(np.uint8)]
    small = [cv2.resize(p, size, interpolation=cv2.INTER_AREA) for p in parts]
    if not cv2.imwrite(str(path), np.hstack(small)):
        raise ConfigError(f"{path}: cannot be written")
