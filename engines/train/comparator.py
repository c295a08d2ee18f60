"""Train the fingerprint's comparator anew: what is signed stays as it is.

    python pack.py --data DATA --out pack.npz                            # once
    python comparator.py recipes/f_check.toml --pack pack.npz --out run  # 80 minutes on one core
    python fingerprint_export.py run/last.pt --data DATA --out ..        # f1_check.onnx

    bits (f1.onnx, years ago) ────────────────┐
    picture ──F's trunk and code, as shipped──┼──▶ 16 x 16 cells, five rounds ──▶ changed?
       └──a trunk of its own, black, white────┘     that each see the whole frame

The coder is read from f1.onnx and left alone, so every fingerprint that was ever signed is
compared by the new network, too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import fingerprint_pairs as pairs
import numpy as np
import recipe as recipes
import torch
import torch.nn.functional as F
from fingerprint import Fingerprint, Trunk, batch, loss_of, mark_fields
from fingerprint_scores import found_at_one_in_a_hundred
from frames import read_pack
from running import Average, Run, one_cycle, set_rates
from shipped import initialisers
from torch import Tensor, nn


def shipped_coder(path: Path) -> Fingerprint:
    """Return F as in f1.onnx, not to be trained."""
    held = {k.removeprefix("model."): v for k, v in initialisers(path).items()}
    try:
        coder = Fingerprint(len(held["code.weight"]), len(held["trunk.stem.weight"]))
        coder.compare = nn.Sequential()
        coder.load_state_dict(held)
    except (KeyError, RuntimeError) as error:
        raise SystemExit(f"{path}: not the coder of fingerprint.py: {error}") from error
    return coder.requires_grad_(False)


class Round(nn.Module):
    """Two convolutions around what the frame shows as a whole (mean and largest of its cells)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.whole = nn.Linear(2 * width, width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        whole = self.whole(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))
        return x + self.second(F.relu(self.first(F.relu(x)) + whole[:, :, None, None]))


