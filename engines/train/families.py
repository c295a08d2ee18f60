"""The families of attacks W1 is trained against, on one 8-bit picture each, by OpenCV.

Each takes a picture ``(rows, columns)`` uint8 and a severity `u`: 0 the mildest of the family, 1
the worst. :mod:`gpu_attacks` has the same families under the same names, for batches on a device.
"""

from __future__ import annotations

from collections.abc import Callable

import attacks
import cv2
import numpy as np
from attacks import Picture

Attack = Callable[[Picture, float, np.random.Generator], Picture]


def between(mildest: float, worst: float, u: float) -> float:
    return mildest + u * (worst - mildest)


def byte(y: np.ndarray) -> Picture:
    return np.clip(np.rint(y), 0, 255).astype(np.uint8)


def sign(rng: np.random.Generator) -> float:
    return 1.0 if rng.random() < 0.5 else -1.0


def jpeg(p: Picture, u: float, rng: np.random.Generator) -> Picture:
    return attacks.jpeg(p, rng, round(between(92, 10, u)))


def jpeg_2000(p: Picture, u: float, rng: np.random.Generator) -> Picture:
    share = int(1000 / between(6, 30, u))
    code = cv2.imencode(".jp2", p, [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, share])[1]
    return cv2.imdecode(code, cv2.IMREAD_GRAYSCALE)


def blur(p: Picture, u: float, rng: np.random.Generator) -> Picture:
    return cv2.GaussianBlur(p, (9, 9), between(0.6, 2.0, u))  # OpenCV's 7 x 7 has 1.4


def mean(p: Picture, u: float, rng: np.random.Generator) -> Picture:
    return cv2.blur(p, (3, 3))


def median(p: Picture, u: float, rng: np.random.Generator) -> Picture:
    return cv2.medianBlur(p, 3)


def noise(p: Picture, u: float, rng: np.random.Generator) -> Picture:
    sigma = np.float32(255 * 10 ** (between(-3.7, -2.0, u) / 2))  # variance 0.0002 to 0.01
    return byte(p + sigma * rng.standard_normal(p.shape, np.float32))


def speckle(p: Picture, u: float, rng: np.random.Generator) -> Picture:
    sigma = np.float32(between(0.002, 0.02, u) ** 0.5)
    return byte(p * (1 + sigma * rng.standard_normal(p.shape, np.float32)))


def salt_and_pepper(p: Picture, u: float, rng: np.random.Generator) -> Picture:
    share, out, drawn = between(0.002, 0.03, u), p.copy(), rng.random(p.shape, np.float32)
    out[drawn < share / 2], out[drawn > 1 - share / 2] = 0, 255
    return out


def photons(p: Picture, u: float, rng: np.random.Generator) -> Picture:
    return byte(p + between(0.3, 1.2, u) * (rng.poisson(p) - p.astype(np.float32)))


def gamma(p: Picture, u: float, rng: np.random.Generator) -> Picture:
    return byte(255 * (p / np.float32(255)) ** np.float32(np.exp(sign(rng) * 0.75 * u)))


def window(p: Picture, u: float, rng: np.random.Generator) -> Picture:
    low, high = 60 * u * rng.uniform(-1, 1), 255 + 60 * u * rng.uniform(-1, 1)
    return byte((p - np.float32(low)) * np.float32(255 / (high - low)))


def brightness(p: Picture, u: float, rng: np.random.Generator) -> Picture:
    return byte(p + np.float32(50 * u * sign(rng)))


def contrast(p: Picture, u: float, rng: np.random.Generator) -> Picture:
    return byte(127.5 + (p - np.float32(127.5)) * np.float32(np.exp(sign(rng) * 0.45 * u)))


def equalise(p: Picture, u: float, rng: np.random.Generator) -> Picture:
    return cv2.equalizeHist(p)


def clahe(p: Picture, u: float, rng: np.random.Generator) -> Picture:
    return cv2.createCLAHE(between(1, 3, u), (8, 8)).apply(p)


def resample(p: Picture, u: float, rng: np.random.Generator) -> Picture:
    f = between(1, 0.28, u) if rng.random() < 0.7 else between(1, 1.6, u)
    size = (max(8, round(p.shape[1] * f)), max(8, round(p.shape[0] * f)))
    return cv2.resize(p, size, interpolation=cv2.INTER_AREA if f < 1 else cv2.INTER_CUBIC)


def misplace(p: Picture, u: float, rng: np.random.Generator) -> Picture:
    """Mis-register, as an imperfect geometric search leaves a picture."""
    rows, columns = p.shape
    turn, zoom = 0.8 * u * rng.uniform(-1, 1), 1 + 0.012 * u * rng.uniform(-1, 1)
    m = cv2.getRotationMatrix2D((columns / 2, rows / 2), turn, zoom)
    m[:, 2] += 1.6 * u * rng.uniform(-1, 1, 2) * columns / 256
    return cv2.warpAffine(
        p, m, (columns, rows), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )


def part(p: Picture, share: float, rng: np.random.Generator) -> tuple[slice, slice]:
    """Return a rectangle of the picture's proportions, and of a share of its area."""
    h, w = (max(1, int(n * share**0.5)) for n in p.shape)
    top, left = rng.integers(0, p.shape[0] - h + 1), rng.integers(0, p.shape[1] - w + 1)
    return slice(top, top + h), slice(left, left + w)


def blacken(p: Picture, u: float, rng: np.random.Generator) -> Picture:
    """Crop up to 60 % of the area away and put the rest back in place."""
    out, kept = np.zeros_like(p), part(p, 1 - between(0.05, 0.6, u), rng)
    out[kept] = p[kept]
    return out


def cover(p: Picture, u: float, rng: np.random.Generator) -> Picture:
    out = p.copy()
    out[part(p, between(0.03, 0.3, u), rng)] = rng.integers(256)
    return out


def plain(p: Picture, u: float, rng: np.random.Generator) -> Picture:
    return p


# How often each is drawn where none is worse than another.
WEIGHTS = {
    "plain": 1.0, "jpeg": 3.0, "jpeg_2000": 1.0, "blur": 2.4, "mean": 0.6, "median": 1.0,
    "noise": 1.6, "speckle": 0.7, "salt_and_pepper": 0.7, "photons": 0.4, "gamma": 1.2,
    "window": 0.6, "brightness": 0.5, "contrast": 0.5, "equalise": 1.0, "clahe": 0.5,
    "resample": 1.4, "misplace": 1.2, "blacken": 0.9, "cover": 0.5,
}  # fmt: skip

FAMILIES: dict[str, Attack] = {name: globals()[name] for name in WEIGHTS}
