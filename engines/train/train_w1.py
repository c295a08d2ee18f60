"""Train W1: carrier patterns, decoder D1 and encoder E1 together, against an adversary.

    python pack.py --data DATA --out pack.npz                                     # once
    python train_w1.py recipes/w1_cpu.toml --pack pack.npz --start .. --out run   # two hours
    python train_w1.py recipes/w1_gpu.toml --pack pack.npz --start .. --out run --device cuda
    python export_w1.py run/best.pt --out ..                                      # for the node

`--start` is a folder with card.toml (the networks the node has), or a checkpoint: of this script,
or start.pt, which has trained convolutions and leaves the patterns to noise. `--resume` goes on
exactly where ``run/last.pt`` stopped, with the same recipe. `--stop` ends early, as if interrupted
there.

    frame ──E1──▶ marked ──attack──▶ D1 ──▶ soft bits      wrong bits, unlikeness, discriminator

Each step: draw frames; mark them with random words at a PSNR that falls over the first part of
the run; attack them, what is read worst of late the most often, harder as the run goes on; read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import recipe as recipes
import torch
import torch.nn.functional as F
from discriminator import Discriminator, told_apart
from frames import read_pack
from marking_w1 import mark, networks_of, similarity
from pictures import pictures
from running import Average, Run, fit, one_cycle, ramp, set_rates
from shipped import start_from
from torch import Tensor
from validation import validate


def losses(soft: Tensor, bits: Tensor, settings: recipes.Loss) -> tuple[Tensor, Tensor]:
    """Return the loss of each picture ``(batch,)``, and its agreement (cosine with its word).

    Bits that are wrong or hardly right, and pictures that agree less than reading them takes.
    """
    right = soft * bits
    agreement = right.mean(1) / (right.pow(2).mean(1) + 1e-6).sqrt()
    unread = F.softplus(10 * (settings.enough - agreement))
    return F.softplus(-right).mean(1) + settings.unread * unread, agreement


def optimisers(decoder, encoder, adversary, rates: recipes.Rates, adversary_rate: float):
    """Return Adam for the mark (patterns; networks) and for the discriminator."""
    layers = [p for n, p in decoder.named_parameters() if n != "patterns"]
    layers += list(encoder.parameters())
    of_mark = torch.optim.Adam([
        {"params": [decoder.patterns], "lr": 0.0, "top": rates.patterns},
        {"params": layers, "lr": 0.0, "top": rates.network},
    ])  # fmt: skip
    of_adversary = torch.optim.Adam(adversary.parameters(), adversary_rate, betas=(0.5, 0.99))
    return of_mark, of_adversary


def train(recipe: recipes.W1, args: argparse.Namespace) -> None:
    cv2.setNumThreads(1)
    run = Run(args.out, recipe.run.seed, args.device)
    steps, device = recipe.run.steps, run.device
    pack = read_pack(args.pack)
    source = pictures(args.attacks or recipe.run.attacks, pack, run, recipe.attacks)
    sampler = source.sampler
    decoder, encoder = networks_of(recipe.model, device)
    adversary = Discriminator(recipe.adversary.features)
    adversary = adversary.to(device, memory_format=torch.channels_last)
    if args.start:
        start = start_from(args.start)
        fit(decoder, start["decoder"]), fit(encoder, start["encoder"])
    of_mark, of_adversary = optimisers(
        decoder, encoder, adversary, recipe.rates, recipe.adversary.adversary_rate
    )
    whole = torch.nn.ModuleDict({"decoder": decoder, "encoder": encoder})
    average = Average(whole, recipe.run.average)
    mean_decoder, mean_encoder = networks_of(recipe.model, device)
    averaged = torch.nn.ModuleDict({"decoder": mean_decoder, "encoder": mean_encoder})
    best = float("-inf")
    if args.resume:  # last: making networks draws random numbers
        state = run.resume()
        for part, name in ((whole, "latest"), (adversary, "adversary"), (of_mark, "of_mark"),
                           (of_adversary, "of_adversary"), (average, "average"),
                           (sampler, "sampler")):  # fmt: skip
            part.load_state_dict(state[name])
        best = state["best"]
    half = recipe.run.precision == "bfloat16"

    def save(name: str, step: int) -> None:
        averaged.load_state_dict(average.weights)
        run.save(name, step, decoder=mean_decoder, encoder=mean_encoder, latest=whole,
                 adversary=adversary, of_mark=of_mark, of_adversary=of_adversary,
                 average=average, sampler=sampler, best=best,
                 recipe=recipes.table(recipe))  # fmt: skip

    def look(step: int) -> None:
        nonlocal best
        averaged.load_state_dict(average.weights)
        figures = validate(mean_encoder, mean_decoder, pack.val, recipe.validation)
        run.log(step, validated=True, **figures)
        if figures["score"] > best:
            best = figures["score"]
            save("best.pt", step)

    if not args.resume:
        look(0)
    trained = [p for group in of_mark.param_groups for p in group["params"]]
    figures = torch.zeros(4, device=device)  # added up on the device between reports
    for step in range(run.first, min(steps, args.stop or steps)):
        set_rates(of_mark, one_cycle(step, steps, recipe.rates.warm_up))
        psnr_db = ramp(step, steps, recipe.strength.psnr_ramp, recipe.strength.psnr_db)
        worst = ramp(step, steps, recipe.attacks.severity_ramp, recipe.attacks.severity)
        x = source.batch(recipe.run.batch)  # (batch, 1, 256, 256)
        drawn = torch.rand(
            len(x), 1 + recipe.model.code_bits, generator=run.generator, device=device
        )
        bits = torch.where(drawn[:, 1:] < 0.5, -1.0, 1.0)  # (batch, K)
        low, high = recipe.strength.spread_db
        wanted = psnr_db + low + (high - low) * drawn[:, 0]
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            patterns = decoder.carrier_patterns()  # (K, n * n)
            norms = patterns.norm(dim=1)
            cut = run.rng.random() < recipe.run.cut
            marked = mark(
                encoder, x, bits, wanted, patterns, norms, recipe.strength.local_rms, cut=cut
            )
            with torch.autocast(device.type, enabled=False):
                hit, families = source.attacked(marked, worst)  # (batch, 1, n, n)
            each, agreement = losses(decoder(hit, patterns, norms), bits, recipe.loss)
            unlike = 1 - similarity(marked, x).mean()
            loss = each.mean() + recipe.loss.ssim * unlike
            shows = torch.zeros((), device=device)
            if recipe.adversary.weight and step >= recipe.adversary.starts * steps:
                adversary.requires_grad_(True)
                of_adversary.zero_grad(set_to_none=True)
                shows = told_apart(adversary, x, marked.detach())
                shows.backward()
                of_adversary.step()
                adversary.requires_grad_(False)
                loss = loss - recipe.adversary.weight * adversary(marked).mean()
        of_mark.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        of_mark.step()
        average.follow(whole, step)
        sampler.told(families, each)
        figures += torch.stack([each.mean().detach(), agreement.mean().detach(), unlike.detach(),
                                shows.detach()])  # fmt: skip
        done = step + 1
        if done % recipe.attacks.refresh_every == 0:
            sampler.refresh()
        if done % recipe.run.report_every == 0:
            means = (figures / recipe.run.report_every).tolist()
            figures.zero_()
            run.log(done, loss=means[0], agreement=means[1], ssim=1 - means[2], adversary=means[3],
                    psnr_db=psnr_db, severity=worst, seconds_a_step=run.pace(done))  # fmt: skip
        if done % recipe.run.validate_every == 0 or done == steps:
            look(done)
            run.log(done, drawn=sampler.table())
        if done % recipe.run.save_every == 0 or done in (steps, args.stop):
            save("last.pt", done)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="folder with card.toml, or a checkpoint")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda: everything on the GPU")
    parser.add_argument("--attacks", choices=["opencv", "torch"], help="instead of the recipe's")
    parser.add_argument("--stop", type=int, help="end after this step of the recipe's")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    recipe = recipes.read(args.recipe, recipes.W1)
    if args.resume:
        recipes.same(recipe, args.out / "last.pt")
    train(recipe, args)


if __name__ == "__main__":
    main()