class Comparator(nn.Module):
    """``(batch, 1, 128, 128)`` in 0..1 and bits -1 or +1 ``(batch, 8, 16, 16)`` to scores."""

    def __init__(self, coder: Fingerprint, width: int, rounds: int) -> None:
        super().__init__()
        self.coder = coder
        self.trunk = Trunk(coder.trunk.stem.out_channels)
        self.trunk.load_state_dict(coder.trunk.state_dict())
        seen = 5 * coder.code.out_channels + 48 + 3
        self.enter = nn.Conv2d(seen, width, 3, padding=1)
        self.rounds = nn.Sequential(*(Round(width) for _ in range(rounds)))
        self.leave = nn.Conv2d(width, 1, 1)

    def forward(self, frame: Tensor, bits: Tensor) -> Tensor:
        z = self.coder.code(self.coder.trunk(frame))
        now, sure = torch.tanh(z), torch.clamp(z / 12, -1, 1)
        same = bits * now
        overall = same.mean((2, 3), keepdim=True).expand_as(same)
        # What is black or white altogether has lost what it was: its bits say little.
        black, white = F.relu(1 - 64 * frame), F.relu(64 * frame - 63)
        told = F.avg_pool2d(torch.cat([black, white, frame], 1), frame.shape[-1] // pairs.CELLS)
        parts = [bits, now, same, bits * sure, overall, self.trunk(frame), told]
        return self.leave(F.relu(self.rounds(self.enter(torch.cat(parts, 1)))))[:, 0]


def ranked(logits: Tensor, marked: Tensor) -> Tensor:
    """Return the cost of changed cells that do not stand out above the worst untouched frames.

    An edit is found by its highest cell, if that is above what one frame in a hundred has.
    """
    low = torch.full_like(logits, -30.0)
    calm = torch.where(marked == 0, logits, low).flatten(1).amax(1)
    calm = calm.topk(max(1, len(calm) // 6)).values
    hit = (marked == 1).flatten(1).any(1)
    peak = torch.where(marked == 1, logits, low).flatten(1).amax(1)[hit]
    return F.softplus(calm[None] - peak[:, None]).mean()


def look(model: Comparator, frames: np.ndarray, fields: np.ndarray) -> dict[str, list[float]]:
    """Return AUC of cells and share found at 1 % false alarms, by tampering, of held-out frames."""
    rng, scores, labels = np.random.default_rng(0), {}, {}
    model.eval()
    with torch.no_grad():
        for kind in ("", "", "", "", *pairs.TAMPERING):
            made = []
            for start in range(0, len(frames), 51):
                chosen = range(start, min(start + 51, len(frames)))
                before, after, marked = batch(frames, chosen, fields, rng, kind)
                made.append((model(after, coded(model.coder, before)).numpy(), marked.numpy()))
            scores.setdefault(kind, []).extend(each for each, _ in made)
            labels.setdefault(kind, []).extend(each for _, each in made)
    model.train()
    calm = np.concatenate(scores.pop(""))
    return {
        kind: found_at_one_in_a_hundred(calm, np.concatenate(scores[kind]),
                                        np.concatenate(labels[kind]))
        for kind in scores
    }  # fmt: skip


def coded(coder: Fingerprint, frame: Tensor) -> Tensor:
    """Return the bits of a frame, -1 or +1."""
    with torch.no_grad():
        return torch.where(coder.code(coder.trunk(frame)) > 0, 1.0, -1.0)


def train(recipe: recipes.Comparator, args: argparse.Namespace) -> None:
    run = Run(args.out, recipe.run.seed)
    steps, rng = recipe.run.steps, run.rng
    pack, fields = read_pack(args.pack), mark_fields()
    coder = shipped_coder(args.coder)
    model = Comparator(coder, recipe.model.width, recipe.model.rounds)
    model = model.to(memory_format=torch.channels_last)
    learned = [each for each in model.parameters() if each.requires_grad]
    optimiser = torch.optim.AdamW(
        [{"params": learned, "top": recipe.rates.network}], weight_decay=recipe.rates.decay
    )
    average = Average(model, recipe.run.average)
    if args.resume:
        state = run.resume()
        model.load_state_dict(state["model"]), optimiser.load_state_dict(state["optimiser"])
        average.load_state_dict(state["average"])
    figures: list[tuple[float, float]] = []
    for step in range(run.first, min(steps, args.stop or steps)):
        set_rates(optimiser, one_cycle(step, steps))
        chosen = rng.choice(len(pack.train), recipe.run.batch, p=pack.weight)
        before, after, marked = batch(pack.train, chosen, fields, rng)
        logits = model(after, coded(coder, before))
        order = ranked(logits, marked)
        loss = loss_of(logits, marked, recipe.loss.hardest) + recipe.loss.ranked * order
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimiser.step()
        average.follow(model, step)
        figures.append((loss.item(), order.item()))
        done = step + 1
        if done % recipe.run.save_every == 0 or done in (steps, args.stop):
            means = np.mean(figures, 0).tolist()
            figures.clear()
            run.log(done, loss=means[0], ranked=means[1], seconds_a_step=run.pace(done))
            run.save("last.pt", done, model=model, average=average, optimiser=optimiser,
                     recipe=recipes.table(recipe))  # fmt: skip
        if done % recipe.run.validate_every == 0 or done == steps:
            smooth = Comparator(coder, recipe.model.width, recipe.model.rounds)
            smooth.load_state_dict(average.weights)
            run.log(done, validated=True, auc_and_found=look(smooth, pack.val, fields))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--coder", type=Path, default=Path("../f1.onnx"))
    parser.add_argument("--stop", type=int, help="end after this step of the recipe's")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    recipe = recipes.read(args.recipe, recipes.Comparator)
    if args.resume:
        recipes.same(recipe, args.out / "last.pt")
    train(recipe, args)


if __name__ == "__main__":
    main()
