"""The networks of W1: decoder D1, encoder E1 and the carrier patterns they share.

Everything works on a *display frame* resampled to ``n x n`` (n = 128): values 0..1, shape
``(batch, 1, n, n)``. Code words are rows of -1/+1, shape ``(batch, K)``.

E1 is a closed loop through D1: it reads the cover's own soft bits, turns each bit's amplitude up
only as far as that bit needs it, looks again, and repeats. What leaves the loop is K small
integers (amplitudes) and a 16 x 16 grid of small integers (strength). Nothing else is needed to
rebuild the residual, so nothing else has to be stored to take the mark off again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

N = 128  # side of the picture both networks see
GRID = 16  # side of the strength grid
LEVELS = 7  # largest strength
AMPLITUDE = 31  # largest amplitude
STEPS = 3  # turns of the closed loop, where a recipe does not say otherwise


def ste_round(x: Tensor) -> Tensor:
    """Round with a straight-through gradient."""
    return x + (x.round() - x).detach()


class Decoder(nn.Module):
    """D1: whiten locally, refine with a small CNN, correlate with the patterns."""

    def __init__(self, code_bits: int, width: int = 8) -> None:
        super().__init__()
        self.patterns = nn.Parameter(smooth_noise(code_bits))
        self.first = nn.Conv2d(2, width, 5, padding=2)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, 1, 5, padding=2)
        nn.init.zeros_(self.last.weight)
        self.gain = nn.Parameter(torch.tensor(2.0))

    def carrier_patterns(self) -> Tensor:
        """Return the patterns as they are stored: integers -127..127, ``(K, N * N)``."""
        flat = self.patterns.flatten(1)
        flat = flat - flat.mean(1, keepdim=True)
        return ste_round(127 * flat / flat.abs().amax(1, keepdim=True))

    def whiten(self, x: Tensor, refine: Callable[..., Tensor] | None = None) -> Tensor:
        mean = F.avg_pool2d(x, 7, 1, 3, count_include_pad=False)
        power = F.avg_pool2d(x * x, 7, 1, 3, count_include_pad=False)
        deviation = ((power - mean * mean).clamp_min(0.0) + 1e-7).sqrt()
        local = (x - mean) / (deviation + 0.008)
        detail = torch.clamp((x - F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)) * 40, -3, 3)
        refined = (refine or self.refine)(torch.cat([local, detail], 1))
        return torch.tanh(refined + 0.5 * local)

    def refine(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.second(F.relu(self.first(x)))))

    def normalised(
        self, x: Tensor, refine: Callable[..., Tensor] | None = None
    ) -> Tensor:
        """Return the whitened picture ``(batch, N * N)``, scaled to unit power times a gain.

        `refine` stands in for the convolutions: the exporter brings the same ones, folded.
        """
        y = self.whiten(x, refine).flatten(1)
        return self.gain * y / (y.pow(2).mean(1, keepdim=True) + 1e-4).sqrt()

    def forward(self, x: Tensor, patterns: Tensor, norms: Tensor) -> Tensor:
        """Return soft bits ``(batch, K)``; the sign is the bit, the size how sure it is."""
        whitened = self.normalised(x).float()
        with torch.autocast(x.device.type, enabled=False):  # sums over 16,384 samples
            return (whitened @ patterns.t()) / norms


class Strength(nn.Module):
    """Where a mark may be: 16 x 16 strengths 0..7 from what the eye will hide."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(2, width, 4, stride=4), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
            nn.Conv2d(2 * width, 1, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        mean = F.avg_pool2d(x, 5, 1, 2, count_include_pad=False)
        deviation = (x - mean).abs()
        raw = LEVELS * torch.sigmoid(self.net(torch.cat([x, 10 * deviation], 1)) + 0.5)
        return ste_round(raw) * usable(x)


def usable(x: Tensor) -> Tensor:
    """Return 1 where a cell can hold a mark, 0 where it is flat or saturated.

    ``(batch, 1, 16, 16)``.
    """
    side = N // GRID
    inside = ((x > 0.05) & (x < 0.95)).float()
    mean = F.avg_pool2d(x, side)
    power = F.avg_pool2d(x * x, side)
    deviation = ((power - mean * mean).clamp_min(0.0) + 1e-7).sqrt()
    return ((F.avg_pool2d(inside, side) > 0.5) & (deviation > 0.003)).float()


class Encoder(nn.Module):
    """E1: choose amplitudes and strength for a code word, looking through D1 while doing so."""

    def __init__(self, decoder: Decoder, turns: int = STEPS, look_blur_px: float = 0.0) -> None:
        super().__init__()
        object.__setattr__(self, "decoder", decoder)  # shared, not owned: saved once
        self.turns, self.look_blur_px = turns, look_blur_px
        self.strength = Strength()
        one = turns == 1
        self.step = nn.Parameter(torch.tensor([2.0]) if one else torch.linspace(1.2, 0.6, turns))
        self.softness = nn.Parameter(torch.full((turns,), 3.5 if one else 1.0))

    def forward(
        self,
        x: Tensor,
        bits: Tensor,
        rms: Tensor,
        patterns: Tensor,
        norms: Tensor,
        *,
        cut: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return amplitudes ``(batch, K)`` and strengths ``(batch, 1, 16, 16)``.

        `rms` is the budget: the residual's root mean square in display values, ``(batch, 1)``.
        `cut` trains through the last turn only, a third of the cost; where there is but one, not
        through its look at the cover.
        """
        grid = self.strength(x)
        amplitude = torch.zeros_like(bits)
        marked = blurred(x, self.look_blur_px) if self.look_blur_px else x
        last = self.turns - 1
        learns = torch.is_grad_enabled()
        for turn in range(self.turns):
            with torch.set_grad_enabled(learns and not (cut and turn < max(1, last))):
                soft = bits * self.decoder(marked, patterns, norms)
            need = torch.sigmoid(-soft / self.softness[turn].clamp_min(0.05))
            amplitude = amplitude + self.step[turn] * bits * need
            if turn < last:
                marked = (x + residual(amplitude, grid, rms, patterns, x)).clamp(0, 1)
        scale = AMPLITUDE / amplitude.abs().amax(1, keepdim=True).clamp_min(1e-6)
        return ste_round(amplitude * scale), grid


def blurred(x: Tensor, sigma: float, reach: int = 3) -> Tensor:
    """Return frames through a Gaussian blur, as the node looks at a cover."""
    at = torch.arange(-reach, reach + 1.0, device=x.device)
    taps = torch.exp(-0.5 * (at / sigma) ** 2)
    taps = (taps / taps.sum()).view(1, 1, 1, -1)
    with torch.autocast(x.device.type, enabled=False):
        y = F.pad(x, (reach,) * 4, mode="reflect")
        return F.conv2d(F.conv2d(y, taps), taps.mT)


def residual(amplitude: Tensor, grid: Tensor, rms: Tensor, patterns: Tensor, x: Tensor) -> Tensor:
    """Return the residual at ``n x n``, display values, scaled to `rms` over the whole frame.

    Nothing is added where `x` is so dark or bright that the node would leave it alone.
    """
    with torch.autocast(x.device.type, enabled=False):
        carrier = (amplitude.float() @ patterns).view(-1, 1, N, N)
    limit = 2.6 * carrier.detach().pow(2).mean((1, 2, 3), keepdim=True).sqrt()
    carrier = torch.minimum(torch.maximum(carrier, -limit), limit)
    shaped = carrier * F.interpolate(grid, (N, N), mode="bilinear", align_corners=False)
    shaped = shaped * (((x - 0.02) / 0.03).clamp(0, 1) * ((0.98 - x) / 0.03).clamp(0, 1))
    power = shaped.pow(2).mean((1, 2, 3), keepdim=True).clamp_min(1e-8).sqrt()
    return shaped * (rms.view(-1, 1, 1, 1) / power)


def smooth_noise(count: int) -> Tensor:
    """Return random starting patterns ``(count, N, N)``, 0.25-0.41 cycles a sample.

    Measured on frames of six modalities: what the cover puts on a pattern falls by a factor of
    three to five from 0.2 to 0.4 cycles, what blur and JPEG take away only by one to two.
    """
    generator = torch.Generator().manual_seed(20261121)
    spectrum = torch.fft.rfft2(torch.randn(count, N, N, generator=generator))
    radius = torch.hypot(torch.fft.fftfreq(N)[:, None], torch.fft.rfftfreq(N)[None])
    band = torch.exp(-(((radius - 0.33) / 0.08) ** 2))
    noise = torch.fft.irfft2(spectrum * band, s=(N, N))
    return noise / noise.std()
