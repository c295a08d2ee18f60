"""Turn a checkpoint into what the node reads: patterns.npy, e1.onnx, d1.onnx, card.toml.

    python export_w1.py run/last.pt --out ..

Refuses to write networks whose ONNX Runtime outputs differ from torch's.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from networks import AMPLITUDE, GRID, LEVELS, STEPS, Decoder, Encoder, N
from torch import Tensor, nn

OPSET = 17


class Whitener(nn.Module):
    """D1 up to the correlators, normalised; correlating is one matrix product in the node."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, frame: Tensor) -> Tensor:
        return self.decoder.normalised(frame)


class Chooser(nn.Module):
    """E1 with the patterns as an input, so that they are stored once."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = encoder.decoder

    def forward(
        self, frame: Tensor, bits: Tensor, rms: Tensor, patterns: Tensor, norms: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.encoder(frame, bits, rms, patterns, norms)


def export(
    module: nn.Module, inputs: tuple[Tensor, ...], names: list[str], outputs: list[str], path: Path
) -> None:
    batched = {name: {0: "batch"} for name in names if name not in ("patterns", "norms")}
    batched |= {name: {0: "batch"} for name in outputs}
    module.eval()
    torch.onnx.export(module, inputs, str(path), input_names=names, output_names=outputs,
                      dynamic_axes=batched, opset_version=OPSET, dynamo=False)  # fmt: skip
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    got = session.run(None, {n: t.numpy() for n, t in zip(names, inputs, strict=True)})
    with torch.no_grad():
        want = module(*inputs)
    for g, w in zip(got, want if isinstance(want, tuple) else (want,), strict=True):
        worst = float(np.abs(g - w.numpy()).max() / (np.abs(w.numpy()).max() + 1e-9))
        # amplitudes are whole numbers: one step of rounding in a few of them is the same choice
        if worst > (1.01 / AMPLITUDE if outputs[0] == "amplitudes" else 1e-3):
            raise SystemExit(f"{path.name}: ONNX differs from torch by {worst:.2e}: not written")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    state = torch.load(args.checkpoint, weights_only=False)
    recipe = state["recipe"]
    decoder = Decoder(recipe["code_bits"])
    decoder.load_state_dict(state["decoder"])
    encoder = Encoder(decoder)
    encoder.load_state_dict(state["encoder"])
    with torch.no_grad():
        patterns = decoder.carrier_patterns()
    args.out.mkdir(parents=True, exist_ok=True)
    np.save(args.out / "patterns.npy", patterns.round().to(torch.int8).numpy())
    frame = torch.rand(2, 1, N, N)
    frame = nn.functional.avg_pool2d(frame, 5, 1, 2)
    bits = torch.randn(2, recipe["code_bits"]).sign()
    rms = torch.full((2, 1), 0.007)
    export(Whitener(decoder), (frame,), ["frame"], ["whitened"], args.out / "d1.onnx")
    export(Chooser(encoder), (frame, bits, rms, patterns.round(), patterns.round().norm(dim=1)),
           ["frame", "bits", "rms", "patterns", "norms"],
           ["amplitudes", "strengths"], args.out / "e1.onnx")  # fmt: skip
    write_card(args.out, recipe, state["step"])


def write_card(out: Path, recipe: dict, step: int) -> None:
    """Write ``card.toml``: shapes, recipe and the SHA-256 of every file."""
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
        f"turns = {STEPS}",
        "",
        "[training]",
        f"steps = {step}",
        f"batch = {recipe['batch']}",
        f"phases = {[list(row) for row in recipe['phases']]}",
        f"seed = {recipe['seed']}",
        "",
        "[files]",
    ]
    for name in ("patterns.npy", "e1.onnx", "d1.onnx"):
        lines.append(f'"{name}" = "{hashlib.sha256((out / name).read_bytes()).hexdigest()}"')
    (out / "card.toml").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
