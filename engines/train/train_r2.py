"""Train R2, the reader, on pictures the real encoder marked at every strength it may choose.

    python mark_frames.py --pack pack.npz --out marked.npz                    # a minute
    python mark_frames.py --pack pack.npz --out looked_at.npz --test          # seconds
    python train_r2.py recipes/r2.toml --marked marked.npz --test looked_at.npz \\
        --patterns ../patterns.npy --out r2                                   # an hour
    python export_r2.py r2/last.pt --out ..

R2 for small frames, whose carrier is folded, the same with `mark_frames.py --small` and
recipes/r2_small.toml, and `--start ..`: pictures of 128 x 128, patterns of 64 x 64.

The patterns are those the frames were marked with, and stay as they are; `--resume` goes on
exactly where ``last.pt`` stopped. Layers run in bfloat16, on the CPU too, or with `--device cuda`;
attacks stay on the CPU.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path

import attacks
import cv2
import numpy as np
import recipe as recipes
import shipped
import small_pictures
import torch
import torch.nn.functional as F
from frames import seen
from readers import SIDE, Reader, folded
from running import Average, Run, fit, one_cycle, set_rates
from suite import suite
from torch import Tensor

READ = 0.6  # agreement above which a picture counts as read in the log
LOOKED_AT = (
    "plain", "noise 0.001", "noise 0.005", "noise 0.01", "jpeg 30", "jpeg 10", "jpeg 2000 20:1",
    "size 0.25", "blur 7x7", "equalised",
)  # fmt: skip
SMALL_LOOKED_AT = (
    "plain", "jpeg 70", "jpeg 50", "jpeg 30", "noise 0.001", "speckle 0.01", "misplaced",
    "mean 3x3", "size 0.5", "blur 7x7", "equalised", "cropped 25 %",
)


def loss_of(soft: Tensor, words: Tensor, settings: recipes.ReaderLoss) -> tuple[Tensor, Tensor]:
    """Return the loss, and the agreement of every picture (cosine with its code word).

    Bits that are wrong or hardly right, and pictures whose soft bits agree less with their code
    word than recognising them takes.
    """
    right = soft * words
    agreement = right.mean(1) / (soft.pow(2).mean(1) + 1e-6).sqrt()
    unread = F.softplus(10 * (settings.enough - agreement)).mean()
    return F.softplus(-right).mean() + settings.unread * unread, agreement


@torch.no_grad()
def look(
    reader: Reader, pictures: Sequence[np.ndarray], words: Tensor, recipe: recipes.R2
) -> dict[str, list[float]]:
    """Return, by attack, the mean agreement and the share of pictures above `READ`."""
    attacked, side = suite(np.random.default_rng(0)), SIDE // recipe.model.folds
    table = {}
    for name in LOOKED_AT if recipe.model.folds == 1 else SMALL_LOOKED_AT:
        hit = np.stack([seen(attacked[name](p), side) for p in pictures])
        x = torch.from_numpy(hit[:, None]).to(words.device)
        soft = torch.cat([reader(some) for some in x.split(16)])
        agreement = loss_of(soft, words, recipe.loss)[1]
        figures = (agreement.mean(), (agreement > READ).float().mean())
        table[name] = [round(f.item(), 4) for f in figures]
    return table


def marked_pictures(path: Path, device: torch.device) -> tuple[list[np.ndarray], Tensor]:
    """Return pictures of `mark_frames.py` and their code words ``(pictures, K)``."""
    with np.load(path) as data:
        pictures, words = data["pictures"], data["words"].astype(np.float32)
        sides = data["sides"] if "sides" in data else [len(pictures[0])] * len(pictures)
    cut = [np.ascontiguousarray(p[:n, :n]) for p, n in zip(pictures, sides, strict=True)]
    return cut, torch.from_numpy(words).to(device)


def drawn(picture: np.ndarray, rng: np.random.Generator, folds: int) -> np.ndarray:
    """Return a picture attacked, as the network sees it, ``(side, side)``, 0..1."""
    if folds > 1:
        return small_pictures.drawn(picture, rng, SIDE // folds)
    return seen(attacks.draw_weak(picture, rng), SIDE)


def train(recipe: recipes.R2, args: argparse.Namespace) -> None:
    cv2.setNumThreads(1)
    run = Run(args.out, recipe.run.seed, args.device)
    steps, rng, device = recipe.run.steps, run.rng, run.device
    pictures, words = marked_pictures(args.marked, device)
    shown, of_shown = marked_pictures(args.test, device)
    whole = np.load(args.patterns).reshape(words.shape[1], SIDE // 2, SIDE // 2)
    folds = recipe.model.folds
    patterns = torch.from_numpy(folded(whole, folds)).flatten(1)
    reader = Reader(patterns, recipe.model.width, recipe.model.hidden)
    if args.start:
        layers = shipped.reader_from(args.start).state_dict()
        fit(reader, {k: v for k, v in layers.items() if k != "patterns"})
    reader = reader.to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(
        [{"params": list(reader.parameters()), "lr": 0.0, "top": recipe.rates.network}]
    )
    average, averaged = Average(reader, recipe.run.average), copy.deepcopy(reader)
    if args.resume:
        state = run.resume()
        for part, name in ((reader, "latest"), (average, "reader"), (optimiser, "optimiser")):
            part.load_state_dict(state[name])
    if args.start and not args.resume:
        run.log(0, validated=True, agreement_and_above_06=look(reader, shown, of_shown, recipe))
    figures: list[tuple[float, float, float]] = []
    for step in range(run.first, steps if args.stop is None else min(steps, args.stop)):
        set_rates(optimiser, one_cycle(step, steps))
        chosen = rng.choice(len(pictures), recipe.run.batch, replace=False)
        hit = np.stack([drawn(pictures[i], rng, folds) for i in chosen])
        x = torch.from_numpy(hit[:, None])  # (batch, 1, side, side)
        x = x.to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            soft = reader(x)  # (batch, K), float32
        loss, agreement = loss_of(soft, words[chosen], recipe.loss)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimiser.step()
        average.follow(reader, step)
        read = (agreement > READ).float().mean().item()
        figures.append((loss.item(), agreement.mean().item(), read))
        done = step + 1
        if done % recipe.run.save_every == 0 or done in (steps, args.stop):
            means = np.mean(figures, 0).tolist()
            figures.clear()
            run.log(done, loss=means[0], agreement=means[1], above_06=means[2],
                    seconds_a_step=run.pace(done))  # fmt: skip
            run.save("last.pt", done, reader=average, latest=reader, optimiser=optimiser,
                     recipe=recipes.table(recipe))  # fmt: skip
        if done % recipe.run.validate_every == 0 or done == steps:
            averaged.load_state_dict(average.weights)
            told = look(averaged, shown, of_shown, recipe)
            run.log(done, validated=True, agreement_and_above_06=told)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--marked", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True, help="marked frames to look at")
    parser.add_argument("--patterns", type=Path, required=True, help="patterns.npy of the model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="folder with card.toml whose R2 to start from, "
                        "or a checkpoint of this script")  # fmt: skip
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--stop", type=int, help="end after this step of the recipe's; 0 only "
                        "looks at what --start names")  # fmt: skip
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    recipe = recipes.read(args.recipe, recipes.R2)
    if args.resume:
        recipes.same(recipe, args.out / "last.pt")
    train(recipe, args)


if __name__ == "__main__":
    main()
