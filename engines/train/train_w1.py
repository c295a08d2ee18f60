"""Train W1: carrier patterns, decoder D1 and encoder E1 together.

    python pack.py --data DATA --out pack.npz                # once
    python train_w1.py --pack pack.npz --start start.pt --out run    # 30 minutes on one core
    python export_w1.py run/last.pt --out ..                 # what the node reads

`run/last.pt` is written every 250 steps with everything needed to go on (`--resume`), and
holds the recipe it was made with.
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
from networks import GRID, Decoder, Encoder, N, residual

RECIPE = {
    "code_bits": 160,
    "batch": 12,
    "steps": 2800,  # of the learning-rate schedule
    "stop": 1750,  # the checkpoint that is shipped: later ones trade SSIM for strength
    # From a step on: least and most PSNR at n x n (enlarging to the frame adds 3 dB), weight of
    # 1 - SSIM, most rms where the frame carries. Changed by hand while looking: see LOG.md.
    "phases": (
        (0, 38.0, 44.0, 4.0, 0.015),
        (750, 38.0, 44.0, 8.0, 0.015),
        (1000, 36.0, 41.5, 8.0, 0.02),
        (1500, 36.0, 41.5, 3.0, 0.02),
    ),
    "ramp": 0.3,  # share of the steps over which the budget falls from least to most PSNR
    "patterns_lr": 1e-2,
    "network_lr": 2e-3,
    "seed": 1,
}


def phase(step: int) -> tuple[float, float, float, float]:
    """Return least and most PSNR, SSIM weight and local rms in force at a step."""
    return [row[1:] for row in RECIPE["phases"] if row[0] <= step][-1]


def augment(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return another plausible 256 x 256 frame: a zoomed part, turned, in another window."""
    side = int(256 * rng.uniform(0.6, 1.0)) if rng.random() < 0.6 else 256
    top, left = rng.integers(0, 257 - side, 2)
    out = frame[top : top + side, left : left + side]
    out = cv2.resize(out, (256, 256), interpolation=cv2.INTER_LINEAR) if side != 256 else out
    out = np.rot90(out, rng.integers(4))
    if rng.random() < 0.5:
        out = out[:, ::-1]
    y = out.astype(np.float32)
    if rng.random() < 0.4:  # window: CT and MR are shown in many
        low, high = rng.uniform(-20, 60), rng.uniform(170, 290)
        y = (y - low) * (255 / (high - low))
    if rng.random() < 0.3:  # finer grain than an 8-bit, resampled picture still has
        y = y + rng.uniform(0.5, 4) * rng.standard_normal(y.shape).astype(np.float32)
    return np.clip(y, 0, 255).astype(np.float32) / 255


def to_n(x: torch.Tensor) -> torch.Tensor:
    """Resample display frames to ``n x n`` by area, as the node does."""
    return F.adaptive_avg_pool2d(x, (N, N))


def seen(picture: np.ndarray) -> np.ndarray:
    """Return an 8-bit picture of any size as D1 sees it, ``(n, n)``, 0..255."""
    return cv2.resize(picture.astype(np.float32), (N, N), interpolation=cv2.INTER_AREA)


