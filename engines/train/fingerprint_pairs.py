"""Pairs to train the fingerprint on: a frame, the same frame later, and where it was changed.

What happens in between is either *processing*, which leaves the content as it is (export, filters,
scaling, another window, the robust mark itself), or *tampering*, which changes it in one place.
"""

from __future__ import annotations

from collections.abc import Callable

import attacks
import cv2
import numpy as np
from frames import seen
from numpy.typing import NDArray

SIDE = 256  # of the frames that are processed and changed
SEEN = 128  # of the frames as the network sees them
CELLS = 16
CHANGED, SAME = 0.025, 0.004  # mean change of a cell, display values: from, and up to, which

Picture = NDArray[np.uint8]  # (256, 256)
Tampering = Callable[[Picture, Picture, np.random.Generator], Picture]


def windowed(y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return `y` as another window shows it."""
    low, high = rng.uniform(-30, 50), rng.uniform(180, 300)
    return (y - low) * (255 / (high - low))


# --- processing ---------------------------------------------------------------------------------


def jpeg(p: Picture, rng: np.random.Generator) -> Picture:
    return attacks.jpeg(p, rng, int(rng.integers(50, 96)))


def rescale(p: Picture, rng: np.random.Generator) -> Picture:
    f = rng.choice([0.5, 0.75, 1.5, 2.0])
    how = cv2.INTER_AREA if f < 1 else rng.choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC])
    size = int(p.shape[1] * f), int(p.shape[0] * f)
    return cv2.resize(p, size, interpolation=int(how))


def gamma(p: Picture, rng: np.random.Generator) -> Picture:
    return np.rint(255 * (p / 255.0) ** np.exp(rng.uniform(-0.7, 0.7))).astype(np.uint8)


def brightness_contrast(p: Picture, rng: np.random.Generator) -> Picture:
    y = 127.5 + (p - 127.5) * rng.uniform(0.65, 1.5) + rng.uniform(-50, 50) * (rng.random() < 0.5)
    return np.clip(np.rint(y), 0, 255).astype(np.uint8)


def window(p: Picture, rng: np.random.Generator) -> Picture:
    return np.clip(np.rint(windowed(p.astype(np.float32), rng)), 0, 255).astype(np.uint8)


def noise(p: Picture, rng: np.random.Generator) -> Picture:
    sigma = rng.uniform(1, 8.5)
    grain = sigma * rng.standard_normal(p.shape, np.float32)
    if rng.random() < 0.3:
        grain *= p / np.float32(128)
    return np.clip(np.rint(p + grain), 0, 255).astype(np.uint8)


PROCESSING = (
    (jpeg, 3.0), (attacks.gaussian_blur, 1.2), (attacks.mean_filter, 0.8),
    (attacks.median_filter, 1.0), (rescale, 1.5), (gamma, 1.2), (attacks.equalise, 1.6),
    (brightness_contrast, 1.2), (window, 1.2), (noise, 1.4), (attacks.salt_and_pepper, 0.3),
    (attacks.shift_scale, 1.0),
)  # fmt: skip
_WEIGHTS = np.array([weight for _, weight in PROCESSING])


def process(p: Picture, rng: np.random.Generator) -> Picture:
    """Apply one to three kinds of processing, or none."""
    for _ in range(rng.choice([0, 1, 2, 3], p=[0.1, 0.4, 0.35, 0.15])):
        p = PROCESSING[rng.choice(len(PROCESSING), p=_WEIGHTS / _WEIGHTS.sum())][0](p, rng)
    return p


def robust_mark(p: Picture, fields: np.ndarray, rng: np.random.Generator) -> Picture:
    """Add what W1 looks like: noise of its band, stronger in some parts than in others."""
    field = np.roll(fields[rng.integers(len(fields))], rng.integers(0, SIDE, 2), (0, 1))
    strength = cv2.resize(rng.uniform(0, 2, (8, 8)).astype(np.float32), (SIDE, SIDE))
    return np.clip(np.rint(p + rng.uniform(0.8, 2.2) * field * strength), 0, 255).astype(np.uint8)


# --- tampering ----------------------------------------------------------------------------------


def blob(rng: np.random.Generator, least: float = 8, most: float = 36) -> np.ndarray:
    """Return a soft-edged spot anywhere in the frame, 0..1: an ellipse with a wavy outline."""
    radius = least * (most / least) ** rng.random()
    row, column = rng.uniform(radius / 2, SIDE - radius / 2, 2)
    reach = int(1.5 * radius) + 4
    top, left = max(0, int(row) - reach), max(0, int(column) - reach)
    y, x = np.mgrid[top : int(row) + reach, left : int(column) + reach].astype(np.float32)
    y, x = y[y[:, 0] < SIDE], x[y[:, 0] < SIDE]
    y, x = y[:, x[0] < SIDE], x[:, x[0] < SIDE]
    angle, squash = rng.uniform(0, np.pi), rng.uniform(0.65, 1.0)
    dx, dy = x - column, y - row
    u = dx * np.cos(angle) + dy * np.sin(angle)
    v = (dy * np.cos(angle) - dx * np.sin(angle)) / squash
    around = np.arctan2(v, u)
    wave = 1 + rng.uniform(0, 0.18) * np.sin(rng.integers(2, 6) * around + rng.uniform(0, 6.3))
    soft = rng.uniform(0.8, max(1.0, radius / 3))
    where = np.zeros((SIDE, SIDE), np.float32)
    spot = np.clip((radius * wave - np.hypot(u, v)) / soft + 0.5, 0, 1)
    where[top : top + spot.shape[0], left : left + spot.shape[1]] = spot
    return where


def lesion(p: Picture, other: Picture, rng: np.random.Generator) -> Picture:
    """Paint a lighter or darker spot, flat or with a texture of its own, over or into the frame."""
    where = blob(rng)
    inner = rng.uniform(20, 110) * rng.choice([-1, 1])
    if rng.random() < 0.5:
        grain = cv2.resize(rng.standard_normal((32, 32)).astype(np.float32), (SIDE, SIDE))
        inner = inner + rng.uniform(0, 18) * grain
    if rng.random() < 0.3:  # instead of what was there, not on top of it
        inner = rng.uniform(0, 255) - p.astype(np.float32)
    return _clip(p + where * inner)


def removed(p: Picture, other: Picture, rng: np.random.Generator) -> Picture:
    """Fill a spot from what is around it, and give it the grain of the rest."""
    where = blob(rng, 8, 28)
    hole = (where > 0.02).astype(np.uint8)
    if rng.random() < 0.5:
        small = cv2.resize(p, (SIDE // 2, SIDE // 2), interpolation=cv2.INTER_AREA)
        mask = cv2.resize(hole, (SIDE // 2, SIDE // 2), interpolation=cv2.INTER_NEAREST)
        filled = cv2.resize(cv2.inpaint(small, mask, 3, cv2.INPAINT_TELEA), (SIDE, SIDE))
    else:
        keep = 1 - hole.astype(np.float32)
        size = (0, 0), float(rng.uniform(6, 14))
        weight = cv2.GaussianBlur(keep, *size) + 1e-3
        filled = cv2.GaussianBlur(p * keep, *size) / weight
    grain = rng.uniform(0, 4) * rng.standard_normal(p.shape, np.float32)
    return _clip(p + where * (filled + grain - p))


def moved(p: Picture, other: Picture, rng: np.random.Generator) -> Picture:
    """Copy a spot from elsewhere in the frame."""
    where = blob(rng)
    away = rng.integers(24, 160, 2) * rng.choice([-1, 1], 2)
    return _clip(p + where * (np.roll(p, tuple(away), (0, 1)).astype(np.float32) - p))


def swapped(p: Picture, other: Picture, rng: np.random.Generator) -> Picture:
    """Put a spot of another frame in, its brightness fitted in two of three cases."""
    where = blob(rng)
    donor = other.astype(np.float32)
    if rng.random() < 0.66:
        inside = where > 0.5
        if inside.any():
            donor = donor + (p[inside].mean() - donor[inside].mean())
    return _clip(p + where * (donor - p))


def _clip(y: np.ndarray) -> Picture:
    return np.clip(np.rint(y), 0, 255).astype(np.uint8)


TAMPERING: dict[str, Tampering] = {
    "lesion": lesion, "removed": removed, "moved": moved, "swapped": swapped,
}  # fmt: skip


def labels(before: Picture, after: Picture) -> NDArray[np.int8]:
    """Return 1 for cells that were changed, 0 for untouched ones, -1 for those in between."""
    change = np.abs(after.astype(np.float32) - before) / 255
    mean = cv2.resize(change, (CELLS, CELLS), interpolation=cv2.INTER_AREA)
    return np.where(mean >= CHANGED, 1, np.where(mean <= SAME, 0, -1)).astype(np.int8)


def pair(
    frame: Picture, other: Picture, fields: np.ndarray, rng: np.random.Generator,
    kind: str | None = None,
) -> tuple[np.ndarray, np.ndarray, NDArray[np.int8]]:  # fmt: skip
    """Return a frame before and after, as the network sees them, and the labels of its cells.

    Parameters
    ----------
    kind
        Tamper in that way, once; "" not at all; None: in one of four pairs not at all, in the
        others once to three times in any way.
    """
    if kind is None:
        times = rng.choice([0, 1, 2, 3], p=[0.25, 0.35, 0.25, 0.15])
        kinds = [str(k) for k in rng.choice(list(TAMPERING), times)]
    else:
        kinds = [kind] if kind else []
    after = frame
    for each in kinds:
        after = TAMPERING[each](after, other, rng)
    marked = labels(frame, after)
    if rng.random() < 0.8:
        after = robust_mark(after, fields, rng)
    return seen(frame), seen(process(after, rng)), marked
