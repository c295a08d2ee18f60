"""R2, the reader: what D1 does not read, seen at twice D1's resolution.

D1 sees a frame at 128 x 128, resampled by area. White noise above a quarter of a cycle a sample of
the 256 x 256 picture is folded into the carriers' band by that, and costs 1.2 to 1.6 dB against the
mark. R2 takes the picture at 256 x 256 and finds its own way down: the four samples of each sample
of D1 are channels of their own. It has D1's patterns, and no mark depends on it. Of small frames,
whose carrier is folded, another one of the same layers takes 128 x 128.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from networks import N, ste_round
from torch import Tensor, nn

SIDE = 2 * N  # of the picture R2 sees
CELL = 8  # samples of D1 in one cell of the gates


def folded(patterns: np.ndarray, folds: int) -> np.ndarray:
    """Return patterns ``(K, n, n)`` as a picture beside its mirror images has to carry them."""
    if folds == 1:
        return patterns
    whole, small = patterns.astype(np.int32), patterns.shape[-1] // 2
    near, far = whole[..., :small], whole[..., small:][..., ::-1]
    across = near + far
    return across[:, :small] + across[:, small:][:, ::-1]


def smoothed(x: Tensor, window: int) -> Tensor:
    """Return the mean over a square window, of the samples there are."""
    return F.avg_pool2d(x, window, 1, window // 2, count_include_pad=False)


class Places(nn.Module):
    """What to make of each place: how far to trust it, and which features to use there.

    Noise fills flat and dark areas, which carry nothing, and whitening would raise it to the power
    of the rest. Sees brightness, texture, finest detail and the differences within a sample of D1,
    per cell of 8 x 8 and over the whole picture.
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.look = nn.Conv2d(4, hidden, 3, padding=1)
        self.around = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.whole = nn.Linear(2 * hidden, hidden)
        self.wider = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.gates = nn.Conv2d(hidden, 1 + 2 * features, 3, padding=1)
        nn.init.zeros_(self.gates.weight)  # all gates start at 1
        nn.init.zeros_(self.gates.bias)

    def forward(self, four: Tensor, mean: Tensor, variance: Tensor, detail: Tensor) -> Tensor:
        """Return gates 0..2 of each cell, ``(batch, 1 + 2 features, n / 8, n / 8)``."""
        within = (four - four.mean(1, keepdim=True)).pow(2).mean(1, keepdim=True)
        pool = lambda t: F.avg_pool2d(t, CELL)  # noqa: E731
        seen = torch.cat([
            pool(mean),
            torch.log(pool(variance) + 1e-5) * 0.25 + 1.5,
            torch.log(pool(detail.pow(2).mean(1, keepdim=True)) + 1e-2) * 0.4,
            torch.log(pool(within) + 1e-6) * 0.25 + 2.0,
        ], 1)  # fmt: skip
        h = F.relu(self.look(seen))
        whole = self.whole(torch.cat([h.mean((2, 3)), h.amax((2, 3))], 1))
        h = F.relu(self.around(h) + whole[:, :, None, None])
        h = F.relu(self.wider(h)) + h
        return 2 * torch.sigmoid(self.gates(h))


class Reader(nn.Module):
    """R2: picture ``(batch, 1, 2 * side, 2 * side)`` to what the patterns are looked for in."""

    def __init__(self, patterns: Tensor, width: int = 40, hidden: int = 24) -> None:
        super().__init__()
        self.register_buffer("patterns", ste_round(patterns.float()))
        self.width, self.side = width, round(patterns.shape[1] ** 0.5)
        self.places = Places(width, hidden)
        self.first = nn.Conv2d(9, width, 5, padding=2)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.third = nn.Conv2d(width, width, 3, padding=2, dilation=2)
        self.fourth = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, 1, 5, padding=2)
        nn.init.zeros_(self.last.weight)
        self.gain = 2.0

    def whiten(self, x: Tensor) -> Tensor:
        """Return what the patterns are looked for in, places weighed ``(batch, 1, side, side)``."""
        four = F.pixel_unshuffle(x, 2)  # (batch, 4, n, n)
        one = four.mean(1, keepdim=True)
        mean = smoothed(one, 7)
        power = smoothed(four.pow(2).mean(1, keepdim=True), 7)
        variance = (power - mean * mean).clamp_min(0.0)
        local = (four - mean) / ((variance + 1e-7).sqrt() + 0.008)
        detail = (four - smoothed(one, 3)) * 40
        gates = self.spread(self.places(four, one, variance, detail))
        weight, inner, outer = gates.split([1, self.width, self.width], 1)
        h = F.relu(self.first(torch.cat([local, detail.clamp(-3, 3), one], 1))) * inner
        h = h + F.relu(self.second(h))
        h = h + F.relu(self.third(h))
        h = h + F.relu(self.fourth(h)) * outer
        whitened = self.one_of(h).float() + 0.5 * local.mean(1, keepdim=True)
        return torch.tanh(whitened) * weight.float()

    def spread(self, gates: Tensor) -> Tensor:
        """Return the gates of cells at each sample. (The exporter brings the same sums, faster.)"""
        return F.interpolate(gates, scale_factor=CELL, mode="bilinear", align_corners=False)

    def one_of(self, features: Tensor) -> Tensor:
        """Return the sample that features make, ``(batch, 1, n, n)``; as `spread`."""
        return self.last(features)

    def normalised(self, x: Tensor) -> Tensor:
        """Return the whitened picture ``(batch, n * n)``, scaled to unit power times a gain."""
        y = self.whiten(x).flatten(1)
        return self.gain * y / (y.pow(2).mean(1, keepdim=True) + 1e-4).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        """Return soft bits ``(batch, K)``; the sign is the bit, the size how sure it is."""
        whitened = self.normalised(x).float()
        with torch.autocast(x.device.type, enabled=False):  # sums over 16,384 samples
            return whitened @ self.patterns.t() / self.patterns.norm(dim=1)
