"""Train the fingerprint: code network F and the comparator that finds what was changed.

    python pack.py --data DATA --out pack.npz                       # once
    python fingerprint.py recipes/f.toml --pack pack.npz --out f    # 40 minutes on one core
    python fingerprint_export.py f/last.pt --data DATA --out ..     # f1.onnx, f1_check.onnx

    frame before ──F──▶ 16 x 16 cells of 8 bits            (signed, kept)
    frame after ──F's trunk──┐
    bits ────────────────────┴─comparator──▶ 16 x 16 cells: changed?

Both are trained together: the bits are whatever lets the comparator tell processing from
tampering. Bits are ordered by use: the first 2, 4 or 6 of a cell do for themselves.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import fingerprint_pairs as pairs
import numpy as np
import recipe as recipes
import torch
import torch.nn.functional as F
from fingerprint_scores import auc
from frames import augment, read_pack
from networks import smooth_noise
from running import Run, one_cycle, set_rates
from torch import Tensor, nn


class Trunk(nn.Module):
    """What a frame is made of, whatever its contrast: ``(batch, 1, 128, 128)`` -> 16 x 16 cells."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 8, stride=4, padding=2, bias=False)
        with torch.no_grad():
            self.stem.weight -= self.stem.weight.mean((2, 3), keepdim=True)
        self.floor = nn.Parameter(torch.tensor(-4.0))
        self.mix = nn.Conv2d(width + 1, width, 3, padding=1)
        self.down = nn.Conv2d(width, 48, 4, stride=2, padding=1)
        self.last = nn.Conv2d(48, 48, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        power = F.avg_pool2d((y * y).mean(1, keepdim=True), 5, 1, 2, count_include_pad=False)
        scale = (power + 1e-8).sqrt() + self.floor.exp()
        y = torch.cat([y / scale, scale.log() + 3], 1)
        return F.relu(self.last(F.relu(self.down(F.relu(self.mix(y))))))


class Fingerprint(nn.Module):
    """Trunk, code head and comparator."""

    def __init__(self, bits: int, width: int) -> None:
        super().__init__()
        self.trunk = Trunk(width)
        self.code = nn.Conv2d(48, bits, 1)
        self.compare = nn.Sequential(
            nn.Conv2d(3 * bits + 48, 64, 3, padding=1), nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 1, 1),
        )  # fmt: skip

    def changed(self, bits: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """Return how much each cell looks changed ``(batch, 16, 16)``, and the code of `after`.

        `bits` are -1, 0 (not kept) and +1, ``(batch, bits, 16, 16)``.
        """
        h = self.trunk(after)
        now = torch.tanh(self.code(h))
        same = bits * now
        overall = same.mean((2, 3), keepdim=True).expand_as(same)
        return self.compare(torch.cat([bits, same, overall, h], 1))[:, 0], now


def sign(z: Tensor) -> Tensor:
    """Return -1 or +1, with the gradient of tanh."""
    soft = torch.tanh(z)
    return soft + (torch.where(z > 0, 1.0, -1.0) - soft).detach()


def loss_of(logits: Tensor, marked: Tensor, hardest_weight: float) -> Tensor:
    """Return the cost: changed and untouched cells weigh the same, the hardest ones more."""
    yes, no = (marked == 1).float(), (marked == 0).float()
    missed = (F.softplus(-logits) * yes).sum() / yes.sum().clamp_min(1)
    alarm = F.softplus(logits) * no
    hardest = alarm.flatten(1).topk(6, 1).values.mean()
    return missed + alarm.sum() / no.sum() + hardest_weight * hardest


def mark_fields(count: int = 16) -> np.ndarray:
    """Return fields of W1's band at 256 x 256, of unit power."""
    small = smooth_noise(count).numpy()
    big = np.stack([cv2.resize(f, (pairs.SIDE, pairs.SIDE)) for f in small])
    return (big / big.std()).astype(np.float32)


def batch(frames, chosen, fields, rng, kind=None):
    """Return tensors before, after ``(batch, 1, 128, 128)`` and labels ``(batch, 16, 16)``."""
    made = []
    for i in chosen:
        near = int(np.clip(i + rng.integers(-12, 13), 0, len(frames) - 1))
        other = near if rng.random() < 0.5 else int(rng.integers(len(frames)))
        plain = kind is not None
        frame = frames[i] if plain else augment(frames[i], rng, zoomed=0.5)
        donor = frames[other] if plain else np.rot90(frames[other], rng.integers(4))
        made.append(pairs.pair(frame, donor, fields, rng, kind))
    before, after, marked = (np.stack(each) for each in zip(*made, strict=True))
    return (torch.from_numpy(before)[:, None], torch.from_numpy(after)[:, None],
            torch.from_numpy(marked))  # fmt: skip


def look(model: Fingerprint, frames: np.ndarray, fields: np.ndarray) -> dict[str, dict]:
    """Return figures over held-out frames: cell AUC by kind of tampering, for 2, 4, 6, 8 bits,
    and the share found."""
    rng = np.random.default_rng(0)
    untouched, by_kind = [], {}
    model.eval()
    with torch.no_grad():
        for kind in ("", *pairs.TAMPERING):
            scores, truth = [], []
            for start in range(0, len(frames), 51):
                chosen = range(start, min(start + 51, len(frames)))
                before, after, marked = batch(frames, chosen, fields, rng, kind)
                bits = sign(model.code(model.trunk(before)))
                rows = []
                for kept in (2, 4, 6, 8):
                    part = bits.clone()
                    part[:, kept:] = 0
                    rows.append(model.changed(part, after)[0])
                scores.append(torch.stack(rows, 1).numpy()), truth.append(marked.numpy())
            by_kind[kind] = np.concatenate(scores), np.concatenate(truth)
    model.train()
    out: dict[str, dict] = {}
    for place, kept in enumerate((2, 4, 6, 8)):
        untouched = np.sort(by_kind[""][0][:, place].max((1, 2)))
        limit = untouched[int(np.ceil(0.98 * len(untouched))) - 1]
        out[f"{kept} bits"] = {}
        for kind in pairs.TAMPERING:
            score, truth = by_kind[kind][0][:, place], by_kind[kind][1]
            hit = (truth == 1).any((1, 2))
            found = (np.where(truth == 1, score, -99).max((1, 2)) > limit)[hit].mean()
            out[f"{kept} bits"][kind] = [round(auc(score, truth), 4), round(float(found), 3)]
    return out


def train(recipe: recipes.Fingerprint, args: argparse.Namespace) -> None:
    run = Run(args.out, recipe.run.seed)
    steps, rng, bits_of_cell = recipe.run.steps, run.rng, recipe.model.bits
    pack, fields = read_pack(args.pack), mark_fields()
    model = Fingerprint(bits_of_cell, recipe.model.width).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(
        [{"params": list(model.parameters()), "top": recipe.rates.network}], weight_decay=1e-3
    )
    if args.resume:
        state = run.resume()
        model.load_state_dict(state["model"]), optimiser.load_state_dict(state["optimiser"])
    figures: list[tuple[float, float]] = []
    for step in range(run.first, min(steps, args.stop or steps)):
        set_rates(optimiser, one_cycle(step, steps))
        chosen = rng.choice(len(pack.train), recipe.run.batch, p=pack.weight)
        before, after, marked = batch(pack.train, chosen, fields, rng)
        bits = sign(model.code(model.trunk(before)))
        if rng.random() < recipe.loss.few_bits:
            kept = int(rng.choice([2, 4, 6]))
            bits = bits * (torch.arange(bits_of_cell) < kept).float()[:, None, None]
        logits, now = model.changed(bits, after)
        untouched = (marked == 0).float()[:, None]
        flips = (F.relu(0.5 - bits.detach() * now) * untouched).mean()
        even = bits.mean((0, 2, 3)).pow(2).mean()
        loss = loss_of(logits, marked, recipe.loss.hardest) + recipe.loss.steady * (flips + even)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        figures.append((loss.item(), flips.item()))
        done = step + 1
        if done % recipe.run.save_every == 0 or done in (steps, args.stop):
            means = np.mean(figures, 0).tolist()
            figures.clear()
            run.log(done, loss=means[0], flips=means[1], seconds_a_step=run.pace(done))
            run.save("last.pt", done, model=model, optimiser=optimiser,
                     recipe=recipes.table(recipe))  # fmt: skip
        if done % recipe.run.validate_every == 0 or done == steps:
            run.log(done, validated=True, auc_and_found=look(model, pack.val, fields))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stop", type=int, help="end after this step of the recipe's")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    recipe = recipes.read(args.recipe, recipes.Fingerprint)
    if args.resume:
        recipes.same(recipe, args.out / "last.pt")
    train(recipe, args)


if __name__ == "__main__":
    main()
