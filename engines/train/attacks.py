"""What happens to a picture between embed and extract: real attacks, on 8-bit pictures.

`WEAK` is what R2 is trained against, and stays as it was; :mod:`families` is for W1.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]  # (rows, columns)
Attack = Callable[[Picture, np.random.Generator], Picture]

cv2.setNumThreads(1)


def _float(p: Picture, y: NDArray[np.floating]) -> Picture:
    return np.clip(np.rint(y), 0, 255).astype(np.uint8)


def jpeg(p: Picture, rng: np.random.Generator, quality: int | None = None) -> Picture:
    q = quality if quality is not None else int(rng.choice([15, 25, 30, 40, 50, 60, 70, 80, 90]))
    return cv2.imdecode(
        cv2.imencode(".jpg", p, [cv2.IMWRITE_JPEG_QUALITY, q])[1], cv2.IMREAD_GRAYSCALE
    )


def gaussian_blur(p: Picture, rng: np.random.Generator) -> Picture:
    return cv2.GaussianBlur(p, (7, 7), 0) if rng.random() < 0.6 else cv2.GaussianBlur(p, (5, 5), 0)


def mean_filter(p: Picture, rng: np.random.Generator) -> Picture:
    return cv2.blur(p, (3, 3))


def median_filter(p: Picture, rng: np.random.Generator) -> Picture:
    return cv2.medianBlur(p, 3)


def gamma(p: Picture, rng: np.random.Generator) -> Picture:
    return _float(p, 255 * (p / 255.0) ** rng.choice([0.5, 0.7, 1.4, 2.0]))


def equalise(p: Picture, rng: np.random.Generator) -> Picture:
    if rng.random() < 0.7:
        return cv2.equalizeHist(p)
    return cv2.createCLAHE(2.0, (8, 8)).apply(p)


def brightness_contrast(p: Picture, rng: np.random.Generator) -> Picture:
    if rng.random() < 0.5:
        return _float(p, p + rng.uniform(-50, 50))
    return _float(p, 127.5 + (p - 127.5) * rng.uniform(0.6, 1.5))


def salt_and_pepper(p: Picture, rng: np.random.Generator) -> Picture:
    out, u = p.copy(), rng.random(p.shape)
    out[u < 0.005], out[u > 0.995] = 0, 255
    return out


def shift_scale(p: Picture, rng: np.random.Generator) -> Picture:
    """Mis-register slightly, as an imperfect geometric search leaves a picture."""
    rows, columns = p.shape
    m = cv2.getRotationMatrix2D(
        (columns / 2, rows / 2), rng.uniform(-0.5, 0.5), rng.uniform(0.993, 1.007)
    )
    m[:, 2] += rng.uniform(-0.7, 0.7, 2)
    return cv2.warpAffine(
        p, m, (columns, rows), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )


def plain(p: Picture, rng: np.random.Generator) -> Picture:
    return p


def any_noise(p: Picture, rng: np.random.Generator) -> Picture:
    """Add Gaussian noise of a variance from 0.0002 to 0.0126, evenly in its logarithm."""
    sigma = np.float32(255 * np.sqrt(10 ** rng.uniform(-3.7, -1.9)))
    return _float(p, p + sigma * rng.standard_normal(p.shape, np.float32))


def any_speckle(p: Picture, rng: np.random.Generator) -> Picture:
    sigma = np.float32(np.sqrt(rng.uniform(0.003, 0.02)))
    return _float(p, p * (1 + sigma * rng.standard_normal(p.shape, np.float32)))


def photons(p: Picture, rng: np.random.Generator) -> Picture:
    return _float(p, p + rng.uniform(0.3, 1.2) * (rng.poisson(p) - p.astype(np.float32)))


def any_salt_and_pepper(p: Picture, rng: np.random.Generator) -> Picture:
    share, out, u = rng.uniform(0.002, 0.02), p.copy(), rng.random(p.shape, np.float32)
    out[u < share / 2], out[u > 1 - share / 2] = 0, 255
    return out


def strong_jpeg(p: Picture, rng: np.random.Generator) -> Picture:
    return jpeg(p, rng, int(rng.choice([8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 70, 80])))


def jpeg_2000(p: Picture, rng: np.random.Generator) -> Picture:
    share = int(1000 / rng.uniform(8, 30))
    code = cv2.imencode(".jp2", p, [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, share])[1]
    return cv2.imdecode(code, cv2.IMREAD_GRAYSCALE)


def webp(p: Picture, rng: np.random.Generator) -> Picture:
    code = cv2.imencode(".webp", p, [cv2.IMWRITE_WEBP_QUALITY, int(rng.uniform(20, 85))])[1]
    return cv2.imdecode(code, cv2.IMREAD_GRAYSCALE)


def misplaced(p: Picture, rng: np.random.Generator) -> Picture:
    """Mis-register as the coarse stages of the search do."""
    rows, columns = p.shape
    m = cv2.getRotationMatrix2D(
        (columns / 2, rows / 2), rng.uniform(-0.8, 0.8), rng.uniform(0.988, 1.012)
    )
    m[:, 2] += rng.uniform(-1.6, 1.6, 2) * columns / 256
    return cv2.warpAffine(
        p, m, (columns, rows), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )


def mostly_blackened(p: Picture, rng: np.random.Generator) -> Picture:
    keep = np.sqrt(1 - rng.uniform(0.1, 0.6))
    h, w = int(p.shape[0] * keep), int(p.shape[1] * keep)
    top, left = rng.integers(0, p.shape[0] - h + 1), rng.integers(0, p.shape[1] - w + 1)
    out = np.zeros_like(p)
    out[top : top + h, left : left + w] = p[top : top + h, left : left + w]
    return out


def covered(p: Picture, rng: np.random.Generator) -> Picture:
    share, out = np.sqrt(rng.uniform(0.05, 0.3)), p.copy()
    h, w = int(p.shape[0] * share), int(p.shape[1] * share)
    top, left = rng.integers(0, p.shape[0] - h + 1), rng.integers(0, p.shape[1] - w + 1)
    out[top : top + h, left : left + w] = rng.integers(256)
    return out


def any_size(p: Picture, rng: np.random.Generator) -> Picture:
    f = rng.uniform(0.28, 1.6)
    size = (max(8, int(p.shape[1] * f)), max(8, int(p.shape[0] * f)))
    return cv2.resize(p, size, interpolation=cv2.INTER_AREA if f < 1 else cv2.INTER_CUBIC)


# What R2 learns from: more of all that D1 does not read, beside what it does.
WEAK: tuple[tuple[Attack, float], ...] = (
    (plain, 1.2), (strong_jpeg, 3.0), (jpeg_2000, 1.5), (webp, 0.6), (gaussian_blur, 0.9),
    (mean_filter, 0.5), (median_filter, 0.8), (any_size, 1.2), (gamma, 0.8), (equalise, 1.0),
    (brightness_contrast, 0.7), (any_noise, 3.0), (any_speckle, 1.0), (photons, 0.5),
    (any_salt_and_pepper, 1.0), (misplaced, 1.5), (mostly_blackened, 0.9), (covered, 0.5),
)  # fmt: skip


def draw_weak(p: Picture, rng: np.random.Generator) -> Picture:
    """Apply one attack of `WEAK`, and in three of ten cases another after it."""
    weights = np.array([w for _, w in WEAK])
    out = WEAK[rng.choice(len(WEAK), p=weights / weights.sum())][0](p, rng)
    second = rng.random()
    if second < 0.15:
        return jpeg(out, rng, int(rng.integers(60, 95)))
    if second < 0.22:
        return any_noise(out, rng)
    return misplaced(out, rng) if second < 0.3 else out
