"""Train R2, the reader, on pictures the real encoder marked at every strength it may choose.

    python mark_frames.py --pack pack.npz --out marked.npz                     # a minute
    python mark_frames.py --pack pack.npz --out looked_at.npz --test           # seconds
    python train_r2.py --marked marked.npz --test looked_at.npz --patterns ../patterns.npy \
        --out run/r2.pt                                                        # about an hour
    python export_r2.py run/r2.pt --out ..

One core with bfloat16 matrix units, or `--device cuda`; attacks stay on the CPU. `--resume` goes
on where the checkpoint stopped.
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
from readers import SIDE, Reader2

RECIPE = {
    "batch": 24,
    "steps": 5000,
    "rate": 2e-3,  # Adam, one cycle
    "width": 40,
    "hidden": 24,
    "enough": 0.72,  # agreement from which a picture counts as read
    "unread": 0.3,  # weight of pictures that agree less, against single bits
    "average": 0.998,  # of the weights, over steps: what is exported
    "seed": 1,
}
SAVED_EVERY, TESTED_EVERY = 100, 500


def loss_of(soft: torch.Tensor, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss, and the agreement of every picture (cosine with its code word).

    Bits that are wrong or hardly right, and pictures whose soft bits agree less with their code
    word than recognising them takes.
    """
    right = soft * words
    agreement = right.mean(1) / (soft.pow(2).mean(1) + 1e-6).sqrt()
    unread = F.softplus(10 * (RECIPE["enough"] - agreement)).mean()
    return F.softplus(-right).mean() + RECIPE["unread"] * unread, agreement


def seen(picture: np.ndarray) -> np.ndarray:
    """Return an 8-bit picture of any size as the node sees it, ``(256, 256)``, 0..1."""
    shrinks = min(picture.shape) >= SIDE
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(picture.astype(np.float32), (SIDE, SIDE), interpolation=how) / 255


def noisy(picture: np.ndarray, variance: float, rng: np.random.Generator) -> np.ndarray:
    sigma = 255 * np.sqrt(variance)
    return attacks._float(picture, picture + sigma * rng.standard_normal(picture.shape))


def suite(rng: np.random.Generator) -> dict[str, attacks.Attack]:
    """Return what the network is looked at with while it learns; the benchmark has the rest."""
    def jpeg_2000(p: np.ndarray) -> np.ndarray:
        code = cv2.imencode(".jp2", p, [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 50])[1]
        return cv2.imdecode(code, cv2.IMREAD_GRAYSCALE)

    def quarter(p: np.ndarray) -> np.ndarray:
        return cv2.resize(p, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)

    return {
        "plain": lambda p: p,
        "noise .001": lambda p: noisy(p, 0.001, rng),
        "noise .005": lambda p: noisy(p, 0.005, rng),
        "noise .01": lambda p: noisy(p, 0.01, rng),
        "jpeg 30": lambda p: attacks.jpeg(p, rng, 30),
        "jpeg 10": lambda p: attacks.jpeg(p, rng, 10),
        "jpeg 2000 20:1": jpeg_2000,
        "quarter": quarter,
        "blur 7": lambda p: cv2.GaussianBlur(p, (7, 7), 0),
        "equalised": cv2.equalizeHist,
    }


def evaluate(reader: Reader2, data: dict[str, np.ndarray], device: str) -> str:
    """Return, by attack, mean agreement and the share of pictures above 0.6."""
    words = torch.from_numpy(data["words"].astype(np.float32))
    told = []
    with torch.no_grad():
        for name, attack in suite(np.random.default_rng(0)).items():
            pictures = np.stack([seen(attack(p)) for p in data["pictures"]])
            soft = torch.cat([
                reader(torch.from_numpy(some[:, None]).to(device)).float().cpu()
                for some in np.array_split(pictures, 8)
            ])  # fmt: skip
            agreement = loss_of(soft, words)[1].numpy()
            told.append(f"{name} {agreement.mean():.3f}/{(agreement > 0.6).mean():.2f}")
    return "  ".join(told)


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    torch.manual_seed(RECIPE["seed"])
    rng = np.random.default_rng(RECIPE["seed"])
    data, test = np.load(args.marked), dict(np.load(args.test))
    pictures, words = data["pictures"], torch.from_numpy(data["words"].astype(np.float32))
    words = words.to(args.device)
    steps = args.steps or RECIPE["steps"]
    patterns = torch.from_numpy(np.load(args.patterns).reshape(words.shape[1], -1))
    make = lambda: Reader2(patterns, RECIPE["width"], RECIPE["hidden"])  # noqa: E731
    reader = make().to(args.device, memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(reader.parameters(), RECIPE["rate"])
    averaged = {k: v.clone() for k, v in reader.state_dict().items()}
    first = 0
    if args.resume:
        state = torch.load(args.out, weights_only=False)
        reader.load_state_dict(state["latest"])
        averaged = {k: v.to(args.device) for k, v in state["reader"].items()}
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
        rng = np.random.default_rng(RECIPE["seed"] + first)
    # Goes on where it was, or with another number of steps falls faster or slower from there.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, RECIPE["rate"], total_steps=steps, pct_start=0.1, last_epoch=first - 1
    )
    started, running = time.time(), np.zeros(3)
    for step in range(first, steps):
        chosen = rng.choice(len(pictures), RECIPE["batch"], replace=False)
        hit = np.stack([seen(attacks.draw_weak(pictures[i], rng)) for i in chosen])
        x = torch.from_numpy(hit[:, None]).to(args.device, memory_format=torch.channels_last)
        with torch.autocast(args.device, torch.bfloat16):
            whitened = reader.normalised(x)
        soft = whitened.float() @ reader.patterns.t() / reader.patterns.norm(dim=1)
        loss, agreement = loss_of(soft, words[chosen])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        keep = min(RECIPE["average"], (step + 1) / (step + 10))
        with torch.no_grad():
            for name, value in reader.state_dict().items():
                averaged[name].lerp_(value, 1 - keep)
        read = (agreement > 0.6).float().mean().item()
        running = 0.99 * running + 0.01 * np.array([loss.item(), agreement.mean().item(), read])
        if (step + 1) % SAVED_EVERY == 0 or step + 1 == steps:
            figures = running / (1 - 0.99 ** (step + 1 - first))
            pace = (time.time() - started) / (step + 1 - first)
            print(f"{step + 1} loss {figures[0]:.4f} agreement {figures[1]:.4f} "
                  f"above 0.6 {figures[2]:.3f}, {pace:.2f} s a step", flush=True)  # fmt: skip
            cpu = lambda tensors: {k: v.cpu() for k, v in tensors.items()}  # noqa: E731
            torch.save(
                {"reader": cpu(averaged), "latest": cpu(reader.state_dict()),
                 "optimiser": optimiser.state_dict(), "step": step + 1, "recipe": {**RECIPE, "steps": steps}}, args.out,
            )  # fmt: skip
        if (step + 1) % TESTED_EVERY == 0:
            looked = make().to(args.device)
            looked.load_state_dict(averaged)
            print(f"== {step + 1} {evaluate(looked, test, args.device)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--marked", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True, help="marked frames never trained on")
    parser.add_argument("--patterns", type=Path, required=True, help="patterns.npy of the model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--resume", action="store_true")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
