"""Noise: salt and pepper, Gaussian, Poisson, speckle. Variances are of grey values in [0, 1]."""

from __future__ import annotations

import numpy as np

from dicom_node.bench.attacks.base import Attack, Picture, Rng, rounded

_FAMILY = "noise"
_TARGETS = {0.001: 0.98, 0.005: 0.90, 0.01: 0.75}
_VARIANCES = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01)


def gaussian(picture: Picture, rng: Rng, variance: float) -> Picture:
    """Return the picture with white Gaussian noise."""
    sigma = np.float32(255 * np.sqrt(variance))
    return rounded(picture + sigma * rng.standard_normal(picture.shape, np.float32))


def salt_and_pepper(picture: Picture, rng: Rng, density: float) -> Picture:
    """Return the picture with a share of its pixels made white or black, half each."""
    draw, out = rng.random(picture.shape, np.float32), picture.copy()
    out[draw < density / 2] = 0
    out[draw > 1 - density / 2] = 255
    return out


def speckle(picture: Picture, rng: Rng, variance: float) -> Picture:
    """Return ``v (1 + n)`` with Gaussian n."""
    factor = 1 + np.float32(np.sqrt(variance)) * rng.standard_normal(picture.shape, np.float32)
    return rounded(picture * factor)


def poisson(picture: Picture, rng: Rng, amount: float) -> Picture:
    """Return the picture with `amount` of the noise it has where a grey level is one photon."""
    counts = rng.poisson(picture).astype(np.float32)
    return rounded(picture + np.float32(amount) * (counts - picture))


def _gaussian(variance: float) -> Attack:
    return Attack(
        f"Gaussian noise {variance:g}", _FAMILY, lambda p, rng: gaussian(p, rng, variance),
        target=_TARGETS.get(variance), curve=("noise variance", variance),
        paper="93.1" if variance in _TARGETS else "",
    )  # fmt: skip


def _salt(density: float, target: float | None, paper: str) -> Attack:
    return Attack(
        f"salt and pepper {density:g}", _FAMILY, lambda p, rng: salt_and_pepper(p, rng, density),
        target=target, paper=paper,
    )  # fmt: skip


NOISE: tuple[Attack, ...] = (
    # MedSecure's "0.5", read as a standard deviation of half a grey level
    Attack("Gaussian noise, half a grey level", _FAMILY,
           lambda p, rng: gaussian(p, rng, (0.5 / 255) ** 2), target=0.99, paper="100"),
    *map(_gaussian, _VARIANCES),
    _salt(0.01, 0.98, "97.5-99.2; 93.1"),
    _salt(0.03, None, ""),
    # MedSecure's "0.08", read as the amount of full photon noise
    Attack("Poisson 0.08", _FAMILY, lambda p, rng: poisson(p, rng, 0.08), target=0.99, paper="100"),
    Attack("Poisson 1", _FAMILY, lambda p, rng: poisson(p, rng, 1.0)),
    Attack("speckle 0.01", _FAMILY, lambda p, rng: speckle(p, rng, 0.01), target=0.98,
           paper="98.3-99.5"),
)  # fmt: skip
