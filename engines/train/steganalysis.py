"""Can marked frames be told from unmarked ones? Train a fresh classifier to try.

    python steganalysis_pairs.py --pack pack.npz --out pairs.npz      # with the node's dependencies
    python steganalysis.py --pairs pairs.npz --model ..               # ten minutes on one core

Two detectors, both judged on frames of patients and sources that neither saw:

* *blind*: a small CNN behind fixed high-pass filters (second and third differences and the 3 x 3
  and 5 x 5 residuals of the SRM, cut at 8 grey levels), trained on pairs of the same frame; the
  epoch that does best on groups held out for choosing is the one that is tested.
* *informed*: weights are public, so a detector may look through D1. One number, no training: how
  even the sizes of its soft bits are, which a mark makes them.

Prints accuracy and area under the ROC curve, with the number of frames and groups.

Reference
---------
Fridrich, Kodovsky, "Rich models for steganalysis of digital images", IEEE TIFS 7(3), 2012.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from networks import Decoder
from pictures import to_n
from shipped import start_from
from torch import Tensor, nn

EPOCHS, BATCH, RATE, SEED = 24, 8, 2e-3, 1
CUT = 8 / 255
_KV = ((-1, 2, -2, 2, -1), (2, -6, 8, -6, 2), (-2, 8, -12, 8, -2), (2, -6, 8, -6, 2),
       (-1, 2, -2, 2, -1))  # fmt: skip


def filters() -> Tensor:
    """Return the fixed high-pass filters, ``(6, 1, 5, 5)``, largest tap 1."""
    bank = torch.zeros(6, 5, 5)
    bank[0, 2, 1:4] = torch.tensor([0.5, -1.0, 0.5])
    bank[1, 1:4, 2] = torch.tensor([0.5, -1.0, 0.5])
    bank[2, 1:4, 1:4] = torch.tensor([[-0.25, 0.5, -0.25], [0.5, -1, 0.5], [-0.25, 0.5, -0.25]])
    bank[3, 2, 1:5] = torch.tensor([1.0, -3.0, 3.0, -1.0]) / 3
    bank[4, 1:5, 2] = torch.tensor([1.0, -3.0, 3.0, -1.0]) / 3
    bank[5] = torch.tensor(_KV) / 12.0
    return bank[:, None]


class Classifier(nn.Module):
    """Display frames ``(batch, 1, 256, 256)`` to how marked they look ``(batch,)``."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filters", filters())
        layers: list[nn.Module] = []
        for inside, outside, size in ((6, 16, 5), (16, 32, 3), (32, 48, 3), (48, 64, 3)):
            layers += [nn.Conv2d(inside, outside, size, stride=2, padding=size // 2, bias=False),
                       nn.BatchNorm2d(outside), nn.ReLU()]  # fmt: skip
        self.net = nn.Sequential(*layers)
        self.last = nn.Linear(128, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = F.conv2d(F.pad(x, (2,) * 4, mode="reflect"), self.filters).clamp(-CUT, CUT) / CUT
        y = self.net(seen.contiguous(memory_format=torch.channels_last)).float()
        score: Tensor = self.last(torch.cat([y.mean((2, 3)), y.amax((2, 3))], 1))
        return score[:, 0]


def split(groups: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """Return places to train on, to choose by and to test on: a group is in one of them only.

    Tested on are the frames no network of ours was trained on; a sixth of the other groups, by the
    hash of their names, is to choose by.
    """
    sixth = np.array([hashlib.sha256(str(g).encode()).digest()[0] % 6 == 0 for g in groups])
    places = {"train": ~sixth & ~test, "choose": sixth & ~test, "test": test}
    if set(groups[test]) & set(groups[~test]):
        raise SystemExit("a group is tested and trained on: pack the frames anew")
    return {name: np.flatnonzero(chosen) for name, chosen in places.items()}


def auc(unmarked: np.ndarray, marked: np.ndarray) -> float:
    """Return the chance that a marked frame scores above an unmarked one."""
    low = np.sort(unmarked)
    below = np.searchsorted(low, marked, "left") + np.searchsorted(low, marked, "right")
    return float(below.mean() / (2 * len(low)))


def judged(unmarked: np.ndarray, marked: np.ndarray, limit: float) -> dict[str, float]:
    """Return accuracy over as many unmarked as marked frames, and the AUC."""
    right = ((marked > limit).mean() + (unmarked <= limit).mean()) / 2
    return {"accuracy": round(float(right), 4), "auc": round(auc(unmarked, marked), 4)}


def display(frames: np.ndarray) -> Tensor:
    return torch.from_numpy(frames[:, None]).float() / 255


@torch.no_grad()
def scores(network: nn.Module, frames: np.ndarray) -> np.ndarray:
    network.eval()
    out = torch.cat([network(display(part)) for part in np.array_split(frames, 8)])
    network.train()
    return out.numpy()


def blind(data: dict[str, np.ndarray], places: dict[str, np.ndarray], epochs: int) -> dict:
    """Train the classifier and test it."""
    rng = np.random.default_rng(SEED)
    torch.manual_seed(SEED)
    network = Classifier().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), RATE, weight_decay=1e-2)
    steps = epochs * (len(places["train"]) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    best, told = -1.0, {}
    for epoch in range(epochs):
        order = rng.permutation(places["train"])
        for start in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            both = np.concatenate([data["covers"][chosen], data["marked"][chosen]])
            both = np.rot90(both, rng.integers(4), (1, 2))
            both = both[:, :, ::-1] if rng.random() < 0.5 else both
            wanted = torch.cat([torch.zeros(BATCH), torch.ones(BATCH)])
            with torch.autocast("cpu", torch.bfloat16):
                score = network(display(np.ascontiguousarray(both)))
            loss = F.binary_cross_entropy_with_logits(score.float(), wanted)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
        pairs = {name: [scores(network, data[kind][places[name]]) for kind in ("covers", "marked")]
                 for name in ("choose", "test")}  # fmt: skip
        limit = float(np.median(np.concatenate(pairs["choose"])))
        chosen_by = judged(*pairs["choose"], limit)
        print(f"epoch {epoch + 1} loss {loss.item():.3f} to choose by {chosen_by}", flush=True)
        if chosen_by["auc"] > best:
            best, told = chosen_by["auc"], judged(*pairs["test"], limit)
    return {**told, "epochs": epochs, "auc_to_choose_by": best}


@torch.no_grad()
def informed(data: dict[str, np.ndarray], places: dict[str, np.ndarray], model: Path) -> dict:
    """Look through D1: mean over root mean square of its soft bits' sizes."""
    state = start_from(model)["decoder"]
    decoder = Decoder(len(state["patterns"]), len(state["first.bias"]))
    decoder.load_state_dict(state)
    patterns = decoder.carrier_patterns()
    norms = patterns.norm(dim=1)

    def even(frames: np.ndarray) -> np.ndarray:
        parts = np.array_split(frames, 16)
        soft = torch.cat([decoder(to_n(display(p)), patterns, norms) for p in parts])
        return (soft.abs().mean(1) / soft.pow(2).mean(1).sqrt()).numpy()

    pairs = {name: [even(data[kind][places[name]]) for kind in ("covers", "marked")]
             for name in ("choose", "test")}  # fmt: skip
    tried = np.sort(np.concatenate(pairs["choose"]))
    limit = max(tried, key=lambda v: judged(*pairs["choose"], v)["accuracy"])
    return judged(*pairs["test"], float(limit))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="folder with card.toml")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with np.load(args.pairs) as file:
        data = {name: file[name] for name in ("covers", "marked", "groups", "test")}
    places = split(data["groups"], data["test"])
    sizes = {k: [len(v), len(set(data["groups"][v]))] for k, v in places.items()}
    mse = ((data["covers"].astype(float) - data["marked"]) ** 2).mean((1, 2))
    told = {
        "frames_and_groups": sizes,
        "psnr_db": round(float(np.mean(10 * np.log10(255**2 / mse))), 2),
        "informed": informed(data, places, args.model),
        "blind": blind(data, places, args.epochs),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
