"""How W1 does on frames of groups it was never trained on: every frame at the same PSNR.

*Read* is the share of frames with at most 8 % wrong bits, before the error-correcting code. The
score by which the best checkpoint is kept is the mean of *read* over all attacks, less ten times
what the mean SSIM is short of the recipe's ``least_ssim``.
"""

from __future__ import annotations

from typing import Any

import frames
import numpy as np
import torch
from marking_w1 import laid_over, psnr, similarity
from networks import Decoder, Encoder
from pictures import to_n
from recipe import Validation
from suite import suite

WRONG = 0.08
ENOUGH = 0.55  # agreement above which a guessed message is recognised


@torch.no_grad()
def validate(
    encoder: Encoder, decoder: Decoder, val: np.ndarray, settings: Validation,
) -> dict[str, Any]:  # fmt: skip
    """Return the score, PSNR, SSIM and, by attack, bit accuracy, share read and agreement.

    Agreement is the share of frames whose soft bits have a cosine above `ENOUGH` with their code
    word, which is what recognising a guessed message takes. Runs where the networks are; the
    attacks are OpenCV's.
    """
    device = decoder.patterns.device
    rng = np.random.default_rng(0)
    attacked = suite(rng)
    patterns = decoder.carrier_patterns()
    norms = patterns.norm(dim=1)
    quality: list[torch.Tensor] = []
    soft: dict[str, list[torch.Tensor]] = {name: [] for name in attacked}
    words = []
    for start in range(0, len(val), 32):
        x = torch.from_numpy(val[start : start + 32, None]).to(device).float() / 255
        bits = torch.from_numpy(rng.choice([-1.0, 1.0], (len(x), len(patterns)))).float().to(device)
        shown = at_psnr(encoder, x, bits, settings.every_psnr_db, patterns, norms)
        quality.append(torch.stack([psnr(shown, x), similarity(shown, x)], 1))
        words.append(bits)
        pictures = (255 * shown[:, 0]).round().to(torch.uint8).cpu().numpy()
        for name, attack in attacked.items():
            seen = np.stack([frames.seen(attack(p)) for p in pictures])[:, None]
            soft[name].append(decoder(torch.from_numpy(seen).to(device), patterns, norms))
    word = torch.cat(words)
    table = {}
    for name, parts in soft.items():
        right = torch.cat(parts) * word
        bits_right = (right > 0).float().mean(1)
        agreement = right.mean(1) / right.pow(2).mean(1).sqrt().clamp_min(1e-6)
        figures = (bits_right.mean(), (bits_right >= 1 - WRONG).float().mean(),
                   (agreement > ENOUGH).float().mean())  # fmt: skip
        table[name] = [round(float(f), 4) for f in figures]
    db, ssim = torch.cat(quality).mean(0).tolist()
    read = float(np.mean([row[1] for row in table.values()]))
    score = read - 10 * max(0.0, settings.least_ssim - ssim)
    return {"score": round(score, 5), "read": round(read, 5), "psnr_db": round(db, 3),
            "ssim": round(ssim, 5), "attacks": table}  # fmt: skip


def at_psnr(encoder, x, bits, psnr_db: float, patterns, norms) -> torch.Tensor:
    """Return frames marked so that each, clipped and rounded to 8 bits, has this PSNR."""
    rms = torch.full((len(x), 1), 10 ** (-psnr_db / 20), device=x.device)
    amplitude, grid = encoder(to_n(x), bits, rms, patterns, norms)
    for _ in range(4):
        shown = (255 * laid_over(x, amplitude, grid, rms, patterns)).round() / 255
        short = (psnr(shown, x) - psnr_db)[:, None]
        rms = rms * 10 ** (short.clamp(-6, 6) / 20)
    return (255 * laid_over(x, amplitude, grid, rms, patterns)).round() / 255
