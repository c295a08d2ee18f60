"""Turn a checkpoint of the fingerprint into what the node reads, and set its thresholds.

    python fingerprint_export.py f/last.pt --data DATA --out ..

Writes f1.onnx (code of a frame) and f1_check.onnx (what was changed since), refuses to if ONNX
Runtime computes anything else than torch, and puts ``[fingerprint]`` at the end of card.toml. The
thresholds are those that processed, unchanged frames of DATA/whole/val keep: no other held-out
frame is looked at, so that the benchmark measures on frames that set nothing.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import cv2
import fingerprint_pairs as pairs
import numpy as np
import onnxruntime as ort
import torch
from fingerprint import Fingerprint, mark_fields
from pack import read
from recipe import flat
from torch import Tensor, nn

OPSET = 17
MODEL = 1  # the first byte of every fingerprint made with these networks
FALSE_ALARMS = 0.01  # of processed, unchanged frames
TIMES = 12  # each frame is processed
MOST, WEIGHT = 0.9, 0.75  # as in dicom_node/watermark/fingerprint.py
FILES = ("f1.onnx", "f1_check.onnx")


class Coder(nn.Module):
    """Frame to the logits of the bits that are kept."""

    def __init__(self, model: Fingerprint, kept: int) -> None:
        super().__init__()
        self.model, self.kept = model, kept

    def forward(self, frame: Tensor) -> Tensor:
        return self.model.code(self.model.trunk(frame))[:, : self.kept]


class Check(nn.Module):
    """Frame and kept bits (-1, +1) to the score of every cell."""

    def __init__(self, model: Fingerprint, kept: int) -> None:
        super().__init__()
        self.model = model
        self.missing = model.code.out_channels - kept

    def forward(self, frame: Tensor, code: Tensor) -> Tensor:
        padded = nn.functional.pad(code, (0, 0, 0, 0, 0, self.missing))
        return self.model.changed(padded, frame)[0]


def export(module: nn.Module, inputs: dict[str, Tensor], output: str, path: Path) -> None:
    """Write `module`; stop if ONNX Runtime computes anything else (1e-4 of the largest value)."""
    batched = {name: {0: "batch"} for name in (*inputs, output)}
    values = tuple(inputs.values())
    torch.onnx.export(module.eval(), values, str(path), input_names=list(inputs),
                      output_names=[output], dynamic_axes=batched, opset_version=OPSET,
                      dynamo=False)  # fmt: skip
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    got = session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]
    with torch.no_grad():
        want = module(*values).numpy()
    worst = float(np.abs(got - want).max() / np.abs(want).max())
    if worst > 1e-4:
        path.unlink()
        raise SystemExit(f"{path.name}: ONNX differs from torch by {worst:.2e}: not written")


def judged(coder: Coder, check: Check, made: list) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of pairs of one frame ``(pairs, 16, 16)`` and their labels."""
    before = torch.from_numpy(made[0][0])[None, None]
    after = torch.from_numpy(np.stack([each[1] for each in made]))[:, None]
    with torch.no_grad():
        bits = (coder(before) > 0).float() * 2 - 1
        scores = check(after, bits.expand(len(after), -1, -1, -1)).numpy()
    return scores, np.stack([each[2] for each in made])


def standing_out(scores: np.ndarray, level: float) -> np.ndarray:
    """Tell scores from each frame's own, as the node does."""
    own = np.quantile(scores.reshape(len(scores), -1), MOST, axis=1)
    return scores - WEIGHT * np.minimum(own, level)[:, None, None]


def overlap(scores: np.ndarray, marked: np.ndarray, alarm: float, near: float) -> float:
    """Return the mean intersection over union of what the node would call changed."""
    ratios = []
    for score, truth in zip(scores, marked, strict=True):
        _, regions = cv2.connectedComponents((score >= near).astype(np.uint8), connectivity=8)
        sure = np.unique(regions[score >= alarm])
        found = np.isin(regions, sure) & (score >= near) & (truth >= 0)
        both = found & (truth == 1)
        ratios.append(both.sum() / max(1, (found | (truth == 1)).sum()))
    return float(np.mean(ratios))


