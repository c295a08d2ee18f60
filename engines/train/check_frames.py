"""Make engines/check_frames.npy: the real frames on which every backend is checked.

    python check_frames.py --out ..

The sample studies of demo/, as the networks see them: display values at 128 x 128, as bytes.
"""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np

from dicom_node.instance.display import display_of
from dicom_node.instance.frames import open_instance

SIDE = 128
DEMO = Path(__file__).resolve().parents[2] / "demo"


def frames_of(folder: Path) -> np.ndarray:
    """Return the first frame of every file, ``(files, side, side)`` uint8."""
    frames = []
    for path in sorted(folder.rglob("*.dcm")):
        with closing(open_instance(path, max_pixels=1 << 28)) as instance:
            shown = display_of(instance).image(instance.frame(0), 0)
        shrinks = min(shown.shape) >= SIDE
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        frames.append(np.rint(cv2.resize(shown, (SIDE, SIDE), interpolation=how) * 255))
    return np.stack(frames).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    np.save(args.out / "check_frames.npy", frames_of(DEMO))


if __name__ == "__main__":
    main()
