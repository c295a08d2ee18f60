"""Mark training frames with the node's own encoder: what R1 is trained on.

    python mark_frames.py --pack pack.npz --out marked.npz

Frames of `pack.py`'s training split, augmented as for W1, each under a key of its own. Runs with
the node's dependencies; training needs torch instead, so they are two steps.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from dicom_node.inference import open_engine
from dicom_node.watermark.robust import RobustWatermark, code_word

COPIES = 3  # marked pictures for each frame of the pack
SEED = 1


@dataclass(frozen=True)
class Key:
    """A key that only has to differ."""

    robust_key: bytes
    owner: str = "GENERAL-HOSPITAL"
    key_id: bytes = bytes(8)


def augment(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return another plausible 8-bit frame: a zoomed part, turned, in another window."""
    side = int(256 * rng.uniform(0.6, 1.0)) if rng.random() < 0.5 else 256
    top, left = rng.integers(0, 257 - side, 2)
    out = cv2.resize(frame[top : top + side, left : left + side], (256, 256))
    out = np.rot90(out, rng.integers(4))
    y = (out[:, ::-1] if rng.random() < 0.5 else out).astype(np.float32)
    if rng.random() < 0.35:
        low, high = rng.uniform(-20, 60), rng.uniform(170, 290)
        y = (y - low) * (255 / (high - low))
    if rng.random() < 0.25:
        y = y + rng.uniform(0.5, 4) * rng.standard_normal(y.shape).astype(np.float32)
    return np.clip(np.rint(y), 0, 255).astype(np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    rng = np.random.default_rng(SEED)
    data = np.load(args.pack)
    frames, weight = data["train"], data["weight"] / data["weight"].sum()
    watermark = RobustWatermark(open_engine("onnx"))
    pictures, words = [], []
    for i in rng.choice(len(frames), COPIES * len(frames), p=weight):
        host, key = augment(frames[i], rng), Key(rng.bytes(32))
        mark = watermark.embed(host, (host / 255).astype(np.float32), step=1.0, low=0, high=255,
                               padding=None, key=key)  # fmt: skip
        if mark.record is not None:
            pictures.append(mark.marked.astype(np.uint8))
            words.append(code_word(mark.message, key).astype(np.int8))
    np.savez(args.out, pictures=np.stack(pictures), words=np.stack(words))
    print(f"{len(pictures)} marked pictures")


if __name__ == "__main__":
    main()
