"""Make pairs of unmarked and marked frames for `steganalysis.py`, with the node's own encoder.

    python steganalysis_pairs.py --pack pack.npz --out pairs.npz [--engines FOLDER]

Runs with the node's dependencies. All frames of `pack.py` as they are, each under a key of its
own, with the group (patient or source) of each, by which they are split, and whether it is one of
the frames to look at, which are tested on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from compare_engines import Key

from dicom_node.inference import open_engine
from dicom_node.watermark.robust import RobustWatermark


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--engines", type=Path, help="folder with card.toml; else the node's")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    rng = np.random.default_rng(1)
    watermark = RobustWatermark(open_engine("onnx", args.engines))
    covers, marked, groups, test = [], [], [], []
    with np.load(args.pack) as data:
        for split in ("train", "test"):
            for frame, group in zip(data[split], data[f"{split}_g"], strict=True):
                display = frame.astype(np.float32) / 255
                mark = watermark.embed(frame.astype(np.int32), display, step=1.0, low=0, high=255,
                                       padding=None, key=Key(rng.bytes(32)))  # fmt: skip
                if mark.record is not None:
                    covers.append(frame)
                    marked.append(mark.marked.astype(np.uint8))
                    groups.append(group)
                    test.append(split == "test")
    np.savez_compressed(args.out, covers=np.stack(covers), marked=np.stack(marked),
                        groups=np.array(groups), test=np.array(test))  # fmt: skip
    print(f"{len(covers)} pairs of {len(set(groups))} groups, {sum(test)} to test on")


if __name__ == "__main__":
    main()
