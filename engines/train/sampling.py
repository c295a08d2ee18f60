"""Which attack a picture gets: the worse one is read after it of late, the more often.

A family's probability is ``floor * weight + (1 - floor) * weight * loss ** power`` (each part
normalised), with the mean loss of its pictures, averaged over refreshes. Losses are added up on
the device and read back at a refresh only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from families import WEIGHTS
from recipe import Attacks
from torch import Tensor

NAMES = tuple(WEIGHTS)


class WorstAttacks:
    """Draws families. `drawn` of them are asked for on the host; `told` learns from losses."""

    def __init__(self, settings: Attacks, device: torch.device) -> None:
        self.settings = settings
        self.even = np.array([WEIGHTS[name] for name in NAMES])
        self.even /= self.even.sum()
        self.recent = np.ones(len(NAMES))
        self.total = torch.zeros(2, len(NAMES), device=device)  # losses, pictures

    @property
    def probability(self) -> np.ndarray:
        worse = self.even * self.recent**self.settings.power
        floor = self.settings.floor
        return floor * self.even + (1 - floor) * worse / worse.sum()

    def drawn(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Return the families of `count` groups of pictures, as places in `NAMES`."""
        return rng.choice(len(NAMES), count, p=self.probability)

    def told(self, families: Tensor, losses: Tensor) -> None:
        """Learn the loss of each picture ``(batch,)`` after the family it got."""
        self.total[0].index_add_(0, families, losses.detach())
        self.total[1].index_add_(0, families, torch.ones_like(losses))

    def refresh(self) -> None:
        """Read back what was added up; the only point that waits for the device."""
        losses, pictures = self.total.cpu().double().numpy()
        met, keep = pictures > 0, self.settings.memory
        mean = losses[met] / pictures[met]
        self.recent[met] = keep * self.recent[met] + (1 - keep) * mean
        self.total.zero_()

    def table(self) -> dict[str, float]:
        return {name: round(float(p), 4) for name, p in zip(NAMES, self.probability, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        return {"recent": torch.from_numpy(self.recent.copy()), "total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.recent = state["recent"].cpu().numpy().copy()
        self.total.copy_(state["total"])
