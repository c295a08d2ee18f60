"""Where the frames of a step come from, and what happens to them between embed and extract.

Two ways to do the same: OpenCV, one picture after another on the host, and torch, in batches on
the device that also holds the data set. Both draw families from a :class:`sampling.WorstAttacks`
and return pictures as D1 sees them, with gradients that reach the marked frame.
"""

from __future__ import annotations

import attacks
import families
import frames
import gpu_attacks
import numpy as np
import torch
import torch.nn.functional as F
from gpu_attacks import OF_THE_HOST
from networks import N
from recipe import Attacks
from running import Run
from sampling import NAMES, WorstAttacks
from torch import Tensor


def to_n(x: Tensor) -> Tensor:
    """Resample display frames to ``n x n`` as the node does: by area, or bilinearly to enlarge."""
    if min(x.shape[-2:]) >= N:
        return F.adaptive_avg_pool2d(x, (N, N))
    return F.interpolate(x, (N, N), mode="bilinear", align_corners=False)


class Pictures:
    """Frames for a step, and attacks on them."""

    def __init__(self, pack: frames.Pack, run: Run, settings: Attacks) -> None:
        self.pack, self.run, self.settings = pack, run, settings
        self.sampler = WorstAttacks(settings, run.device)

    def batch(self, count: int) -> Tensor:
        """Return `count` augmented frames, ``(count, 1, 256, 256)`` display values."""
        raise NotImplementedError

    def attacked(self, marked: Tensor, worst: float) -> tuple[Tensor, Tensor]:
        """Return marked frames after an attack of at most severity `worst`, as D1 sees them.

        ``(batch, 1, n, n)``, and the family each got ``(batch,)``.
        """
        raise NotImplementedError

    def _families(self, count: int) -> np.ndarray:
        """Return a family for each picture; those that get the same one stand together."""
        together = self.settings.together
        groups = self.sampler.drawn(self.run.rng, -(-count // together))
        return np.repeat(groups, together)[:count]


class OpenCVPictures(Pictures):
    """The codecs and filters people use. Gradients pass straight through, at ``n x n``."""

    def batch(self, count: int) -> Tensor:
        rng = self.run.rng
        chosen = rng.choice(len(self.pack.train), count, p=self.pack.weight)
        made = np.stack([frames.augment(self.pack.train[i], rng) for i in chosen])
        return (torch.from_numpy(made[:, None]).float() / 255).to(self.run.device)

    def attacked(self, marked: Tensor, worst: float) -> tuple[Tensor, Tensor]:
        rng, drawn = self.run.rng, self._families(len(marked))
        shown = (255 * marked.detach().clamp(0, 1)).round().to(torch.uint8).cpu().numpy()[:, 0]
        hit = []
        for picture, family in zip(shown, drawn, strict=True):
            out = families.FAMILIES[NAMES[family]](picture, worst * rng.random(), rng)
            if rng.random() < self.settings.jpeg_after:
                out = attacks.jpeg(out, rng, int(rng.integers(60, 95)))
            hit.append(frames.seen(out))
        y = torch.from_numpy(np.stack(hit)[:, None]).to(marked.device)
        return gpu_attacks.straight_through(to_n(marked), y), _on(marked, drawn)


class TorchPictures(Pictures):
    """All frames on the device; no step waits for it."""

    def __init__(self, pack: frames.Pack, run: Run, settings: Attacks) -> None:
        super().__init__(pack, run, settings)
        self.frames = torch.from_numpy(pack.train).to(run.device)
        self.weight = torch.from_numpy(pack.weight).float().to(run.device)

    def batch(self, count: int) -> Tensor:
        g = self.run.generator
        chosen = torch.multinomial(self.weight, count, replacement=True, generator=g)
        return gpu_attacks.augment(self.frames[chosen][:, None].float() / 255, g)

    def attacked(self, marked: Tensor, worst: float) -> tuple[Tensor, Tensor]:
        g, drawn = self.run.generator, self._families(len(marked))
        shown, out = gpu_attacks.byte(marked), []
        for start in range(0, len(marked), self.settings.together):
            some = shown[start : start + self.settings.together]
            name = NAMES[drawn[start]]
            each = worst * self.run.rng.random() * (1 if self.run.rng.random() < 0.3 else -1)
            u = worst * torch.rand(len(some), generator=g, device=some.device)
            hit = gpu_attacks.FAMILIES[name](some, each if name in OF_THE_HOST else u, g)
            if self.run.rng.random() < self.settings.jpeg_after:
                quality = 60 + 35 * torch.rand(len(some), generator=g, device=some.device)
                hit = gpu_attacks.jpeg_of(hit, quality)
            out.append(to_n(hit))
        return torch.cat(out), _on(marked, drawn)


def _on(like: Tensor, drawn: np.ndarray) -> Tensor:
    where = torch.from_numpy(drawn)
    return (where.pin_memory() if like.is_cuda else where).to(like.device, non_blocking=True)


def pictures(how: str, pack: frames.Pack, run: Run, settings: Attacks) -> Pictures:
    kinds = {"opencv": OpenCVPictures, "torch": TorchPictures}
    if how not in kinds:
        raise SystemExit(f"attacks = {how!r}: opencv or torch")
    return kinds[how](pack, run, settings)
