"""Mark frames with the node's own encoder: what R2 is trained on, and what it is looked at with.

    python mark_frames.py --pack pack.npz --out marked.npz                # a minute
    python mark_frames.py --pack pack.npz --out looked_at.npz --test      # seconds
    python mark_frames.py --pack pack.npz --out small.npz --small         # and --test: R2 for small

To train on: frames of `pack.py`'s training split, augmented, each at a strength of its own from
all that the encoder may choose, and with W2's unit steps over it. With `--test`: the frames that
are looked at, as they are, all at the same PSNR. Every frame has a key of its own. With `--small`
frames are reduced to what has a folded carrier, 48 to 96 pixels a side (64 to look at). Runs with
the node's dependencies; training needs torch instead, so they are two steps.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from compare_engines import Key
from frames import read_pack

from dicom_node.inference import open_engine
from dicom_node.watermark.detecting import FOLDS
from dicom_node.watermark.robust import RobustMark, RobustWatermark, code_word
from dicom_node.watermark.words import nearest_way

COPIES = 5  # marked pictures for each frame of the pack, on average
SEED = 1
STRENGTHS_DB = (41.0, 48.5)  # of W1 alone, in the display window
LOOKED_AT_DB = 44.5
SMALL_SIDES, SMALL_LARGEST = (48, 56, 64, 64, 64, 64, 64, 72, 80, 96), 96  # pixels
SMALL_DB, SMALL_LOOKED_AT_DB = (40.5, 43.0), 41.15
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


def reduced(frame: np.ndarray, side: int, grain: float, rng: np.random.Generator) -> np.ndarray:
    """Return a frame with fewer pixels, and grain of its own: what reducing it leaves is smooth."""
    small = cv2.resize(frame.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)
    small += grain * rng.standard_normal(small.shape, np.float32)
    return np.clip(np.rint(small), 0, 255).astype(np.int32)


def mark_at(watermark: RobustWatermark, host: np.ndarray, key: Key, psnr_db: float) -> RobustMark:
    """Return a frame marked at one strength, whatever the node would choose for it."""
    # The node's range of strengths, made a single one: not part of its interface.
    watermark.most_db = watermark._least_db = psnr_db
    display = (host / 255).astype(np.float32)
    return watermark.embed(host, display, step=1.0, low=0, high=255, padding=None, key=key)


def stepped(marked: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a frame with one stored value more or less in some pixels, as W2 leaves it."""
    return marked + (rng.random(marked.shape) < STEPPED) * rng.choice([-1, 1], marked.shape)


def word_in(watermark: RobustWatermark, host: np.ndarray, mark: RobustMark, key: Key) -> np.ndarray:
    """Return the code word that a mark put in, -1/+1 ``(K,)``."""
    if watermark.folds == 1:
        return code_word(mark.message, key)
    before, after = ((each / 255).astype(np.float32) for each in (host, mark.marked))
    put_in = watermark.look(after, FOLDS)[0] - watermark.look(before, FOLDS)[0]
    return nearest_way(mark.message, key, put_in)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--test", action="store_true", help="the frames that are looked at")
    parser.add_argument("--small", action="store_true", help="small frames, their carrier folded")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    rng, pack = np.random.default_rng(SEED), read_pack(args.pack)
    watermark = RobustWatermark(open_engine("onnx"), folds=FOLDS if args.small else 1)
    many = COPIES * len(pack.train)
    frames = pack.val if args.test else pack.train
    chosen = range(len(frames)) if args.test else rng.choice(len(frames), many, p=pack.weight)
    looked_at_db, range_db = LOOKED_AT_DB, STRENGTHS_DB
    if args.small:
        looked_at_db, range_db = SMALL_LOOKED_AT_DB, SMALL_DB
    pictures, words, strengths, sides = [], [], [], []
    for i in chosen:
        host = frames[i].astype(np.int32) if args.test else augment(frames[i], rng)
        if args.small:
            grain = 0.0 if args.test or rng.random() < 0.5 else rng.uniform(0.5, 6)
            host = reduced(host, 64 if args.test else rng.choice(SMALL_SIDES), grain, rng)
        key = Key(rng.bytes(32))
        psnr_db = looked_at_db if args.test else float(rng.uniform(*range_db))
        mark = mark_at(watermark, host, key, psnr_db)
        if mark.record is None:
            continue
        picture = mark.marked if args.test else stepped(mark.marked, rng)
        picture = np.clip(picture, 0, 255).astype(np.uint8)
        sides.append(len(picture))
        if args.small:  # all in one array: what is beyond `sides` is not part of it
            picture = np.pad(picture, (0, SMALL_LARGEST - len(picture)))
        pictures.append(picture)
        words.append(word_in(watermark, host, mark, key).astype(np.int8))
        strengths.append(psnr_db)
    np.savez(args.out, pictures=np.stack(pictures), words=np.stack(words),
             psnr_db=np.array(strengths, np.float32), sides=np.array(sides))  # fmt: skip
    print(f"{len(pictures)} marked pictures")


if __name__ == "__main__":
    main()
