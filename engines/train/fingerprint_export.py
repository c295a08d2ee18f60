"""Turn a checkpoint of the fingerprint into what the node reads, and set its thresholds.

    python fingerprint_export.py f/last.pt --data DATA --out ..          # of fingerprint.py
    python fingerprint_export.py f_check/last.pt --data DATA --out ..    # of comparator.py

Writes f1.onnx (code of a frame) and f1_check.onnx (what was changed since), of a comparator only
the latter; refuses to if ONNX Runtime computes anything else than torch, or if a comparator was
trained for another f1.onnx; and puts ``[fingerprint]`` at the end of card.toml. The
thresholds are those that processed, unchanged frames of DATA/whole/val keep: the benchmark measures
on other frames, of which only `FALSE_ALARMS` knows anything.
"""

from __future__ import annotations

import argparse
import hashlib
import tomllib
from pathlib import Path

import fingerprint_pairs as pairs
import numpy as np
import onnxruntime as ort
import torch
from comparator import Comparator, shipped_coder
from fingerprint import Fingerprint, mark_fields
from fingerprint_scores import alarm_of, overlap
from pack import read
from recipe import flat
from torch import Tensor, nn

OPSET = 17
MODEL = 1  # the first byte of every fingerprint made with these networks
# Of processed, unchanged frames of whole/val. They are of four modalities in thirteen, and easier
# than others: what one in a hundred of them exceeds, two in a hundred of held-out frames do.
FALSE_ALARMS = 0.003
TIMES = 12  # each frame is processed
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


def judged(coder: nn.Module, check: nn.Module, made: list) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of pairs of one frame ``(pairs, 16, 16)`` and their labels."""
    before = torch.from_numpy(made[0][0])[None, None]
    after = torch.from_numpy(np.stack([each[1] for each in made]))[:, None]
    with torch.no_grad():
        bits = (coder(before) > 0).float() * 2 - 1
        scores = check(after, bits.expand(len(after), -1, -1, -1)).numpy()
    return scores, np.stack([each[2] for each in made])


def thresholds(coder: nn.Module, check: nn.Module, data: Path) -> dict[str, float]:
    """Return what of their scores processed, unchanged frames exceed that rarely.

    ``alarm`` is that; ``near`` is where cells beside those overlap best with what was changed in
    tampered frames.
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
    alarm = alarm_of(calm, FALSE_ALARMS)
    shows = (marked == 1).any((1, 2))
    tense, marked = tense[shows], marked[shows]
    tried = np.arange(0.0, alarm, 0.1)
    near = max(tried, key=lambda value: overlap(tense, marked, alarm, value))
    return {"alarm": alarm, "near": float(near)}


def write_card(out: Path, state: dict, bits: int, limits: dict[str, float]) -> None:
    """Put ``[fingerprint]`` at the end of ``card.toml``, in place of one that is there."""
    card = out / "card.toml"
    above, _, below = card.read_text("utf-8").partition("\n[fingerprint]")
    recipe = flat(state["recipe"])
    trained = [f"{name} = {value}" for name, value in
               (("steps", state["step"]), ("batch", recipe["batch"]), ("seed", recipe["seed"]))]
    if _compares(state):  # the coder keeps what the card says of it
        former = tomllib.loads("[fingerprint]" + below)["fingerprint"]
        coder = [f"{name} = {former[name]}" for name in ("steps", "batch", "seed")]
        trained = [*coder, *(f"comparator_{line}" for line in trained)]
    files = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in FILES}
    lines = [
        "", "", "[fingerprint]", "# written by train/fingerprint_export.py", f"model = {MODEL}",
        f"side = {pairs.SEEN}", f"cells = {pairs.CELLS}", f"bits = {bits}",
        *(f"{name} = {value:.4f}" for name, value in limits.items()), *trained, "",
        "[fingerprint.files]", *(f'"{name}" = "{digest}"' for name, digest in files.items()),
    ]  # fmt: skip
    card.write_text(above.rstrip() + "\n".join(lines) + "\n", "utf-8")


def _compares(state: dict) -> bool:
    """Return whether a checkpoint is of comparator.py."""
    return "rounds" in flat(state["recipe"])


def networks(state: dict, kept: int, out: Path) -> tuple[nn.Module, nn.Module, int]:
    """Return coder, comparator, and the bits of a cell."""
    recipe = flat(state["recipe"])
    if _compares(state):
        shipped = shipped_coder(out / FILES[0])
        check = Comparator(shipped, recipe["width"], recipe["rounds"])
        trained_for = {k: v for k, v in state["average"].items() if k.startswith("coder.")}
        own = check.state_dict()
        if any(not torch.equal(own[k], v) for k, v in trained_for.items()):
            raise SystemExit(f"{out / FILES[0]}: the comparator was trained for another coder")
        check.load_state_dict(state["average"])
        bits = shipped.code.out_channels
        return Coder(shipped, bits).eval(), check.eval(), bits
    model = Fingerprint(recipe["bits"], recipe["width"])
    model.load_state_dict(state["model"])
    return Coder(model, kept).eval(), Check(model, kept).eval(), kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bits", type=int, default=8, help="of a cell, that are kept")
    args = parser.parse_args()
    torch.set_num_threads(1)
    state = torch.load(args.checkpoint, weights_only=True)
    coder, check, bits = networks(state, args.bits, args.out)
    frame = nn.functional.avg_pool2d(torch.rand(2, 1, pairs.SEEN, pairs.SEEN), 5, 1, 2)
    code = torch.sign(torch.randn(2, bits, pairs.CELLS, pairs.CELLS))
    if not _compares(state):
        export(coder, {"frame": frame}, "code", args.out / FILES[0])
    export(check, {"frame": frame, "code": code}, "changed", args.out / FILES[1])
    limits = thresholds(coder, check, args.data)
    write_card(args.out, state, bits, limits)
    print(limits)


if __name__ == "__main__":
    main()
