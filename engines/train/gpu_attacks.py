"""The families of attacks as batched torch operations, on whatever device the pictures are.

Pictures are display values 0..1 on the 8-bit grid, ``(batch, 1, rows, columns)`` float32; severity
`u` is ``(batch,)``, 0 the mildest of a family and 1 the worst, with the ranges of :mod:`families`.
Nothing is read back from the device. Gradients reach every sample at full resolution: where an
attack is smooth (filters, resampling, geometry, tone curves) its own, where it rounds (JPEG,
wavelets, 8 bits, equalisation) straight through.

Without a counterpart in torch: WebP, and the rate control and entropy coding of JPEG 2000, which
lose nothing; its quantiser step is drawn instead.

References
----------
ITU-T T.81 Annex K.1 (luminance table), its scaling by quality as in the IJG's jcparam.c;
ITU-T T.800 Annex F.4.8 (9-7 irreversible filter by lifting).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from families import WEIGHTS
from torch import Tensor

Attack = Callable[[Tensor, Any, torch.Generator], Tensor]


# --- drawing and rounding -------------------------------------------------------------------------


def uniform(like: Tensor, g: torch.Generator, *shape: int) -> Tensor:
    """Return uniform numbers 0..1 on the device of `like`; ``(batch, 1, 1, 1)`` by default."""
    return torch.rand(shape or (len(like), 1, 1, 1), generator=g, device=like.device)


def normal(x: Tensor, g: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=g, device=x.device)


def signs(x: Tensor, g: torch.Generator) -> Tensor:
    return torch.where(uniform(x, g) < 0.5, 1.0, -1.0)


def between(mildest: float, worst: float, u: Tensor) -> Tensor:
    return (mildest + u * (worst - mildest)).view(-1, 1, 1, 1)


def straight_through(x: Tensor, y: Tensor) -> Tensor:
    """Return `y` with the gradient of `x`."""
    return x + (y - x).detach()


def byte(y: Tensor) -> Tensor:
    """Clip to 0..1 and round to the 8-bit grid."""
    y = y.clamp(0, 1)
    return straight_through(y, (255 * y).round() / 255)


# --- compression ----------------------------------------------------------------------------------

_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56), (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip


@cache
def luminance(device: torch.device) -> Tensor:
    """Return the table on a device, where it is copied to once: copying waits."""
    return torch.tensor(_LUMINANCE, dtype=torch.float32, device=device)


def cosines(device: torch.device) -> Tensor:
    """Return the orthonormal DCT-II of 8 samples as a matrix, ``(8, 8)``."""
    k, n = torch.arange(8.0, device=device)[:, None], torch.arange(8.0, device=device)[None]
    matrix = torch.cos(math.pi * (2 * n + 1) * k / 16) / 2
    return torch.cat([matrix[:1] / math.sqrt(2), matrix[1:]])


def quantiser(quality: Tensor) -> Tensor:
    """Return the luminance tables of qualities ``(batch,)``: ``(batch, 1, 1, 8, 8)``."""
    q = quality.round().clamp(1, 100)
    scale = torch.where(q < 50, torch.floor(5000 / q), 200 - 2 * q).view(-1, 1, 1)
    return ((luminance(quality.device) * scale + 50) / 100).floor().clamp(1, 255)[:, None, None]


def jpeg_of(x: Tensor, quality: Tensor) -> Tensor:
    """Return pictures as a baseline JPEG codec of these qualities gives them back."""
    rows, columns = x.shape[-2:]
    padded = F.pad(255 * x - 128, (0, -columns % 8, 0, -rows % 8), mode="replicate")
    tall, wide = padded.shape[-2] // 8, padded.shape[-1] // 8
    blocks = padded.reshape(-1, tall, 8, wide, 8).transpose(2, 3)  # (batch, tall, wide, 8, 8)
    d, table = cosines(x.device), quantiser(quality)
    levels = d @ blocks @ d.t() / table
    back = d.t() @ (straight_through(levels, levels.round()) * table) @ d
    back = back.transpose(2, 3).reshape(padded.shape)[..., :rows, :columns]
    return byte((back + 128) / 255)


def jpeg(x: Tensor, u: Tensor, g: torch.Generator) -> Tensor:
    return jpeg_of(x, between(92, 10, u).flatten())


_LIFTING = (-1.586134342059924, -0.052980118572961, 0.882911075530934, 0.443506852043971)
_LOW = 1.230174104914001  # 1 / K scales what is low, K what is high


def lift(even: Tensor, odd: Tensor, weight: float, onto_odd: bool) -> tuple[Tensor, Tensor]:
    """Add the two neighbours of every odd (or even) sample to it, symmetric at the ends."""
    if onto_odd:
        return even, odd + weight * (even + torch.cat([even[..., 1:], even[..., -1:]], -1))
    return even + weight * (odd + torch.cat([odd[..., :1], odd[..., :-1]], -1)), odd


def analysis(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return low and high half of the last axis, of even length."""
    even, odd = x[..., 0::2], x[..., 1::2]
    for turn, weight in enumerate(_LIFTING):
        even, odd = lift(even, odd, weight, turn % 2 == 0)
    return even / _LOW, odd * (_LOW / 2)


