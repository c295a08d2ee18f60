"""Compare models as the node uses them: marks of the same strength, read by D1 alone.

    python compare_engines.py .. run/engines --pack pack.npz [--psnr-db 44]

Runs with the node's dependencies, on the frames of `pack.py` that no model was trained on. With
``--psnr-db`` the node's choice of strength is overridden by that budget (frames of which little
can carry get less, as always), so that two models compare at equal strength; without, each frame
gets the least that reads through a blur with a margin. Prints one JSON object a model: mean PSNR
and SSIM, and by attack the share of messages read and mean bit accuracy.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from frames import read_pack
from suite import suite

from dicom_node.inference import open_engine
from dicom_node.watermark.quality import psnr_db, ssim
from dicom_node.watermark.robust import RobustWatermark, code_word


@dataclass(frozen=True)
class Key:
    """A key that only has to differ."""

    robust_key: bytes
    owner: str = "GENERAL-HOSPITAL"
    key_id: bytes = bytes(8)


def figures(folder: Path, val: np.ndarray, budget_db: float | None) -> dict[str, Any]:
    rng = np.random.default_rng(20261128)
    watermark = RobustWatermark(open_engine("onnx", folder))
    if budget_db is not None:
        watermark.most_db = watermark._least_db = budget_db
    quality, unmarked = [], 0
    read: dict[str, list[tuple[bool, float]]] = {name: [] for name in suite(rng)}
    for place, frame in enumerate(val):
        key, drawn = Key(rng.bytes(32)), np.random.default_rng(place)  # the same for every model
        host, display = frame.astype(np.int32), frame.astype(np.float32) / 255
        mark = watermark.embed(host, display, step=1.0, low=0, high=255, padding=None, key=key)
        if mark.record is None:
            unmarked += 1
            continue
        marked, word = mark.marked.astype(np.uint8), code_word(mark.message, key)
        shown = marked.astype(np.float32) / 255
        quality.append((psnr_db(display, shown), ssim(display, shown)))
        for name, attack in suite(drawn).items():
            picture = attack(marked).astype(np.float32) / 255
            soft = watermark.engine.decode(watermark.resample(picture)[None, None])[0]
            found = watermark.detect(picture, [key])
            right = found.decoded and found.message == mark.message
            read[name].append((right, float((soft * word > 0).mean())))
    db, similar = np.mean(quality, 0)
    table = {k: [round(float(v), 4) for v in np.mean(rows, 0)] for k, rows in read.items()}
    mean = float(np.mean([row[0] for row in table.values()]))
    return {"engines": str(folder), "marked": len(quality), "unmarked": unmarked,
            "psnr_db": round(float(db), 2), "ssim": round(float(similar), 4),
            "read": round(mean, 4), "attacks": table}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("engines", type=Path, nargs="+", help="folders with card.toml")
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--psnr-db", type=float)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    val = read_pack(args.pack).val
    for folder in args.engines:
        print(json.dumps(figures(folder, val, args.psnr_db)), flush=True)


if __name__ == "__main__":
    main()
