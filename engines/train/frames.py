"""The frames of `pack.py`, and what makes other plausible frames of them (NumPy and OpenCV)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

SIDE = 256


class Pack(NamedTuple):
    """Frames 256 x 256, 8 bit, in their display window, split by patient or source."""

    train: np.ndarray  # (frames, 256, 256) uint8
    weight: np.ndarray  # (frames,): how often each is drawn, sum 1
    val: np.ndarray  # of groups never trained on


def read_pack(path: Path) -> Pack:
    with np.load(path) as data:
        return Pack(data["train"], data["weight"] / data["weight"].sum(), data["test"])


def augment(frame: np.ndarray, rng: np.random.Generator, zoomed: float = 0.6) -> np.ndarray:
    """Return another 256 x 256 frame: a zoomed part, turned, in another window, with grain."""
    side = int(SIDE * rng.uniform(0.6, 1.0)) if rng.random() < zoomed else SIDE
    top, left = rng.integers(0, SIDE + 1 - side, 2)
    out = frame[top : top + side, left : left + side]
    out = cv2.resize(out, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR) if side != SIDE else out
    out = np.rot90(out, rng.integers(4))
    if rng.random() < 0.5:
        out = out[:, ::-1]
    y = out.astype(np.float32)
    if rng.random() < 0.4:  # window: CT and MR are shown in many
        low, high = rng.uniform(-20, 60), rng.uniform(170, 290)
        y = (y - low) * (255 / (high - low))
    if rng.random() < 0.3:  # finer grain than an 8-bit, resampled picture still has
        y = y + rng.uniform(0.5, 4) * rng.standard_normal(y.shape, np.float32)
    return np.clip(np.rint(y), 0, 255).astype(np.uint8)


def seen(picture: np.ndarray, side: int = 128) -> np.ndarray:
    """Return an 8-bit picture of any size as the networks see it, ``(side, side)``, 0..1."""
    shrinks = min(picture.shape) >= side
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(picture.astype(np.float32), (side, side), interpolation=how) / 255