def synthesis(low: Tensor, high: Tensor) -> Tensor:
    even, odd = low * _LOW, high * (2 / _LOW)
    for turn, weight in reversed(list(enumerate(_LIFTING))):
        even, odd = lift(even, odd, -weight, turn % 2 == 0)
    return torch.stack([even, odd], -1).flatten(-2)


def wavelet_of(x: Tensor, step: Tensor, levels: int = 4) -> Tensor:
    """Quantise the wavelet coefficients of pictures with a dead zone of twice `step`.

    `step` is in display values for coefficients of unit norm; sides are multiples of 2**levels.
    """
    if levels == 0:
        return x
    low, high = analysis(x)
    (ll, lh), (hl, hh) = (analysis(half.mT) for half in (low, high))
    # What one coefficient adds to the picture has a norm near 2 at the first level, 4 at the next.
    ll = wavelet_of(ll.mT, step / 2, levels - 1).mT
    lh, hl, hh = (quantise(band, step / 2) for band in (lh, hl, hh))
    return synthesis(synthesis(ll, lh).mT, synthesis(hl, hh).mT)


def quantise(band: Tensor, step: Tensor) -> Tensor:
    whole = (band.abs() / step).floor()
    return straight_through(band, band.sign() * torch.where(whole > 0, whole + 0.5, whole) * step)


def jpeg_2000(x: Tensor, u: Tensor, g: torch.Generator) -> Tensor:
    step = 10 ** (between(-1.75, -0.95, u) + 0.3 * (uniform(x, g) - 0.5))
    padded = F.pad(x, (0, -x.shape[-1] % 16, 0, -x.shape[-2] % 16), mode="replicate")
    return byte(wavelet_of(padded, step)[..., : x.shape[-2], : x.shape[-1]])


# --- filters --------------------------------------------------------------------------------------


def gaussian(x: Tensor, sigma: Tensor, reach: int = 3) -> Tensor:
    """Blur each picture with a sigma of its own, window ``2 reach + 1``, mirrored at the edges."""
    at = torch.arange(-reach, reach + 1.0, device=x.device)
    taps = torch.exp(-0.5 * (at / sigma.view(-1, 1)) ** 2)
    taps = (taps / taps.sum(1, keepdim=True))[:, None, None]  # (batch, 1, 1, 2 reach + 1)
    y = F.pad(x, (reach,) * 4, mode="reflect").transpose(0, 1)  # pictures as channels
    y = F.conv2d(F.conv2d(y, taps, groups=len(x)), taps.mT, groups=len(x))
    return y.transpose(0, 1)


def blur(x: Tensor, u: Tensor, g: torch.Generator) -> Tensor:
    return byte(gaussian(x, between(0.6, 2.0, u), reach=4))


def mean(x: Tensor, u: Tensor, g: torch.Generator) -> Tensor:
    return byte(F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, 1))


