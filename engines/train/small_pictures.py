"""What happens to a picture of a small frame, and how the search cuts the frame out of it again.

Such a picture is hardly larger than what its mark needs, so every interpolation takes some of it:
R2 for small frames is trained on pictures that were turned and are seen turned back.
"""

from __future__ import annotations

import attacks
import cv2
import families
import numpy as np
from attacks import Attack, Picture
from frames import seen


def grain(p: Picture, rng: np.random.Generator) -> Picture:
    """Add Gaussian noise of a variance from 0.0001 to 0.004, evenly in its logarithm."""
    sigma = np.float32(255 * np.sqrt(10 ** rng.uniform(-4.0, -2.4)))
    return families.byte(p + sigma * rng.standard_normal(p.shape, np.float32))


def mild_jpeg(p: Picture, rng: np.random.Generator) -> Picture:
    return attacks.jpeg(p, rng, int(rng.integers(25, 93)))


def mild_blur(p: Picture, rng: np.random.Generator) -> Picture:
    return cv2.GaussianBlur(p, (7, 7), rng.uniform(0.4, 1.2))


def mild_size(p: Picture, rng: np.random.Generator) -> Picture:
    f = rng.uniform(0.6, 2.0)
    size = (round(p.shape[1] * f), round(p.shape[0] * f))
    return cv2.resize(p, size, interpolation=cv2.INTER_AREA if f < 1 else cv2.INTER_CUBIC)


# Of what these pixels can hold a mark through; the rest would be learned for nothing.
SMALL: tuple[tuple[Attack, float], ...] = (
    (attacks.plain, 3.0), (mild_jpeg, 4.0), (attacks.webp, 0.5), (grain, 2.0),
    (attacks.any_speckle, 0.7), (attacks.photons, 0.3), (attacks.any_salt_and_pepper, 0.7),
    (mild_blur, 1.0), (attacks.mean_filter, 0.3), (attacks.median_filter, 0.4), (mild_size, 1.5),
    (attacks.gamma, 0.6), (attacks.equalise, 0.7), (attacks.brightness_contrast, 0.5),
    (attacks.mostly_blackened, 0.8), (attacks.covered, 0.4),
)  # fmt: skip
TURNED, JPEG_AFTER = 0.55, 0.2  # shares
# What the search leaves amiss: degrees, log of size, pixels.
AMISS = (0.5, 0.008, 0.35)


def drawn(p: Picture, rng: np.random.Generator, side: int) -> np.ndarray:
    """Attack a picture; return it as the networks see it, ``(side, side)`` float32, 0..1."""
    weights = np.array([w for _, w in SMALL])
    out = SMALL[rng.choice(len(SMALL), p=weights / weights.sum())][0](p, rng)
    is_turned = rng.random() < TURNED
    rows, columns = out.shape
    there = turning(out.shape, rng) if is_turned else np.eye(3)
    if is_turned:
        out = cv2.warpAffine(out, there[:2], (columns, rows), flags=cv2.INTER_LINEAR)
    if rng.random() < JPEG_AFTER:
        out = attacks.jpeg(out, rng, int(rng.integers(60, 95)))
    if not is_turned:
        return np.asarray(seen(out, side), np.float32)
    return cut_out(out, there @ amiss(out.shape, rng), side)


def turning(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return a map of pixels ``(3, 3)``: about the middle by any angle, then moved and resized."""
    turn = rng.uniform(0, 360) if rng.random() < 0.7 else 0.0
    zoom = np.exp(rng.uniform(-0.1, 0.18)) if rng.random() < 0.5 else 1.0
    away = np.float64(shape[1]) * 0.1
    move = rng.uniform(-away, away, 2) if rng.random() < 0.4 else np.zeros(2)
    return _about_the_middle(shape, float(turn), float(zoom), move)


def amiss(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return a map of pixels ``(3, 3)`` that is nearly none."""
    turn, size, away = AMISS
    return _about_the_middle(
        shape, rng.uniform(-turn, turn), np.exp(rng.uniform(-size, size)),
        rng.uniform(-away, away, 2),
    )  # fmt: skip


def cut_out(p: Picture, to_pixels: np.ndarray, side: int) -> np.ndarray:
    """Return the frame that `to_pixels` maps to a picture, as `placement.sharply_seen` does."""
    rows, columns = p.shape
    centre = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    scale = np.diag([columns / side, rows / side, 1.0])
    of_samples = np.linalg.inv(centre) @ scale @ centre
    matrix = to_pixels @ of_samples
    how = cv2.INTER_LANCZOS4 if 0.4 <= columns / side <= 1.05 else cv2.INTER_LINEAR
    warped = cv2.warpAffine(
        p.astype(np.float32) / 255, matrix[:2], (side, side), flags=how | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    return np.clip(warped, 0, 1)


def _about_the_middle(
    shape: tuple[int, ...], turn: float, zoom: float, move: np.ndarray
) -> np.ndarray:
    middle = ((shape[1] - 1) / 2, (shape[0] - 1) / 2)
    matrix = np.eye(3)
    matrix[:2] = cv2.getRotationMatrix2D(middle, turn, zoom)
    matrix[:2, 2] += move
    return matrix
