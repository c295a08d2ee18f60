"""``dicom-node trace``: whose is this picture, wherever it was found."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from dicom_node.errors import KeyRingError, NodeError

if TYPE_CHECKING:
    from dicom_node.watermark.robust import Detection



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
    from dicom_node.keys import KeyRing
    from dicom_node.tracing import trace

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
            result = to_json(item.path, found)
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


def to_json(path: Path, found: Detection | None) -> dict[str, Any]:
    """Return one line of ``trace --json``; `match` is null, since nothing is registered yet."""
    decoded = found is not None and found.decoded
    pose: dict[str, Any] = dict.fromkeys(("rotation_deg", "flip", "scale"))
    if found is not None and decoded:
        pose = {
            "rotation_deg": round(found.pose.rotation_deg, 2),
            "flip": found.pose.flip,
            "scale": round(found.pose.scale, 4),
        }
    return {
        "path": str(path),
        "decoded": decoded,
        "message": found.message.hex() if found is not None else "",
        "owner": (found.owner or None) if found is not None else None,
        "pose": pose,
        "match": None,
    }


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
