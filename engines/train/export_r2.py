"""Turn a checkpoint of train_r2.py into r2.onnx or r2_small.onnx, and name it on card.toml.

    python export_r2.py r2/last.pt --out ..             # and r2_small/last.pt
    python export_r2.py .. --out ..     # R2 of that folder, as this script writes it today

Refuses a network that was trained with other patterns than the card's, and one whose ONNX Runtime
outputs differ from torch's. The file holds no patterns: layers trained with patterns of the same
band whiten for these as well (LOG.md), and are taken with `--other-patterns`. Look before, with
`train_r2.py --start r2/last.pt --stop 0`.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
import shipped
import torch
import torch.nn.functional as F
from export_w1 import export
from former import digest
from networks import N
from readers import CELL, Reader, folded
from torch import Tensor

FILES = {1: "r2.onnx", 2: "r2_small.onnx"}  # by how often the carrier is folded
_BLOCK, _TAPS = 4, 5  # samples a side that are made at once; a side of the last layer's kernel


class Whitener(Reader):
    """R2 up to the correlators, two of its steps as the same sums in three quarters of the time.

    One channel leaves nearly all of a register empty: the last layer makes a block of 4 x 4 samples
    at once. Gates are spread over samples by two matrix products instead of an interpolation.
    """

    def __init__(self, reader: Reader) -> None:
        width, hidden = reader.width, reader.places.look.out_channels
        super().__init__(reader.patterns, width, hidden)
        self.load_state_dict(reader.state_dict())
        folded = torch.zeros(_BLOCK, _BLOCK, width, _TAPS + _BLOCK - 1, _TAPS + _BLOCK - 1)
        for row in range(_BLOCK):
            for column in range(_BLOCK):
                taps = slice(row, row + _TAPS), slice(column, column + _TAPS)
                folded[row, column][:, *taps] = reader.last.weight.data[0]
        self.register_buffer("folded", folded.flatten(0, 1))
        side = self.side
        cells = torch.eye(side // CELL)[None, None]
        spread = F.interpolate(
            cells, size=(side // CELL, side), mode="bilinear", align_corners=False
        )
        self.register_buffer("across", spread[0, 0])
        self.register_buffer("down", spread[0, 0].t().contiguous())

    def forward(self, picture: Tensor) -> Tensor:
        return self.normalised(picture)

    def spread(self, gates: Tensor) -> Tensor:
        return self.down @ (gates @ self.across)

    def one_of(self, features: Tensor) -> Tensor:
        bias = self.last.bias.repeat(_BLOCK * _BLOCK)
        blocks = F.conv2d(features, self.folded, bias, stride=_BLOCK, padding=_TAPS // 2)
        return F.pixel_shuffle(blocks, _BLOCK)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="or a folder with card.toml")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--other-patterns", action="store_true",
                        help="trained with others of the same band: look at it first")  # fmt: skip
    args = parser.parse_args()
    torch.set_num_threads(1)
    reader = shipped.reader_from(args.checkpoint)
    folds = N // reader.side
    patterns = folded(np.load(args.out / "patterns.npy").reshape(-1, N, N), folds)
    own = reader.patterns.to(torch.int32).numpy()
    if not args.other_patterns and not np.array_equal(own, patterns.reshape(own.shape)):
        raise SystemExit("the reader was trained with other patterns; nothing written")
    picture = F.avg_pool2d(torch.rand(2, 1, 2 * reader.side, 2 * reader.side), 5, 1, 2)
    file = FILES[folds]
    export(Whitener(reader), reader.normalised, (picture,), ["picture"], ["whitened"],
           args.out / file)  # fmt: skip
    name_on_card(args.out, file)


def name_on_card(out: Path, file: str) -> None:
    """Put the checksum of a file under ``[files]``, in place of a former one."""
    card = out / "card.toml"
    former = re.compile(rf'^"{re.escape(file)}" = .*\n', re.MULTILINE)
    told = former.sub("", card.read_text("utf-8"))
    line = f'"{file}" = "{digest(out / file)}"\n'
    card.write_text(told.replace("\n[files]\n", "\n[files]\n" + line, 1), "utf-8")


if __name__ == "__main__":
    main()
