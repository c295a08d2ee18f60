"""Turn a checkpoint into what the node reads: patterns.npy, strength.onnx, d1.onnx, card.toml.

    python export_w1.py run/best.pt --out ..

Refuses to write networks whose ONNX Runtime outputs differ from torch's. R2 reads the patterns it
was trained with, so new ones leave it behind: mark_frames.py, train_r2.py and export_r2.py follow.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from former import keep_former
from networks import AMPLITUDE, GRID, LEVELS, STEPS, Decoder, Encoder, N
from recipe import flat
from torch import Tensor, nn
from torch.nn import functional as F

OPSET = 17
# E1 was once trained with three turns. From a cover seen through a blur one does as well, with its
# own softness (LOG.md); it sets what bits get relative to one another, the node computes how much.
# A checkpoint trained with one turn brings its own.
LOOP = {"step": [2.0], "softness": [3.5]}


class Whitener(nn.Module):
    """D1 up to the correlators, its convolutions folded: the same sums, a third of the time.

    Eight channels at full width leave half of a 512-bit register empty, one channel nearly all of
    it. Here two neighbouring columns share a sample of 16 channels, and the last layer makes a
    block of 4 x 4 samples at once.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        first, second, last = (
            layer.weight.data for layer in (decoder.first, decoder.second, decoder.last)
        )
        width = first.shape[0]
        folded = torch.zeros(2, width, 2, 5, 6)
        for phase in range(2):
            folded[phase, ..., phase : phase + 5] = first
        self.register_buffer("first", folded.reshape(2 * width, 2, 5, 6))
        folded = torch.zeros(2, width, 2, width, 3, 3)
        for out in range(2):
            for tap in range(3):
                column, phase = divmod(out + tap - 1, 2)
                folded[out, :, phase, :, :, column + 1] = second[..., tap]
        self.register_buffer("second", folded.reshape(2 * width, 2 * width, 3, 3))
        folded = torch.zeros(4, 4, 2, width, 8, 4)
        for row in range(4):
            for out in range(4):
                for tap in range(5):
                    column, phase = divmod(out + tap - 2, 2)
                    folded[row, out, phase, :, row : row + 5, column + 1] = last[0, ..., tap]
        self.register_buffer("last", folded.reshape(16, 2 * width, 8, 4))

    def forward(self, frame: Tensor) -> Tensor:
        return self.decoder.normalised(frame, self.refine)

    def refine(self, x: Tensor) -> Tensor:
        own = self.decoder
        y = F.relu(F.conv2d(x, self.first, own.first.bias.repeat(2), stride=(1, 2), padding=2))
        y = F.relu(F.conv2d(y, self.second, own.second.bias.repeat(2), padding=1))
        y = F.conv2d(y, self.last, own.last.bias.repeat(16), stride=(4, 2), padding=(2, 1))
        return F.pixel_shuffle(y, 4)


class Grid(nn.Module):
    """E1's strength network; the loop around it is the node's."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.strength = encoder.strength

    def forward(self, frame: Tensor) -> Tensor:
        return self.strength(frame)[:, 0]


def export(
    module: nn.Module, reference: Callable[..., Tensor], inputs: tuple[Tensor, ...],
    names: list[str], outputs: list[str], path: Path,
) -> None:  # fmt: skip
    """Write `module`; refuse to if what was written differs from `reference`, the network trained.
    """
    batched = {name: {0: "batch"} for name in (*names, *outputs)}
    module.eval()
    torch.onnx.export(module, inputs, str(path), input_names=names, output_names=outputs,
                      dynamic_axes=batched, opset_version=OPSET, dynamo=False)  # fmt: skip
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    got = session.run(None, {n: t.numpy() for n, t in zip(names, inputs, strict=True)})
    with torch.no_grad():
        want = reference(*inputs)
    worst = float(np.abs(got[0] - want.numpy()).max() / (np.abs(want.numpy()).max() + 1e-9))
    if worst > 1e-3:
        raise SystemExit(f"{path.name}: ONNX differs from torch by {worst:.2e}: not written")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    state = torch.load(args.checkpoint, weights_only=True)
    recipe = flat(state["recipe"])
    decoder = Decoder(recipe["code_bits"], recipe.get("width", 8))
    decoder.load_state_dict(state["decoder"])
    turns = recipe.get("turns", STEPS)
    encoder = Encoder(decoder, turns)
    encoder.load_state_dict(state["encoder"])
    loop = LOOP
    if turns == 1:
        step, softness = (getattr(encoder, name).tolist() for name in ("step", "softness"))
        loop = {"step": [round(v, 4) for v in step], "softness": [round(v, 4) for v in softness]}
    with torch.no_grad():
        patterns = decoder.carrier_patterns()
    args.out.mkdir(parents=True, exist_ok=True)
    whole = patterns.round().to(torch.int8).numpy()
    former = keep_former(args.out, whole)
    np.save(args.out / "patterns.npy", whole)
    frame = torch.rand(2, 1, N, N)
    frame = nn.functional.avg_pool2d(frame, 5, 1, 2)
    export(Whitener(decoder), decoder.normalised, (frame,), ["frame"], ["whitened"],
           args.out / "d1.onnx")  # fmt: skip
    grid = Grid(encoder)
    export(grid, grid, (frame,), ["frame"], ["strengths"], args.out / "strength.onnx")
    write_card(args.out, state["recipe"], loop, state["step"], former)


def section_lines(name: str, section: dict) -> list[str]:
    """Return a section of a recipe as lines of TOML."""
    value = lambda v: json.dumps(list(v) if isinstance(v, tuple) else v)  # noqa: E731
    return [f"[training.{name}]", *(f"{k} = {value(v)}" for k, v in section.items()), ""]


def write_card(out: Path, stored: dict, loop: dict, step: int, former: list[str]) -> None:
    """Write ``card.toml``: shapes, recipe and the SHA-256 of every file."""
    recipe = flat(stored)
    kept = {"steps": step, "batch": recipe["batch"], "seed": recipe["seed"]}
    if "phases" in recipe:  # checkpoints from before there were recipe files
        kept["phases"] = [list(row) for row in recipe["phases"]]
    sections = {k: v for k, v in stored.items() if isinstance(v, dict)}
    lines = [
        "# Machine-read model card; MODEL_CARD.md is the one for people. Written by export_w1.py.",
        "[model]",
        'name = "w1"',
        'version = "1"',
        f"side = {N}",
        f"code_bits = {recipe['code_bits']}",
        f"grid = {GRID}",
        f"levels = {LEVELS}",
        f"amplitude = {AMPLITUDE}",
        f"step = {loop['step']}",
        f"softness = {loop['softness']}",
        "",
        "[training]",
        *(f"{k} = {v}" for k, v in kept.items()),
        "",
        *(line for name, section in sections.items() for line in section_lines(name, section)),
        "[files]",
    ]
    for name in ("patterns.npy", "strength.onnx", "d1.onnx"):
        lines.append(f'"{name}" = "{hashlib.sha256((out / name).read_bytes()).hexdigest()}"')
    card = out / "card.toml"
    told = card.read_text("utf-8") if card.is_file() else ""
    others = "".join(told.partition("\n[fingerprint]")[1:])  # another model's, not touched here
    card.write_text("\n".join([*lines, *former]) + "\n" + others, "utf-8")


if __name__ == "__main__":
    main()
