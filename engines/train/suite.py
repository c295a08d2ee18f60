"""The attacks models are looked at with while they are trained; the benchmark has them all."""

from __future__ import annotations

from collections.abc import Callable

import attacks
import cv2
import families
import numpy as np
from attacks import Picture

Suite = dict[str, Callable[[Picture], Picture]]


def suite(rng: np.random.Generator) -> Suite:
    """Return the attacks of the table, by name."""
    def noisy(variance: float) -> Callable[[Picture], Picture]:
        sigma = 255 * variance**0.5
        return lambda p: families.byte(p + sigma * rng.standard_normal(p.shape))

    def coded(quality: int) -> Callable[[Picture], Picture]:
        return lambda p: attacks.jpeg(p, rng, quality)

    def sized(f: float) -> Callable[[Picture], Picture]:
        how = cv2.INTER_AREA if f < 1 else cv2.INTER_CUBIC
        return lambda p: cv2.resize(p, None, fx=f, fy=f, interpolation=how)

    def toned(power: float) -> Callable[[Picture], Picture]:
        return lambda p: families.byte(255 * (p / 255.0) ** power)

    def jpeg_2000(p: Picture) -> Picture:
        code = cv2.imencode(".jp2", p, [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 50])[1]
        return cv2.imdecode(code, cv2.IMREAD_GRAYSCALE)

    def cropped(share: float) -> Callable[[Picture], Picture]:
        def attack(p: Picture) -> Picture:
            out, kept = np.zeros_like(p), families.part(p, 1 - share, rng)
            out[kept] = p[kept]
            return out

        return attack

    return {
        "plain": lambda p: p,
        **{f"jpeg {q}": coded(q) for q in (90, 70, 50, 30, 10)},
        "jpeg 2000 20:1": jpeg_2000,
        "blur 7x7": lambda p: cv2.GaussianBlur(p, (7, 7), 0),
        "mean 3x3": lambda p: cv2.blur(p, (3, 3)),
        "median 3x3": lambda p: cv2.medianBlur(p, 3),
        **{f"size {f}": sized(f) for f in (0.5, 0.25, 1.5)},
        "gamma 0.5": toned(0.5),
        "gamma 2": toned(2.0),
        "equalised": cv2.equalizeHist,
        "clahe": lambda p: cv2.createCLAHE(2.0, (8, 8)).apply(p),
        "brightness +50": lambda p: families.byte(p + 50.0),
        "contrast 1.5": lambda p: families.byte(127.5 + (p - 127.5) * 1.5),
        **{f"noise {v}": noisy(v) for v in (0.001, 0.005, 0.01)},
        "speckle 0.01": lambda p: families.byte(p * (1 + 0.1 * rng.standard_normal(p.shape))),
        "salt and pepper 0.01": lambda p: families.salt_and_pepper(p, 0.286, rng),
        "photons": lambda p: families.photons(p, 1.0, rng),
        "misplaced": lambda p: families.misplace(p, 0.6, rng),
        "cropped 25 %": cropped(0.25),
        "cropped 50 %": cropped(0.5),
    }
