"""Whose a picture is: the robust mark of JPEG, PNG, screenshot or DICOM, wherever it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np

from dicom_node.errors import PixelError
from dicom_node.inference.base import Float32, RobustEngine
from dicom_node.instance.display import display_of
from dicom_node.instance.frames import open_instance
from dicom_node.keys import KeySet
from dicom_node.watermark.robust import Detection, RobustWatermark
from dicom_node.watermark.synchronise import find

MAX_PIXELS = 400_000_000  # of a frame; what announces more would not fit into memory
SEARCHED_FRAMES = 4  # of a multi-frame object whose frames do not read as they are
_WHITE = {"uint8": 255.0, "uint16": 65535.0}  # of floating-point pictures it is 1
_DICOM_MAGIC = slice(128, 132)


def trace(
    path: Path, keys: Sequence[KeySet], engine: RobustEngine, *, search: bool = True
) -> Detection:
    """Read the robust mark of a picture or of the frames of a DICOM file, whichever reads first.

    All frames are read as they are, flipped and in quarter turns; if none carries a mark,
    `SEARCHED_FRAMES` of them, evenly spread, are searched through all angles, sizes and parts.

    Raises
    ------
    PixelError
        If the file is neither a picture nor a DICOM image that can be decoded.
    """
    def plain(display: Float32) -> Detection:
        return RobustWatermark(engine).detect(display, keys, dihedral=True)

    def anywhere(display: Float32) -> Detection:
        return find(display, engine, keys)

    found = _first(path, plain, None)
    if found.decoded or not search:
        return found
    return _first(path, anywhere, SEARCHED_FRAMES)


def _first(path: Path, read: Callable[[Float32], Detection], most: int | None) -> Detection:
    """Return the first frame's reading that decodes, else a reading that does not."""
    for display in _displays(path, most):
        found = read(display)
        if found.decoded:
            return found
    return Detection(False)


def _displays(path: Path, most: int | None) -> Iterator[Float32]:
    """Yield display values 0..1 of a picture, or of at most `most` frames of a DICOM file."""
    picture = _picture(path)
    if picture is not None:
        yield picture
        return
    with closing(open_instance(path, max_pixels=MAX_PIXELS)) as instance:
        display, count = display_of(instance), instance.frame_count
        chosen = range(count) if most is None else np.linspace(0, count - 1, min(most, count))
        for index in dict.fromkeys(round(float(place)) for place in chosen):
            yield display.image(instance.frame(index), index)


def _picture(path: Path) -> Float32 | None:
    """Return the luma of a picture file, 0..1; None for a DICOM file (PixelError)."""
    coded = path.read_bytes()
    if not coded or coded[_DICOM_MAGIC] == b"DICM":
        return None
    try:
        flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
        decoded = cv2.imdecode(np.frombuffer(coded, np.uint8), flags)
    except cv2.error as error:
        raise PixelError(f"the picture cannot be decoded: {error.err}") from error
    if decoded is None:
        return None
    values = np.nan_to_num(np.asarray(decoded, np.float32))
    white = _WHITE.get(decoded.dtype.name, 1.0)
    return np.asarray(np.clip(values / np.float32(white), 0, 1), np.float32)
