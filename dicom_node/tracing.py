"""Whose a picture is, and which frame it shows: JPEG, PNG, screenshot or DICOM, wherever found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from dicom_node.errors import PixelError
from dicom_node.inference.base import Float32, RobustEngine
from dicom_node.instance.display import display_of
from dicom_node.instance.frames import open_instance
from dicom_node.keys import KeySet
from dicom_node.matching import Match, Matcher
from dicom_node.watermark.robust import Detection, RobustWatermark
from dicom_node.watermark.synchronise import find

MAX_PIXELS = 400_000_000  # of a frame; what announces more would not fit into memory
SEARCHED_FRAMES = 4  # of a multi-frame object whose frames do not read as they are
_WHITE = {"uint8": 255.0, "uint16": 65535.0}  # of floating-point pictures it is 1
_DICOM_MAGIC = slice(128, 132)


@dataclass(frozen=True)
class Traced:
    """What is known of one picture.

    Attributes
    ----------
    match
        The registered frame that it shows; None without a registry, or if it is none of ours.
    picture
        What was looked at: display values 0..1, of a DICOM file those of the frame.
    """

    detection: Detection
    match: Match | None
    picture: Float32


def trace(
    path: Path, keys: Sequence[KeySet], engine: RobustEngine, *, search: bool = True,
    matcher: Matcher | None = None,
) -> Traced:  # fmt: skip
    """Read the robust mark of a picture or of the frames of a DICOM file, whichever reads first.

    All frames are read as they are, flipped and in quarter turns; if none carries a mark,
    `SEARCHED_FRAMES` of them, evenly spread, are searched through all angles, sizes and parts.
    What was read is looked up; where nothing was, what the picture looks like.

    Raises
    ------
    PixelError
        If the file is neither a picture nor a DICOM image that can be decoded.
    RegistryError
        If the registry cannot be asked.
    """
    def plain(display: Float32) -> Detection:
        return RobustWatermark(engine).detect(display, keys, dihedral=True, weak=True)

    def anywhere(display: Float32) -> Detection:
        known = matcher.hashes if matcher is not None else None
        return find(display, engine, keys, known=known)

    found, picture = _first(path, plain, None)
    proven = _by_samples(path, matcher) if matcher is not None else None
    if not found.decoded and search and proven is None:
        found, picture = _first(path, anywhere, SEARCHED_FRAMES)
    if proven is not None or matcher is None:
        return Traced(found, proven, picture)
    if found.decoded:
        return Traced(found, matcher.by_message(found, picture), picture)
    for display in _displays(path, SEARCHED_FRAMES):
        match = matcher.by_look(display)
        if match is not None:
            return Traced(found, match, display)
    return Traced(found, None, picture)


def frame_display(path: Path, frame: int) -> Float32:
    """Return one frame of a DICOM file (counted from 1) in display values (PixelError)."""
    with closing(open_instance(path, max_pixels=MAX_PIXELS)) as instance:
        if not 1 <= frame <= instance.frame_count:
            raise PixelError(f"{path}: has no frame {frame}")
        return display_of(instance).image(instance.frame(frame - 1), frame - 1)


def _by_samples(path: Path, matcher: Matcher) -> Match | None:
    """Return the registered frame that a frame of a DICOM file is, bit for bit."""
    if _picture(path) is not None:
        return None
    with closing(open_instance(path, max_pixels=MAX_PIXELS)) as instance:
        for index in dict.fromkeys((0, instance.frame_count // 2)):
            values = instance.frame(index).values
            match = matcher.by_samples(instance.sop_instance_uid, values)
            if match is not None:
                return match
    return None


def _first(
    path: Path, read: Callable[[Float32], Detection], most: int | None
) -> tuple[Detection, Float32]:
    """Return the first frame's reading that decodes, else one that does not, and the frame."""
    first: Float32 | None = None
    for display in _displays(path, most):
        found = read(display)
        if found.decoded:
            return found, display
        first = display if first is None else first
    assert first is not None, "a picture has a frame"
    return Detection(False), first


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