def attacked(marked: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Attack the 8-bit pictures of `marked`; gradients pass straight through, at ``n x n``."""
    pictures = (marked.detach().clamp(0, 1) * 255).round().to(torch.uint8).numpy()[:, 0]
    hit = [attacks.draw(p, rng) for p in pictures]
    small = [seen(p) for p in hit]
    y = torch.from_numpy(np.stack(small)[:, None] / 255.0).float()
    through = to_n(marked)
    return through + (y - through).detach()


def similarity(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the mean SSIM (8 x 8 uniform window) of display frames."""
    pool = lambda t: F.avg_pool2d(t, 8, 2)  # noqa: E731
    ma, mb = pool(a), pool(b)
    va, vb, cov = pool(a * a) - ma * ma, pool(b * b) - mb * mb, pool(a * b) - ma * mb
    c1, c2 = 1e-4, 9e-4
    return (((2 * ma * mb + c1) * (2 * cov + c2)) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean()


def budget(psnr_db: torch.Tensor, grid: torch.Tensor, local: float) -> torch.Tensor:
    """Return the residual's rms for a PSNR, less where little of the frame can hold it."""
    share = (grid > 0).float().mean((1, 2, 3)).clamp_min(1 / GRID**2)
    whole = 10 ** (-psnr_db / 20)
    return torch.minimum(whole, local * share.sqrt())[:, None]


def mark(encoder, x, bits, psnr_db, patterns, norms, local, *, cut=False):
    small = to_n(x)
    with torch.no_grad():
        rms = budget(psnr_db, encoder.strength(small), local)
    amplitude, grid = encoder(small, bits, rms, patterns, norms, cut=cut)
    delta = residual(amplitude, grid, rms, patterns, small)
    up = F.interpolate(delta, x.shape[-2:], mode="bilinear", align_corners=False)
    up = up * ((x > 0.035) & (x < 0.965))  # the node leaves the ends of the range alone
    marked = (x + up).clamp(0, 1)
    return marked, grid


def evaluate(encoder, decoder, frames, code_bits, psnr_db, local) -> dict[str, tuple[float, float]]:
    """Return, per attack, mean bit accuracy and the share of frames with at most 8 % wrong bits."""
    rng = np.random.default_rng(0)
    suite = {
        "plain": lambda p: p,
        "jpeg70": lambda p: attacks.jpeg(p, rng, 70),
        "jpeg30": lambda p: attacks.jpeg(p, rng, 30),
        "blur7": lambda p: cv2.GaussianBlur(p, (7, 7), 0),
        "median3": lambda p: cv2.medianBlur(p, 3),
        "half": lambda p: cv2.resize(p, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
        "gamma.5": lambda p: np.rint(255 * (p / 255.0) ** 0.5).astype(np.uint8),
        "histeq": cv2.equalizeHist,
        "noise.001": lambda p: attacks._float(p, p + 8.06 * rng.standard_normal(p.shape)),
    }
    out: dict[str, tuple[float, float]] = {}
    psnr, ssim, right = [], [], {k: [] for k in suite}
    with torch.no_grad():
        patterns = decoder.carrier_patterns()
        norms = patterns.norm(dim=1)
        for start in range(0, len(frames), 16):
            x = torch.from_numpy(frames[start : start + 16, None].astype(np.float32) / 255)
            bits = torch.from_numpy(rng.choice([-1.0, 1.0], (len(x), code_bits))).float()
            wanted = torch.full((len(x),), psnr_db)
            marked, _ = mark(encoder, x, bits, wanted, patterns, norms, local)
            shown = (marked * 255).round() / 255
            psnr += (-10 * torch.log10(((shown - x) ** 2).mean((1, 2, 3)).clamp_min(1e-9))).tolist()
            ssim += [similarity(shown[i : i + 1], x[i : i + 1]).item() for i in range(len(x))]
            for name, attack in suite.items():
                pictures = [attack(p) for p in (shown[:, 0] * 255).round().to(torch.uint8).numpy()]
                small = np.stack([seen(p) for p in pictures])
                soft = decoder(torch.from_numpy(small[:, None] / 255).float(), patterns, norms)
                right[name] += ((soft * bits) > 0).float().mean(1).tolist()
    for name, values in right.items():
        v = np.array(values)
        out[name] = (float(v.mean()), float((v >= 0.92).mean()))
    out["psnr/ssim"] = (float(np.mean(psnr)), float(np.mean(ssim)))
    return out


def fitting(path: Path, name: str, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of a checkpoint that fit `module` (another n has other patterns)."""
    own = module.state_dict()
    saved = torch.load(path, weights_only=False)[name]
    return {k: v for k, v in saved.items() if k in own and own[k].shape == v.shape}


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(RECIPE["seed"])
    rng = np.random.default_rng(RECIPE["seed"])
    data = np.load(args.pack)
    frames, held_out, test_every = data["train"], data["test"], 500
    sampler = data["weight"] / data["weight"].sum()
    code_bits = args.code_bits or RECIPE["code_bits"]
    steps = args.steps or RECIPE["steps"]
    decoder = Decoder(code_bits).to(memory_format=torch.channels_last)
    encoder = Encoder(decoder).to(memory_format=torch.channels_last)
    groups = [
        {"params": [decoder.patterns], "lr": RECIPE["patterns_lr"]},
        {
            "params": [p for n, p in decoder.named_parameters() if n != "patterns"],
            "lr": RECIPE["network_lr"],
        },
        {"params": encoder.parameters(), "lr": RECIPE["network_lr"]},
    ]
    optimiser = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [g["lr"] for g in groups], total_steps=steps, pct_start=0.1
    )
    args.out.mkdir(parents=True, exist_ok=True)
    first = 0
    if args.start:
        decoder.load_state_dict(fitting(args.start, "decoder", decoder), strict=False)
        encoder.load_state_dict(fitting(args.start, "encoder", encoder), strict=False)
    if args.resume:
        state = torch.load(args.out / "last.pt", weights_only=False)
        decoder.load_state_dict(state["decoder"]), encoder.load_state_dict(state["encoder"])
        optimiser.load_state_dict(state["optimiser"]), schedule.load_state_dict(state["schedule"])
        first = state["step"]
    started, running = time.time(), 0.0
    for step in range(first, min(steps, RECIPE["stop"])):
        low, high, ssim_weight, local = phase(step)
        ramp = min(1.0, step / (RECIPE["ramp"] * steps))
        chosen = rng.choice(len(frames), RECIPE["batch"], p=sampler)
        x = torch.from_numpy(np.stack([augment(frames[i], rng) for i in chosen])[:, None])
        x = (x * 255).round() / 255
        bits = torch.from_numpy(rng.choice([-1.0, 1.0], (len(x), code_bits))).float()
        psnr_db = torch.from_numpy(
            low + ramp * (high - low) + rng.uniform(-1.5, 1.0, len(x))
        ).float()
        patterns = decoder.carrier_patterns()
        norms = patterns.norm(dim=1)
        marked, _ = mark(encoder, x, bits, psnr_db, patterns, norms, local, cut=rng.random() < 0.8)
        soft = decoder(attacked(marked, rng), patterns, norms)
        wrong = F.softplus(-soft * bits).mean()
        unlike = 1 - similarity(marked, x)
        loss = wrong + ssim_weight * ramp * unlike
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], 1.0)
        optimiser.step()
        schedule.step()
        running = 0.98 * running + 0.02 * ((soft * bits) > 0).float().mean().item()
        if step % 25 == 0:
            done = step - first + 1
            print(
                f"{step} loss {loss.item():.4f} bits {running / (1 - 0.98**done):.4f} "
                f"ssim {1 - unlike.item():.4f} {(time.time() - started) / done:.2f} s/step",
                flush=True,
            )
        if (step + 1) % 250 == 0 or step + 1 == RECIPE["stop"]:
            state = {
                "decoder": decoder.state_dict(),
                "encoder": encoder.state_dict(),
                "optimiser": optimiser.state_dict(),
                "schedule": schedule.state_dict(),
                "step": step + 1,
                "recipe": {**RECIPE, "code_bits": code_bits, "steps": steps},
            }
            torch.save(state, args.out / "last.pt")
        if (step + 1) % test_every == 0:
            target = low + ramp * (high - low)
            figures = evaluate(encoder, decoder, held_out, code_bits, target, local)
            print(f"== {step + 1} at {target:.1f} dB " + "  ".join(
                f"{k} {a:.3f}/{b:.3f}" for k, (a, b) in figures.items()), flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--code-bits", type=int)
    parser.add_argument("--start", type=Path, help="checkpoint to take fitting weights from")
    parser.add_argument("--resume", action="store_true")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