def thresholds(coder: Coder, check: Check, data: Path) -> dict[str, float]:
    """Return what of their scores processed, unchanged frames exceed one time in a hundred.

    ``level`` is what nine tenths of a frame's cells are below; scores are then told from the
    frame's own: ``alarm`` is the highest of a frame. ``near`` is where cells beside those overlap
    best with what was changed in tampered frames.
    """
    rng = np.random.default_rng(20261122)
    fields = mark_fields()
    frames = [read(path) for path in sorted((data / "whole" / "val").glob("*"))]
    kinds = [""] * TIMES + 2 * list(pairs.TAMPERING)
    rows = []
    for frame in frames:
        other = frames[rng.integers(len(frames))]
        made = [pairs.pair(frame, other, fields, rng, kind) for kind in kinds]
        rows.append(judged(coder, check, made))
    calm = np.concatenate([scores[:TIMES] for scores, _ in rows])
    tense = np.concatenate([scores[TIMES:] for scores, _ in rows])
    marked = np.concatenate([labels[TIMES:] for _, labels in rows])
    own = np.quantile(calm.reshape(len(calm), -1), MOST, axis=1)
    level = float(np.quantile(own, 1 - FALSE_ALARMS))
    alarm = float(np.quantile(standing_out(calm, level).max((1, 2)), 1 - FALSE_ALARMS))
    shows = (marked == 1).any((1, 2))
    tense, marked = standing_out(tense[shows], level), marked[shows]
    tried = np.arange(0.0, alarm, 0.1)
    near = max(tried, key=lambda value: overlap(tense, marked, alarm, value))
    return {"level": level, "alarm": alarm, "near": float(near)}


def write_card(out: Path, state: dict, kept: int, limits: dict[str, float]) -> None:
    """Put ``[fingerprint]`` at the end of ``card.toml``, in place of one that is there."""
    card = out / "card.toml"
    above = card.read_text("utf-8").split("\n[fingerprint]")[0].rstrip()
    recipe = flat(state["recipe"])
    files = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in FILES}
    lines = [
        "", "", "[fingerprint]", "# written by train/fingerprint_export.py", f"model = {MODEL}",
        f"side = {pairs.SEEN}", f"cells = {pairs.CELLS}", f"bits = {kept}",
        *(f"{name} = {value:.4f}" for name, value in limits.items()),
        f"steps = {state['step']}",
        f"batch = {recipe['batch']}", f"seed = {recipe['seed']}", "",
        "[fingerprint.files]", *(f'"{name}" = "{digest}"' for name, digest in files.items()),
    ]  # fmt: skip
    card.write_text(above + "\n".join(lines) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bits", type=int, default=8, help="of a cell, that are kept")
    args = parser.parse_args()
    torch.set_num_threads(1)
    state = torch.load(args.checkpoint, weights_only=True)
    recipe = flat(state["recipe"])
    model = Fingerprint(recipe["bits"], recipe["width"])
    model.load_state_dict(state["model"])
    coder, check = Coder(model, args.bits).eval(), Check(model, args.bits).eval()
    frame = nn.functional.avg_pool2d(torch.rand(2, 1, pairs.SEEN, pairs.SEEN), 5, 1, 2)
    code = torch.sign(torch.randn(2, args.bits, pairs.CELLS, pairs.CELLS))
    export(coder, {"frame": frame}, "code", args.out / FILES[0])
    export(check, {"frame": frame, "code": code}, "changed", args.out / FILES[1])
    limits = thresholds(coder, check, args.data)
    write_card(args.out, state, args.bits, limits)
    print(limits)


if __name__ == "__main__":
    main()
