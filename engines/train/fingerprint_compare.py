"""Train the comparator further, the fingerprint itself left as it is.

    python fingerprint_compare.py --pack pack.npz --start run/last.pt --out run2   # 25 minutes

`fingerprint.py` trains bits and comparator together. What is signed cannot be changed later, what
it is compared with can: so the bits stay, and a larger comparator learns to read them. It has a
trunk of its own, and looks at the frame as a whole before it judges a cell: the same difference
means little in a picture that differs a little everywhere.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import fingerprint
import fingerprint_pairs as pairs
import numpy as np
import torch
import torch.nn.functional as F
from fingerprint import EVERY, Fingerprint, Trunk, batch, mark_fields, sign
from torch import Tensor, nn

RECIPE = {"batch": 24, "steps": 2200, "lr": 2e-3, "hardest": 1.0, "seed": 2}
WIDTH = 64


class Comparator(nn.Module):
    """Bits of a frame before, and the frame after: which cells were changed."""

    def __init__(self, bits: int, width: int) -> None:
        super().__init__()
        self.trunk = Trunk(width)
        self.code = nn.Conv2d(48, bits, 1)
        self.first = nn.Conv2d(3 * bits + 48, WIDTH, 3, padding=1)
        self.whole = nn.Linear(3 * WIDTH, WIDTH)
        self.second = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.third = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.last = nn.Conv2d(WIDTH, 1, 1)

    def start_from(self, model: Fingerprint) -> None:
        """Take over what `fingerprint.py` has learned."""
        self.trunk.load_state_dict(model.trunk.state_dict())
        self.code.load_state_dict(model.code.state_dict())
        first, second, last = (model.compare[place] for place in (0, 2, 4))
        self.first.load_state_dict(first.state_dict())
        self.second.load_state_dict(second.state_dict())
        self.last.load_state_dict(last.state_dict())
        with torch.no_grad():
            nn.init.zeros_(self.whole.weight), nn.init.zeros_(self.whole.bias)
            nn.init.dirac_(self.third.weight), nn.init.zeros_(self.third.bias)

    def forward(self, bits: Tensor, after: Tensor) -> Tensor:
        """Return how much each cell looks changed, ``(batch, 16, 16)``; `bits` are -1 and +1."""
        h = self.trunk(after)
        same = bits * torch.tanh(self.code(h))
        overall = same.mean((2, 3), keepdim=True).expand_as(same)
        y = F.relu(self.first(torch.cat([bits, same, overall, h], 1)))
        mean, most = y.mean((2, 3)), y.amax((2, 3))
        spread = ((y * y).mean((2, 3)) - mean * mean + 1e-4).sqrt()
        y = F.relu(y + self.whole(torch.cat([mean, most, spread], 1))[:, :, None, None])
        y = F.relu(self.third(F.relu(self.second(y))))
        return self.last(y)[:, 0]


def loss_of(logits: Tensor, marked: Tensor) -> Tensor:
    """Return the cost; the six untouched cells of a frame that look changed most count double."""
    yes, no = (marked == 1).float(), (marked == 0).float()
    missed = (F.softplus(-logits) * yes).sum() / yes.sum().clamp_min(1)
    alarm = F.softplus(logits) * no
    hardest = alarm.flatten(1).topk(6, 1).values.mean()
    return missed + alarm.sum() / no.sum() + RECIPE["hardest"] * hardest


def look(model: Fingerprint, comparator: Comparator, frames: np.ndarray, fields) -> str:
    """Return figures over held-out frames, by kind of tampering."""
    rng = np.random.default_rng(0)
    comparator.eval()
    out, limit = "  ", 0.0
    with torch.no_grad():
        for kind in ("", *pairs.TAMPERING):
            scores, truth = [], []
            for start in range(0, 3 * len(frames), 51):
                chosen = [i % len(frames) for i in range(start, start + 51)]
                before, after, marked = batch(frames, chosen, fields, rng, kind)
                bits = sign(model.code(model.trunk(before)))
                scores.append(comparator(bits, after).numpy()), truth.append(marked.numpy())
            score, truth = np.concatenate(scores), np.concatenate(truth)
            if not kind:
                limit = float(np.quantile(score.max((1, 2)), 0.99))
                continue
            hit = (truth == 1).any((1, 2))
            found = (np.where(truth == 1, score, -99).max((1, 2)) > limit)[hit].mean()
            out += f" {kind} auc {fingerprint.auc(score, truth):.4f} found {found:.3f}"
    comparator.train()
    return f"{out} limit {limit:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=RECIPE["steps"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(RECIPE["seed"])
    rng = np.random.default_rng(RECIPE["seed"])
    data = np.load(args.pack)
    frames, held_out = data["train"], data["test"]
    sampler = data["weight"] / data["weight"].sum()
    state = torch.load(args.start, weights_only=False)
    recipe = state["recipe"]
    model = Fingerprint(recipe["bits"], recipe["width"])
    model.load_state_dict(state["model"])
    model.requires_grad_(requires_grad=False)
    comparator = Comparator(recipe["bits"], recipe["width"])
    comparator.start_from(model)
    comparator = comparator.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(comparator.parameters(), RECIPE["lr"], weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, RECIPE["lr"], total_steps=args.steps, pct_start=0.1
    )
    fields = mark_fields()
    args.out.mkdir(parents=True, exist_ok=True)
    started, running = time.time(), 0.0
    for step in range(args.steps):
        chosen = rng.choice(len(frames), RECIPE["batch"], p=sampler)
        before, after, marked = batch(frames, chosen, fields, rng)
        with torch.no_grad():
            bits = sign(model.code(model.trunk(before)))
        loss = loss_of(comparator(bits, after), marked)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(comparator.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        running = 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0:
            print(f"{step} loss {running / (1 - 0.98 ** (step + 1)):.4f} "
                  f"{(time.time() - started) / (step + 1):.2f} s/step", flush=True)  # fmt: skip
        last = step + 1 == args.steps
        if (step + 1) % EVERY == 0 or last:
            kept = {**state, "comparator": comparator.state_dict(), "compared": step + 1,
                    "compare_recipe": {**RECIPE, "steps": args.steps}}  # fmt: skip
            torch.save(kept, args.out / "last.pt")
        if (step + 1) % (2 * EVERY) == 0 or last:
            print(f"== {step + 1}\n{look(model, comparator, held_out, fields)}", flush=True)


if __name__ == "__main__":
    main()
