"""Turn a checkpoint of train_r1.py into r1.onnx, and name it on card.toml.

    python export_r1.py r1/last.pt --out ..

Refuses a network that was trained with other patterns than the card's, and one whose ONNX Runtime
outputs differ from torch's.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
import torch
from export_w1 import Whitener, export
from former import digest
from networks import N, Reader
from recipe import flat
from torch import nn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    state = torch.load(args.checkpoint, weights_only=True)
    reader = Reader(flat(state["recipe"])["code_bits"])
    reader.load_state_dict(state["reader"])
    with torch.no_grad():
        own = reader.carrier_patterns().round().to(torch.int8).numpy()
    if not np.array_equal(own, np.load(args.out / "patterns.npy")):
        raise SystemExit("the reader was trained with other patterns; nothing written")
    frame = nn.functional.avg_pool2d(torch.rand(2, 1, N, N), 5, 1, 2)
    export(Whitener(reader), reader.normalised, (frame,), ["frame"], ["whitened"],
           args.out / "r1.onnx")  # fmt: skip
    name_on_card(args.out)


def name_on_card(out: Path) -> None:
    """Put the checksum of r1.onnx under ``[files]``, in place of a former one."""
    card = out / "card.toml"
    told = re.sub(r'^"r1\.onnx" = .*\n', "", card.read_text("utf-8"), flags=re.MULTILINE)
    line = f'"r1.onnx" = "{digest(out / "r1.onnx")}"\n'
    card.write_text(told.replace("\n[files]\n", "\n[files]\n" + line, 1), "utf-8")


if __name__ == "__main__":
    main()
