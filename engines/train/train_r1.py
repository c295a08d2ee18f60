"""Train R1, the reader: D1's layers and a sense of place, on pictures the real encoder marked.

    python mark_frames.py --pack pack.npz --out marked.npz                    # two minutes
    python train_r1.py recipes/r1.toml --marked marked.npz --start run/best.pt --out r1   # 30 min
    python export_r1.py r1/last.pt --out ..

`--start` is a folder with card.toml or a checkpoint of train_w1.py (D1 and its patterns, which
stay as they are), or a checkpoint of this script; `--resume` goes on exactly where ``last.pt``
stopped. With `--device cuda` the layers run on the GPU in bfloat16; attacks stay on the CPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import attacks
import cv2
import numpy as np
import recipe as recipes
import torch
import torch.nn.functional as F
from frames import seen
from networks import Reader
from running import Run, one_cycle, set_rates
from shipped import start_from
from torch import Tensor


def loss_of(soft: Tensor, words: Tensor, settings: recipes.ReaderLoss) -> tuple[Tensor, Tensor]:
    """Return the loss, and the agreement of every picture.

    Bits that are wrong or hardly right, and pictures whose soft bits agree less with their code
    word than recognising them takes.
    """
    right = soft * words
    agreement = right.mean(1) / (soft.pow(2).mean(1) + 1e-6).sqrt()
    unread = F.softplus(10 * (settings.enough - agreement)).mean()
    return F.softplus(-right).mean() + settings.unread * unread, agreement


def begin(reader: Reader, path: Path) -> None:
    """Load D1's layers and patterns, or a whole reader."""
    state = start_from(path)
    if "reader" in state:
        reader.load_state_dict(state["reader"])
        return
    missing = reader.load_state_dict(state["decoder"], strict=False)
    if missing.unexpected_keys or any(not k.startswith("places.") for k in missing[0]):
        raise SystemExit(f"{path}: not a D1 of this shape: {missing}")


def train(recipe: recipes.R1, args: argparse.Namespace) -> None:
    cv2.setNumThreads(1)
    run = Run(args.out, recipe.run.seed, args.device)
    steps, rng, device = recipe.run.steps, run.rng, run.device
    data = np.load(args.marked)
    pictures = data["pictures"]
    words = torch.from_numpy(data["words"].astype(np.float32)).to(device)
    reader = Reader(recipe.model.code_bits)
    if args.start:
        begin(reader, args.start)
    reader = reader.to(device, memory_format=torch.channels_last)
    reader.patterns.requires_grad_(False)  # the marks that are out there were made with them
    reader.gain.requires_grad_(False)
    trained = {n: p for n, p in reader.named_parameters() if p.requires_grad}
    gates = [p for n, p in trained.items() if n.startswith("places.")]
    layers = [p for n, p in trained.items() if not n.startswith("places.")]
    optimiser = torch.optim.Adam([
        {"params": gates, "lr": 0.0, "top": recipe.rates.gates},
        {"params": layers, "lr": 0.0, "top": recipe.rates.layers},
    ])  # fmt: skip
    if args.resume:
        state = run.resume()
        reader.load_state_dict(state["reader"]), optimiser.load_state_dict(state["optimiser"])
    with torch.no_grad():
        patterns = reader.carrier_patterns()
        norms = patterns.norm(dim=1)
    figures: list[tuple[float, float, float]] = []
    for step in range(run.first, min(steps, args.stop or steps)):
        set_rates(optimiser, one_cycle(step, steps))
        chosen = rng.choice(len(pictures), recipe.run.batch, replace=False)
        hit = np.stack([seen(attacks.draw_weak(pictures[i], rng)) for i in chosen])
        x = torch.from_numpy(hit[:, None]).to(device)  # (batch, 1, n, n)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            whitened = reader.normalised(x)
        soft = (whitened.float() @ patterns.t()) / norms
        loss, agreement = loss_of(soft, words[chosen], recipe.loss)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*gates, *layers], 1.0)
        optimiser.step()
        read = (agreement > 0.6).float().mean().item()
        figures.append((loss.item(), agreement.mean().item(), read))
        done = step + 1
        if done % recipe.run.save_every == 0 or done in (steps, args.stop):
            means = np.mean(figures, 0).tolist()
            figures.clear()
            run.log(done, loss=means[0], agreement=means[1], above_06=means[2],
                    seconds_a_step=run.pace(done))  # fmt: skip
            run.save("last.pt", done, reader=reader, optimiser=optimiser,
                     recipe=recipes.table(recipe))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--marked", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="folder with card.toml, or a checkpoint")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--stop", type=int, help="end after this step of the recipe's")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    if not args.resume and args.start is None:
        parser.error("--start or --resume")
    recipe = recipes.read(args.recipe, recipes.R1)
    if args.resume:
        recipes.same(recipe, args.out / "last.pt")
    train(recipe, args)


if __name__ == "__main__":
    main()
