"""Mark frames with the node's own encoder: what R2 is trained on, and what it is looked at with.

    python mark_frames.py --pack pack.npz --out marked.npz                # a minute
    python mark_frames.py --pack pack.npz --out looked_at.npz --test      # seconds

To train on: frames of `pack.py`'s training split, augmented, each at a strength of its own from
all that the encoder may choose, and with W2's unit steps over it. With `--test`: the frames that
are looked at, as they are, all at the same PSNR. Every frame has a key of its own. Runs with the
node's dependencies; training needs torch instead, so they are two steps.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from compare_engines import Key
from frames import read_pack

from dicom_node.inference import open_engine
from dicom_node.watermark.robust import RobustMark, RobustWatermark, code_word

COPIES = 5  # marked pictures for each frame of the pack, on average
SEED = 1
STRENGTHS_DB = (41.0, 48.5)  # of W1 alone, in the display window
LOOKED_AT_DB = 44.5
STEPPED = 0.1  # share of the pixels that W2 moves by one stored value


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


def mark_at(watermark: RobustWatermark, host: np.ndarray, key: Key, psnr_db: float) -> RobustMark:
    """Return a frame marked at one strength, whatever the node would choose for it."""
    # The node's range of strengths, made a single one: not part of its interface.
    watermark.most_db = watermark._least_db = psnr_db
    display = (host / 255).astype(np.float32)
    return watermark.embed(host, display, step=1.0, low=0, high=255, padding=None, key=key)


def stepped(marked: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a frame with one stored value more or less in some pixels, as W2 leaves it."""
    return marked + (rng.random(marked.shape) < STEPPED) * rng.choice([-1, 1], marked.shape)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--test", action="store_true", help="the frames that are looked at")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    rng, pack = np.random.default_rng(SEED), read_pack(args.pack)
    watermark = RobustWatermark(open_engine("onnx"))
    many = COPIES * len(pack.train)
    frames = pack.val if args.test else pack.train
    chosen = range(len(frames)) if args.test else rng.choice(len(frames), many, p=pack.weight)
    pictures, words, strengths = [], [], []
    for i in chosen:
        host = frames[i].astype(np.int32) if args.test else augment(frames[i], rng)
        key = Key(rng.bytes(32))
        psnr_db = LOOKED_AT_DB if args.test else float(rng.uniform(*STRENGTHS_DB))
        mark = mark_at(watermark, host, key, psnr_db)
        if mark.record is None:
            continue
        picture = mark.marked if args.test else stepped(mark.marked, rng)
        pictures.append(np.clip(picture, 0, 255).astype(np.uint8))
        words.append(code_word(mark.message, key).astype(np.int8))
        strengths.append(psnr_db)
    np.savez(args.out, pictures=np.stack(pictures), words=np.stack(words),
             psnr_db=np.array(strengths, np.float32))  # fmt: skip
    print(f"{len(pictures)} marked pictures")


if __name__ == "__main__":
    main()
