"""W1 on full frames, as the node marks them: what training and validation share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from networks import GRID, Decoder, Encoder, residual
from pictures import to_n
from torch import Tensor

ENDS = 0.035, 0.965  # display values beyond which the node leaves a frame alone


def budget(psnr_db: Tensor, grid: Tensor, local: float) -> Tensor:
    """Return the residual's rms for a PSNR ``(batch, 1)``, less where little of it can hold it."""
    share = (grid > 0).float().mean((1, 2, 3)).clamp_min(1 / GRID**2)
    whole = 10 ** (-psnr_db / 20)
    return torch.minimum(whole, local * share.sqrt())[:, None]


def at_ends(x: Tensor) -> Tensor:
    """Return where a frame is so dark or bright that the node leaves it alone."""
    return (x <= ENDS[0]) | (x >= ENDS[1])


def laid_over(
    x: Tensor, amplitude: Tensor, grid: Tensor, rms: Tensor, patterns: Tensor
) -> Tensor:
    """Return frames ``(batch, 1, 256, 256)`` with what E1 chose on them."""
    delta = residual(amplitude, grid, rms, patterns, to_n(x))
    up = F.interpolate(delta, x.shape[-2:], mode="bilinear", align_corners=False)
    return (x + up * ~at_ends(x)).clamp(0, 1)


def mark(
    encoder: Encoder, x: Tensor, bits: Tensor, psnr_db: Tensor, patterns: Tensor, norms: Tensor,
    local: float, *, cut: bool = False,
) -> Tensor:  # fmt: skip
    """Return marked frames: E1 looks, chooses, and what it chose is laid over."""
    small = to_n(x)
    with torch.no_grad():
        rms = budget(psnr_db, encoder.strength(small), local)
    amplitude, grid = encoder(small, bits, rms, patterns, norms, cut=cut)
    return laid_over(x, amplitude, grid, rms, patterns)


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Return the SSIM (8 x 8 uniform window) of each pair of display frames, ``(batch,)``."""
    def pool(t: Tensor) -> Tensor:
        return F.avg_pool2d(t, 8, 2)

    ma, mb = pool(a), pool(b)
    va, vb, cov = pool(a * a) - ma * ma, pool(b * b) - mb * mb, pool(a * b) - ma * mb
    c1, c2 = 1e-4, 9e-4
    ssim = ((2 * ma * mb + c1) * (2 * cov + c2)) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return ssim.mean((1, 2, 3))


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return the PSNR of each pair of display frames in dB, peak 1, ``(batch,)``."""
    return -10 * torch.log10(((a - b) ** 2).mean((1, 2, 3)).clamp_min(1e-9))


def networks_of(model, device: torch.device | str = "cpu") -> tuple[Decoder, Encoder]:
    """Return D1 and E1 of a recipe's model."""
    decoder = Decoder(model.code_bits, model.width)
    encoder = Encoder(decoder, model.turns, model.look_blur_px)
    return (decoder.to(device, memory_format=torch.channels_last),
            encoder.to(device, memory_format=torch.channels_last))  # fmt: skip
