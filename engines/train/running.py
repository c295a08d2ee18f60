"""What every training script does alike: a run folder, its log, checkpoints, rates, averages.

A run folder holds ``log.jsonl`` (a JSON object a line: reports, validation tables, resumptions),
``last.pt`` (everything needed to go on exactly where it stopped) and, where there is a score,
``best.pt``.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Run:
    """A run folder. `generator` draws on the device, `rng` on the host."""

    def __init__(self, folder: Path, seed: int, device: str = "cpu") -> None:
        torch.set_num_threads(1)  # spinning threads on a shared machine cost a factor of six
        torch.manual_seed(seed)
        self.folder, self.device = folder, torch.device(device)
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.started, self.first = time.monotonic(), 0
        folder.mkdir(parents=True, exist_ok=True)

    def log(self, step: int, **figures: Any) -> None:
        """Add a line to the log, and print it."""
        row = {"step": step, **figures}
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(" ".join(f"{k} {_short(v)}" for k, v in row.items()), flush=True)

    def pace(self, step: int) -> float:
        """Return seconds a step since this process started."""
        return (time.monotonic() - self.started) / max(1, step - self.first)

    def save(self, name: str, step: int, **parts: Any) -> None:
        """Write a checkpoint; one that is there stays whole until the new one is."""
        state = {
            "step": step,
            "rng": self.rng.bit_generator.state,
            "torch_rng": torch.get_rng_state(),
            "generator": self.generator.get_state(),
            **{k: v.state_dict() if hasattr(v, "state_dict") else v for k, v in parts.items()},
        }
        new = self.folder / f"{name}.new"
        torch.save(state, new)
        new.replace(self.folder / name)

    def resume(self, name: str = "last.pt") -> dict[str, Any]:
        """Return a checkpoint, with every random stream where it was when it was written."""
        state = load(self.folder / name)
        self.rng.bit_generator.state = state["rng"]
        torch.set_rng_state(state["torch_rng"])
        self.generator.set_state(state["generator"])
        self.first = state["step"]
        self.log(self.first, resumed=True)
        return state


def load(path: Path) -> dict[str, Any]:
    """Return a checkpoint on the host: tensors, numbers and tables, never code.

    What loads its part moves it. Adam's step counts have to stay, or every step waits for them.
    """
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def fit(module: nn.Module, saved: dict[str, Tensor]) -> None:
    """Load what fits: a network of another size or number of turns lacks some of it."""
    own = module.state_dict()
    fitting = {k: v for k, v in saved.items() if k in own and own[k].shape == v.shape}
    module.load_state_dict(fitting, strict=False)


def one_cycle(step: int, steps: int, warm_up: float = 0.1) -> float:
    """Return the share of the top rate at a step: a cosine up from 1/25, then one down to 0."""
    top = max(1.0, warm_up * steps)
    if step < top:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * step / top)) / 2
    return (1 + math.cos(math.pi * min(1.0, (step - top) / max(1.0, steps - top)))) / 2


def set_rates(optimiser: torch.optim.Optimizer, share: float) -> None:
    """Set every group's rate to a share of its ``top``."""
    for group in optimiser.param_groups:
        group["lr"] = share * group["top"]


def ramp(step: int, steps: int, share: float, ends: tuple[float, float]) -> float:
    """Return what a curriculum asks for at a step: from one end to the other over a share."""
    done = min(1.0, step / max(1.0, share * steps))
    return ends[0] + done * (ends[1] - ends[0])


class Average:
    """The running average of a network's weights: less noisy than those of any one step."""

    def __init__(self, module: nn.Module, keep: float) -> None:
        self.keep = keep
        self.weights = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def follow(self, module: nn.Module, step: int) -> None:
        keep = min(self.keep, (step + 1) / (step + 10))
        for name, value in module.state_dict().items():
            self.weights[name].lerp_(value, 1 - keep)

    def state_dict(self) -> dict[str, Tensor]:
        return self.weights

    def load_state_dict(self, weights: dict[str, Tensor]) -> None:
        for name, value in weights.items():
            self.weights[name].copy_(value)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + "  ".join(f"{k} {_short(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "/".join(_short(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
