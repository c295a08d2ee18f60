"""Video coding of a clip of the frame: what a cine loop goes through when it is shared.

OpenCV's wheels decode H.264 but do not encode it (that encoder is GPL); VP9 and MPEG-4 part 2 use
the same means, prediction between frames and transform coding, and stand for it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from dicom_node.bench.attacks.base import Attack, Picture, Rng
from dicom_node.errors import EngineError

_FAMILY = "video"
NOT_MEASURED = "video, H.264: OpenCV has no encoder for it that is not GPL"
_FRAMES = 5
_DRIFT_GREY = 1.0  # noise between the frames of the clip, so that they are not all alike
_LEAST_SIDE_PX = 16


def clip(picture: Picture, rng: Rng, fourcc: str, suffix: str) -> Picture:
    """Return the middle frame of a clip of five after coding (EngineError without the codec).

    Sides are padded to even numbers for the coder and cut back.
    """
    rows, columns = picture.shape
    even = cv2.copyMakeBorder(picture, 0, _pad(rows), 0, _pad(columns), cv2.BORDER_REPLICATE)
    with tempfile.TemporaryDirectory(prefix="dicom-node-clip-") as folder:
        path = str(Path(folder) / f"clip{suffix}")
        writer = cv2.VideoWriter(path, _code(fourcc), 10.0, even.shape[::-1])
        if not writer.isOpened():
            raise EngineError(f"this OpenCV has no encoder for {fourcc}")
        for _ in range(_FRAMES):
            noise = _DRIFT_GREY * rng.standard_normal(even.shape, np.float32)
            grey = np.clip(np.rint(even + noise), 0, 255).astype(np.uint8)
            writer.write(np.repeat(grey[..., None], 3, axis=2))
        writer.release()
        reader = cv2.VideoCapture(path)
        shown = [reader.read() for _ in range(_FRAMES // 2 + 1)]
        reader.release()
    done, frame = shown[-1]
    if not done:
        raise EngineError(f"the clip in {fourcc} cannot be read back")
    return np.ascontiguousarray(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)[:rows, :columns], np.uint8)


def _code(fourcc: str) -> int:
    return int(cv2.VideoWriter.fourcc(*fourcc))


def _pad(side: int) -> int:
    return max(_LEAST_SIDE_PX - side, 0) + side % 2


def _coded(fourcc: str, suffix: str) -> Callable[[Picture, Rng], Picture]:
    return lambda picture, rng: clip(picture, rng, fourcc, suffix)


VIDEO: tuple[Attack, ...] = (
    Attack("video, Motion JPEG", _FAMILY, _coded("MJPG", ".avi"), paper="high"),
    Attack("video, MPEG-4 part 2", _FAMILY, _coded("mp4v", ".mp4"), paper="high"),
    Attack("video, VP9", _FAMILY, _coded("vp09", ".mp4"), paper="high"),
)
