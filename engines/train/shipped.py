"""The networks of the node as torch modules: where training goes on without a checkpoint.

    python shipped.py .. --out start.pt    # a checkpoint; `--start ..` does the same on the fly

D1's convolutions are folded in d1.onnx (export_w1.py); each fold repeats the same taps, so taking
one copy undoes it exactly. Softness of E1's loop comes from card.toml. Refuses files that do not
match the card.
"""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from former import digest
from networks import N
from onnx import numpy_helper
from readers import Reader
from recipe import flat
from torch import Tensor

STANDARD_DEVIATION = 1.0  # of a pattern as a parameter: its scale is free, its rate is not


def initialisers(path: Path) -> dict[str, Tensor]:
    return {
        each.name: torch.from_numpy(numpy_helper.to_array(each).copy())
        for each in onnx.load(str(path)).graph.initializer
    }


def _card(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "card.toml").read_text("utf-8"))


def unfolded(d1: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return D1's three convolutions from the folded ones of `export_w1.Whitener`."""
    width = len(d1["decoder.first.bias"])
    first = d1["first"].view(2, width, 2, 5, 6)[0, ..., :5]
    folded = d1["second"].view(2, width, 2, width, 3, 3)[0]
    taps = []
    for tap in range(3):
        column, phase = divmod(tap - 1, 2)
        taps.append(folded[:, phase, :, :, column + 1])
    second = torch.stack(taps, -1)
    folded = d1["last"].view(4, 4, 2, width, 8, 4)[0, 0]
    taps = []
    for tap in range(5):
        column, phase = divmod(tap - 2, 2)
        taps.append(folded[phase, :, :5, column + 1])
    last = torch.stack(taps, -1)[None]
    return {"first.weight": first, "second.weight": second, "last.weight": last}


def checkpoint(folder: Path) -> dict[str, Any]:
    """Return the model of a folder with card.toml as a checkpoint of train_w1.py would hold it."""
    card = _card(folder)
    for name in ("patterns.npy", "d1.onnx", "strength.onnx"):
        if digest(folder / name) != card["files"][name]:
            raise SystemExit(f"{folder / name}: not what the card says")
    d1 = initialisers(folder / "d1.onnx")
    patterns = torch.from_numpy(np.load(folder / "patterns.npy").astype(np.float32))
    patterns = patterns.view(-1, N, N)
    own = {k.removeprefix("decoder."): v for k, v in d1.items() if k.startswith("decoder.")}
    decoder = {"patterns": patterns * (STANDARD_DEVIATION / patterns.std()), **own, **unfolded(d1)}
    encoder = initialisers(folder / "strength.onnx")
    loop = {name: torch.tensor(card["model"][name]) for name in ("step", "softness")}
    return {"decoder": decoder, "encoder": {**encoder, **loop}, "step": 0, "recipe": {}}


def reader(folder: Path) -> Reader:
    """Return R2 of a folder with card.toml; `export_r2.Whitener` folds its last layer."""
    if digest(folder / "r2.onnx") != _card(folder)["files"]["r2.onnx"]:
        raise SystemExit(f"{folder / 'r2.onnx'}: not what the card says")
    own = initialisers(folder / "r2.onnx")
    width, _, taps, _ = own["first.weight"].shape
    patterns = torch.from_numpy(np.load(folder / "patterns.npy")).flatten(1)
    shipped_one = Reader(patterns, width, own["places.look.weight"].shape[0])
    own["last.weight"] = own.pop("folded")[:1, :, :taps, :taps]
    state = shipped_one.state_dict()
    shipped_one.load_state_dict({**state, **{k: v for k, v in own.items() if k in state}})
    return shipped_one


def reader_from(path: Path) -> Reader:
    """Return R2 of a folder with card.toml, or of a checkpoint of train_r2.py."""
    if path.is_dir():
        return reader(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    recipe = flat(state["recipe"])
    trained = Reader(state["reader"]["patterns"], recipe["width"], recipe["hidden"])
    trained.load_state_dict(state["reader"])
    return trained


def start_from(path: Path) -> dict[str, Any]:
    """Return a checkpoint from a file, or from a folder with a card and networks."""
    if path.is_dir():
        return checkpoint(path)
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.save(checkpoint(args.folder), args.out)


if __name__ == "__main__":
    main()
