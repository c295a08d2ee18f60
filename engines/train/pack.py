"""Pack the training frames into one file, and leave every test group out.

    python pack.py --data DATA --out pack.npz

`DATA` is the folder of development data (its MANIFEST.csv names the group, that is the patient or
source, of every frame). The split is by group: what `held_out.txt` names, and the validation
split, is never trained on. All frames: 256 x 256, 8 bit, in their display window. Deflated, so that
the file can travel to a GPU: more than 64 MiB is an error.
"""

from __future__ import annotations

import argparse
import collections
import csv
from pathlib import Path

import cv2
import numpy as np

# Modalities differ in number a hundredfold: the square root evens that out, this corrects taste.
TASTE = {"XC": 0.6, "GM": 0.4, "SM": 0.6, "CT": 1.6, "US": 1.3}
MOST_BYTES = 64 << 20
TEST_FRAMES_PER_MODALITY = 12  # looked at during training; the benchmark takes all


def read(path: Path) -> np.ndarray:
    """Return a frame as ``(256, 256)`` uint8, colour as its luma."""
    frame = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if frame.ndim == 3:
        frame = cv2.cvtColor(frame[..., :3], cv2.COLOR_BGR2GRAY)
    if frame.shape != (256, 256):
        frame = cv2.resize(frame, (256, 256), interpolation=cv2.INTER_AREA)
    return frame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    held_out = set(Path(__file__).with_name("held_out.txt").read_text("utf-8").split())
    frames: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    modalities: dict[str, list[str]] = {"train": [], "test": []}
    groups: dict[str, list[str]] = {"train": [], "test": []}
    with (args.data / "MANIFEST.csv").open(encoding="utf-8") as manifest:
        for row in csv.DictReader(manifest):
            if not row["path"].startswith("whole/"):
                continue
            trains = row["path"].startswith("whole/train") and row["group"] not in held_out
            split = "train" if trains else "test"
            frames[split].append(read(args.data / row["path"]))
            modalities[split].append(row["modality"])
            groups[split].append(row["group"])
    counts = collections.Counter(modalities["train"])
    weight = [TASTE.get(m, 1.0) / counts[m] ** 0.5 for m in modalities["train"]]
    rng = np.random.default_rng(0)
    chosen: list[int] = []
    tested = np.array(modalities["test"])
    for modality in np.unique(tested):
        places = np.flatnonzero(tested == modality)
        few = min(len(places), TEST_FRAMES_PER_MODALITY)
        chosen += list(rng.choice(places, few, replace=False))
    np.savez_compressed(
        args.out,
        train=np.stack(frames["train"]),
        weight=np.array(weight),
        train_g=np.array(groups["train"]),
        test=np.stack(frames["test"])[chosen],
        test_m=tested[chosen],
        test_g=np.array(groups["test"])[chosen],
    )
    size = args.out.stat().st_size
    if size >= MOST_BYTES:
        raise SystemExit(f"{args.out}: {size >> 20} MiB; under {MOST_BYTES >> 20} are wanted")
    print(f"{len(frames['train'])} frames to train on {dict(counts)}, "
          f"{len(chosen)} to look at, {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