def median(x: Tensor, u: Tensor, g: torch.Generator) -> Tensor:
    y = F.pad(x, (1, 1, 1, 1), mode="replicate")
    rows, columns = x.shape[-2:]
    around = [y[..., i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    return torch.cat(around, 1).median(1, keepdim=True).values


# --- noise ----------------------------------------------------------------------------------------


def noise(x: Tensor, u: Tensor, g: torch.Generator) -> Tensor:
    return byte(x + 10 ** (between(-3.7, -2.0, u) / 2) * normal(x, g))


def speckle(x: Tensor, u: Tensor, g: torch.Generator) -> Tensor:
    return byte(x * (1 + between(0.002, 0.02, u).sqrt() * normal(x, g)))


def salt_and_pepper(x: Tensor, u: Tensor, g: torch.Generator) -> Tensor:
    share, drawn = between(0.002, 0.03, u), uniform(x, g, *x.shape)
    return torch.where(drawn < share / 2, 0.0, torch.where(drawn > 1 - share / 2, 1.0, x))


def photons(x: Tensor, u: Tensor, g: torch.Generator) -> Tensor:
    counted = torch.poisson(255 * x.detach(), generator=g) / 255
    return byte(x + between(0.3, 1.2, u) * (counted - x.detach()))


# --- tone -----------------------------------------------------------------------------------------


def gamma(x: Tensor, u: Tensor, g: torch.Generator) -> Tensor:
    power = torch.exp(0.75 * u.view(-1, 1, 1, 1) * signs(x, g))
    return byte(x.clamp_min(1e-3) ** power)  # the root's slope has no end at 0


def window(x: Tensor, u: Tensor, g: torch.Generator) -> Tensor:
    reach = 60 / 255 * u.view(-1, 1, 1, 1)
    low, high = reach * (2 * uniform(x, g) - 1), 1 + reach * (2 * uniform(x, g) - 1)
    return byte((x - low) / (high - low))


def brightness(x: Tensor, u: Tensor, g: torch.Generator) -> Tensor:
    return byte(x + 50 / 255 * u.view(-1, 1, 1, 1) * signs(x, g))


def contrast(x: Tensor, u: Tensor, g: torch.Generator) -> Tensor:
    return byte(0.5 + (x - 0.5) * torch.exp(0.45 * u.view(-1, 1, 1, 1) * signs(x, g)))


def histograms(levels: Tensor) -> Tensor:
    """Return counts of ``(groups, samples)`` whole levels 0..255, ``(groups, 256)``."""
    counts = torch.zeros(len(levels), 256, dtype=torch.int64, device=levels.device)
    return counts.scatter_add_(1, levels, torch.ones_like(levels)).float()


def equalise(x: Tensor, u: Tensor, g: torch.Generator) -> Tensor:
    levels = (255 * x.detach()).round().long().flatten(1)
    counts = histograms(levels)
    below = counts.cumsum(1)
    # The darkest level that occurs becomes 0, as in OpenCV.
    first = torch.where(counts > 0, below, math.inf).amin(1, keepdim=True)
    curve = (below - first).clamp_min(0) / (levels.shape[1] - first).clamp_min(1)
    y = ((255 * curve).round() / 255).gather(1, levels).view_as(x)
    return straight_through(x, y)


def clahe(x: Tensor, u: Tensor, g: torch.Generator, tiles: int = 8) -> Tensor:
    """Equalise tiles with clipped histograms, and interpolate between their curves, as OpenCV does.
    """
    batch, _, rows, columns = x.shape
    high, wide = rows // tiles, columns // tiles
    levels = (255 * x.detach()).round().long()
    tiled = levels.view(batch, tiles, high, tiles, wide).transpose(2, 3).flatten(3)
    counts = histograms(tiled.reshape(-1, high * wide)).view(batch, tiles, tiles, 256)
    limit = (between(1, 3, u) * high * wide / 256).floor().clamp_min(1)
    excess = (counts - limit).clamp_min(0).sum(-1, keepdim=True)
    left, at = excess % 256, torch.arange(256, device=x.device)  # what does not spread evenly
    apart = (256 / left).floor().clamp(1, 256)
    spread = (excess / 256).floor() + ((at % apart == 0) & (at / apart < left)).float()
    curves = (torch.minimum(counts, limit) + spread).cumsum(-1) / (high * wide)
    curves = (255 * curves).round().clamp_max(255) / 255
    row, column = (
        ((torch.arange(n, device=x.device) + 0.5) / size - 0.5)
        for n, size in ((rows, high), (columns, wide))
    )
    y, flat = torch.zeros_like(x), curves.flatten(1)
    for down in (0, 1):
        for right in (0, 1):
            i, j = row.floor() + down, column.floor() + right
            share = (1 - (row - i).abs())[:, None] * (1 - (column - j).abs())[None]
            tile = i.clamp(0, tiles - 1)[:, None] * tiles + j.clamp(0, tiles - 1)[None]
            at = tile.long()[None, None] * 256 + levels
            y = y + share * flat.gather(1, at.flatten(1)).view_as(x)
    return straight_through(x, byte(y))


# --- geometry -------------------------------------------------------------------------------------


def resample(x: Tensor, u: float, g: torch.Generator) -> Tensor:
    """Make pictures larger, or smaller where `u` is negative. Sizes are known to the host only."""
    f = 1 + (0.6 if u > 0 else 0.72) * u
    size = [max(8, round(n * f)) for n in x.shape[-2:]]
    how = "bilinear" if f < 1 else "bicubic"
    return byte(F.interpolate(x, size, mode=how, align_corners=False, antialias=f < 1))


def misplace(x: Tensor, u: Tensor, g: torch.Generator) -> Tensor:
    """Turn by up to 0.8 degrees, scale by 1.2 % and shift by 1.6 of 256 samples."""
    drawn = (2 * uniform(x, g, len(x), 4) - 1) * u.view(-1, 1)
    angle, zoom = math.radians(0.8) * drawn[:, 0], 1 + 0.012 * drawn[:, 1]
    cos, sin, shift = torch.cos(angle) / zoom, torch.sin(angle) / zoom, 2 * 1.6 / 256 * drawn[:, 2:]
    rows = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], 1).view(-1, 2, 3)
    grid = F.affine_grid(rows, list(x.shape), align_corners=False)
    return byte(F.grid_sample(x, grid, padding_mode="border", align_corners=False))


