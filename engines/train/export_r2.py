"""Turn a checkpoint of train_r2.py into r2.onnx, and name it on card.toml.

    python export_r2.py r2/last.pt --out ..

Refuses a network that was trained with other patterns than the card's, and one whose ONNX Runtime
outputs differ from torch's.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from export_w1 import export
from former import digest
from readers import SIDE, Reader
from recipe import flat
from torch import Tensor, nn


class Whitener(nn.Module):
    """R2 up to the correlators."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader = reader

    def forward(self, picture: Tensor) -> Tensor:
        return self.reader.normalised(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    state = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    recipe, trained = flat(state["recipe"]), state["reader"]["patterns"]
    patterns = np.load(args.out / "patterns.npy")
    if not np.array_equal(trained.to(torch.int8).numpy(), patterns.reshape(trained.shape)):
        raise SystemExit("the reader was trained with other patterns; nothing written")
    reader = Reader(trained, recipe["width"], recipe["hidden"])
    reader.load_state_dict(state["reader"])
    picture = F.avg_pool2d(torch.rand(2, 1, SIDE, SIDE), 5, 1, 2)
    export(Whitener(reader), reader.normalised, (picture,), ["picture"], ["whitened"],
           args.out / "r2.onnx")  # fmt: skip
    name_on_card(args.out)


def name_on_card(out: Path) -> None:
    """Put the checksum of r2.onnx under ``[files]``, in place of a former one."""
    card = out / "card.toml"
    told = re.sub(r'^"r2\.onnx" = .*\n', "", card.read_text("utf-8"), flags=re.MULTILINE)
    line = f'"r2.onnx" = "{digest(out / "r2.onnx")}"\n'
    card.write_text(told.replace("\n[files]\n", "\n[files]\n" + line, 1), "utf-8")


if __name__ == "__main__":
    main()
