"""``dicom-node trace``: whose is this picture, wherever it was found."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dicom_node.cli.common import (
    EXIT_FAILED,
    EXIT_NOT_AUTHENTIC,
    EXIT_OK,
    Subparsers,
    add_command,
    add_json,
    complain,
    config_of,
    print_json,
    progress,
    walk,
)
from dicom_node.errors import KeyRingError, NodeError, PixelError
from dicom_node.inference.base import Float32, RobustEngine
from dicom_node.keys import KeyRing, KeySet
from dicom_node.watermark.robust import Detection

MAX_PIXELS = 400_000_000  # of a frame; what announces more would not fit into memory
SEARCHED_FRAMES = 4  # of a multi-frame object whose frames do not read as they are
_WHITE = {"uint8": 255.0, "uint16": 65535.0}  # of floating-point pictures it is 1
_DICOM_MAGIC = slice(128, 132)


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "trace",
        run,
        summary="say whose a picture is: JPEG, PNG, screenshot or DICOM, turned, scaled or cropped",
        exit_codes={
            0: "every picture carries a robust mark made with the key ring",
            1: "at least one carries none that could be read",
            3: "at least one could not be read, all others carry one",
        },
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="IMAGE", help="files or folders")
    parser.add_argument(
        "--no-search",
        action="store_true",
        help="flips and quarter turns only, no other angle, size or part: fast",
    )
    add_json(parser, "picture")


def run(arguments: argparse.Namespace) -> int:
    """Read the robust mark of every picture; report the bad ones and go on."""
    from dicom_node.inference import open_engine

    config = config_of(arguments)
    inputs = walk(arguments.paths)
    keys = [each for each in KeyRing.open(config.keys.directory).all() if each.has_secrets]
    if not keys:
        raise KeyRingError(f"{config.keys.directory}: no secret key; a public one reads no mark")
    engine = open_engine(config.watermark.engine)
    codes: set[int] = set()
    with progress(len(inputs), "tracing") as advance:
        for item in inputs:
            found = None
            try:
                found = trace(item.path, keys, engine, search=not arguments.no_search)
            except (NodeError, OSError) as error:
                complain(item.path, str(error))
            codes.add(_code(found))
            result = to_json(item.path, found or Detection(False))
            if arguments.json:
                print_json(result)
            elif found is not None:
                print(_line(result), flush=True)
            advance()
    return EXIT_NOT_AUTHENTIC if EXIT_NOT_AUTHENTIC in codes else max(codes, default=EXIT_OK)


def _code(found: Detection | None) -> int:
    if found is None:
        return EXIT_FAILED
    return EXIT_OK if found.decoded else EXIT_NOT_AUTHENTIC


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
    from dicom_node.watermark.robust import RobustWatermark
    from dicom_node.watermark.synchronise import find

    def plain(display: Float32) -> Detection:
        return RobustWatermark(engine).detect(display, keys, dihedral=True)

    def anywhere(display: Float32) -> Detection:
        return find(display, engine, keys)

    found = _first(path, plain, None)
    if found.decoded or not search:
        return found
    return _first(path, anywhere, SEARCHED_FRAMES)


def to_json(path: Path, found: Detection) -> dict[str, Any]:
    """Return one line of ``trace --json``; `match` is null, since nothing is registered yet."""
    pose = found.pose
    told = {
        "rotation_deg": round(pose.rotation_deg, 2),
        "flip": pose.flip,
        "scale": round(pose.scale, 4),
    }
    return {
        "path": str(path),
        "decoded": found.decoded,
        "message": found.message.hex(),
        "owner": found.owner or None,
        "pose": told if found.decoded else dict.fromkeys(told),
        "match": None,
    }


def _first(path: Path, read: Callable[[Float32], Detection], most: int | None) -> Detection:
    """Return the first frame's reading that decodes, else a reading that does not."""
    for display in _displays(path, most):
        found = read(display)
        if found.decoded:
            return found
    return Detection(False)


def _displays(path: Path, most: int | None) -> Iterator[Float32]:
    """Yield display values 0..1 of a picture, or of at most `most` frames of a DICOM file."""
    from dicom_node.instance.display import display_of
    from dicom_node.instance.frames import open_instance

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


def _line(result: dict[str, Any]) -> str:
    if not result["decoded"]:
        return f"{result['path']}  no mark of this key ring"
    pose = result["pose"]
    parts = [result["path"], f"marked by {result['owner']}", f"message {result['message']}"]
    if pose["rotation_deg"]:
        parts.append(f"turned by {pose['rotation_deg']:g} degrees")
    if pose["flip"]:
        parts.append("mirrored")
    if pose["scale"] != 1.0:
        parts.append(f"the whole frame would be {pose['scale']:g} times the picture's size")
    return "  ".join(parts)