def parts(x: Tensor, share: Tensor, g: torch.Generator) -> Tensor:
    """Return 1 inside rectangles of a share of the area each, 0 outside."""
    side, inside = share.sqrt(), torch.ones_like(share)
    for n, shape in ((x.shape[-2], (-1, 1)), (x.shape[-1], (1, -1))):
        start = uniform(x, g) * (1 - side)
        at = ((torch.arange(n, device=x.device) + 0.5) / n).view(1, 1, *shape)
        inside = inside * ((at >= start) & (at < start + side)).float()
    return inside


def blacken(x: Tensor, u: Tensor, g: torch.Generator) -> Tensor:
    return x * parts(x, 1 - between(0.05, 0.6, u), g)


def cover(x: Tensor, u: Tensor, g: torch.Generator) -> Tensor:
    hidden = parts(x, between(0.03, 0.3, u), g)
    return byte(x * (1 - hidden) + uniform(x, g) * hidden)


def plain(x: Tensor, u: Tensor, g: torch.Generator) -> Tensor:
    return x


FAMILIES: dict[str, Attack] = {name: globals()[name] for name in WEIGHTS}
OF_THE_HOST = {"resample"}  # take their severity as one number, -1..1


# --- augmentation ---------------------------------------------------------------------------------


def augment(x: Tensor, g: torch.Generator) -> Tensor:
    """Return other plausible frames: zoomed parts, turned, in other windows, with grain.

    As :func:`frames.augment`, for ``(batch, 1, side, side)`` display values.
    """
    pick = lambda: uniform(x, g, len(x))  # noqa: E731
    zoom = torch.where(pick() < 0.6, 0.6 + 0.4 * pick(), 1.0)
    left, top = ((1 - zoom) * (2 * pick() - 1) for _ in range(2))
    quarter = (4 * pick()).floor() * (math.pi / 2)
    flip = torch.where(pick() < 0.5, 1.0, -1.0)
    cos, sin = zoom * torch.cos(quarter), zoom * torch.sin(quarter)
    rows = torch.stack([cos * flip, -sin, left, sin * flip, cos, top], 1).view(-1, 2, 3)
    grid = F.affine_grid(rows, list(x.shape), align_corners=False)
    y = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    low, high = (-20 + 80 * uniform(x, g)) / 255, (170 + 120 * uniform(x, g)) / 255
    y = torch.where(uniform(x, g) < 0.4, (y - low) / (high - low), y)
    grain = torch.where(uniform(x, g) < 0.3, (0.5 + 3.5 * uniform(x, g)) / 255, 0.0)
    return byte(y + grain * normal(x, g))
