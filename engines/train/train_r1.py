"""Train R1, the reader: D1's layers and a sense of place, on pictures the real encoder marked.

    python mark_frames.py --pack pack.npz --out marked.npz       # two minutes
    python train_r1.py --marked marked.npz --start run/last.pt --out run/r1.pt   # half an hour
    python export_r1.py run/r1.pt --out ..

`--start` is a checkpoint of train_w1.py (D1 and its patterns, which stay as they are) or of this
script; `--resume` goes on with one of this script where it stopped. With `--device cuda` the whole
set lies on the GPU and the layers run in bfloat16; attacks stay on the CPU.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import attacks
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from networks import N, Reader

RECIPE = {
    "code_bits": 160,
    "batch": 24,
    "steps": 2000,
    "gates_lr": 4e-3,
    "layers_lr": 2e-3,
    "enough": 0.72,  # agreement from which a picture counts as read
    "seed": 1,
}
SAVED_EVERY = 100


def loss_of(soft: torch.Tensor, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss, and the agreement of every picture.

    Bits that are wrong or hardly right, and pictures whose soft bits agree less with their code
    word than recognising them takes.
    """
    right = soft * words
    agreement = right.mean(1) / (soft.pow(2).mean(1) + 1e-6).sqrt()
    unread = F.softplus(10 * (RECIPE["enough"] - agreement)).mean()
    return F.softplus(-right).mean() + 0.1 * unread, agreement


def seen(picture: np.ndarray) -> np.ndarray:
    """Return an 8-bit picture of any size as the node sees it, ``(n, n)``, 0..1."""
    return cv2.resize(picture.astype(np.float32), (N, N), interpolation=cv2.INTER_AREA) / 255


def start_from(path: Path, reader: Reader) -> dict:
    """Load D1's layers and patterns, or a whole reader; return the checkpoint."""
    state = torch.load(path, weights_only=False)
    if "reader" in state:
        reader.load_state_dict(state["reader"])
    else:
        missing = reader.load_state_dict(state["decoder"], strict=False)
        if missing.unexpected_keys or any(not k.startswith("places.") for k in missing[0]):
            raise SystemExit(f"{path}: not a D1 of this shape: {missing}")
    return state


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    torch.manual_seed(RECIPE["seed"])
    rng = np.random.default_rng(RECIPE["seed"])
    data = np.load(args.marked)
    pictures, words = data["pictures"], torch.from_numpy(data["words"].astype(np.float32))
    steps = args.steps or RECIPE["steps"]
    reader = Reader(RECIPE["code_bits"])
    state = start_from(args.out if args.resume else args.start, reader)
    reader.patterns.requires_grad_(False)  # the marks that are out there were made with them
    reader.gain.requires_grad_(False)
    reader = reader.to(args.device, memory_format=torch.channels_last)
    words = words.to(args.device)
    with torch.no_grad():
        patterns = reader.carrier_patterns()
        norms = patterns.norm(dim=1)
    trained = {n: p for n, p in reader.named_parameters() if p.requires_grad}
    gates = [p for n, p in trained.items() if n.startswith("places.")]
    layers = [p for n, p in trained.items() if not n.startswith("places.")]
    rates = [RECIPE["gates_lr"], RECIPE["layers_lr"]]
    optimiser = torch.optim.Adam(
        [{"params": p, "lr": r} for p, r in zip((gates, layers), rates, strict=True)]
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rates, total_steps=steps, pct_start=0.1
    )
    first = 0
    if args.resume:
        optimiser.load_state_dict(state["optimiser"]), schedule.load_state_dict(state["schedule"])
        first = state["step"]
        rng = np.random.default_rng(RECIPE["seed"] + first)
    started, running = time.time(), np.zeros(3)
    for step in range(first, steps):
        chosen = rng.choice(len(pictures), RECIPE["batch"], replace=False)
        hit = np.stack([seen(attacks.draw_weak(pictures[i], rng)) for i in chosen])
        x = torch.from_numpy(hit[:, None]).float().to(args.device)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.device == "cuda"):
            whitened = reader.normalised(x)
        soft = (whitened.float() @ patterns.t()) / norms
        loss, agreement = loss_of(soft, words[chosen])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*gates, *layers], 1.0)
        optimiser.step()
        schedule.step()
        read = (agreement > 0.6).float().mean().item()
        running = 0.99 * running + 0.01 * np.array([loss.item(), agreement.mean().item(), read])
        if (step + 1) % SAVED_EVERY == 0 or step + 1 == steps:
            figures = running / (1 - 0.99 ** (step + 1 - first))
            pace = (time.time() - started) / (step + 1 - first)
            print(f"{step + 1} loss {figures[0]:.4f} agreement {figures[1]:.4f} "
                  f"above 0.6 {figures[2]:.3f}, {pace:.2f} s a step", flush=True)  # fmt: skip
            torch.save(
                {"reader": {k: v.cpu() for k, v in reader.state_dict().items()},
                 "optimiser": optimiser.state_dict(), "schedule": schedule.state_dict(),
                 "step": step + 1, "recipe": RECIPE}, args.out,
            )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--marked", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="checkpoint of train_w1.py or of this script")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    if not args.resume and args.start is None:
        parser.error("--start or --resume")
    train(args)


if __name__ == "__main__":
    main()
