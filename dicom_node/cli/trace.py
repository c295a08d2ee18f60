"""``dicom-node trace``: whose is this picture, wherever it was found, and which frame it shows."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dicom_node.child import ChildEnded, Workplace
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
from dicom_node.cli.trace_worker import Done, Setup, to_json
from dicom_node.config import Config
from dicom_node.errors import KeyRingError

_WORKER = "dicom_node.cli.trace_worker"
_LONGEST_S = 3600.0


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "trace",
        run,
        summary="say whose a picture is: JPEG, PNG, screenshot or DICOM, turned, scaled or cropped",
        exit_codes={
            0: "every picture carries a robust mark made with the key ring, or is of the registry",
            1: "at least one is not ours: no mark that could be read, and no registered frame",
            3: "at least one, the registry or the PACS could not be read; all others are ours",
        },
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="IMAGE", help="files or folders")
    parser.add_argument(
        "--no-search",
        action="store_true",
        help="flips and quarter turns only, no other angle, size or part: fast",
    )
    parser.add_argument(
        "--pictures",
        type=Path,
        metavar="DIR",
        help="write each picture beside the frame it shows, where that can be had",
    )
    parser.add_argument(
        "--beside",
        type=Path,
        nargs="+",
        default=[],
        metavar="PATH",
        help="with --pictures: where to look for that frame's file beside the spool",
    )
    parser.add_argument(
        "--fetch",
        action="store_true",
        help="with --pictures: ask the PACS of [verify] for that frame's file",
    )
    add_json(parser, "picture")


def run(arguments: argparse.Namespace) -> int:
    """Trace every picture; report the bad ones and go on."""
    from dicom_node.keys import KeyRing

    config = config_of(arguments)
    inputs = walk(arguments.paths)
    if not any(each.has_secrets for each in KeyRing.open(config.keys.directory).all()):
        raise KeyRingError(f"{config.keys.directory}: no secret key; a public one reads no mark")
    with tempfile.TemporaryDirectory(prefix="dicom-node-") as scratch:
        setup = Setup(
            config, not arguments.no_search, arguments.pictures, tuple(arguments.beside),
            arguments.fetch, Path(scratch),
        )  # fmt: skip
        with Workplace(_WORKER, lambda: setup, _LONGEST_S) as workplace:
            return _trace_all(workplace, config, [item.path for item in inputs], arguments)


def _trace_all(
    workplace: Workplace, config: Config, paths: Sequence[Path], arguments: argparse.Namespace
) -> int:
    codes: set[int] = set()
    away = ""
    with progress(len(paths), "tracing") as advance:
        for path in paths:
            try:
                done: Done = workplace.do(path)
            except ChildEnded as error:
                done = Done(None, problem=f"tracing it {error}")
            if done.registry and not away:
                away = done.registry
                complain(config.spool.directory, away)
                codes.add(EXIT_FAILED)
            if done.problem:
                complain(path, done.problem)
                codes.add(EXIT_FAILED)
            result = {"path": str(path), **(done.said or to_json(None))}
            if done.said is not None:
                codes.add(_code(result))
            if arguments.json:
                print_json(result)
            elif done.said is not None:
                print(_line(result, done.shown), flush=True)
            advance()
    return EXIT_NOT_AUTHENTIC if EXIT_NOT_AUTHENTIC in codes else max(codes, default=EXIT_OK)


def _code(result: dict[str, Any]) -> int:
    ours = result["decoded"] or result["match"] is not None
    return EXIT_OK if ours else EXIT_NOT_AUTHENTIC


def _line(result: dict[str, Any], shown: str) -> str:
    parts = [result["path"], *_mark(result)]
    match = result["match"]
    if match is not None:
        how = {"samples": "bit for bit", "message": "by its mark", "look": "by its looks"}
        parts.append(
            f"frame {match['frame']} of instance {match['sop_instance_uid']} of study"
            f" {match['study_instance_uid']}, {how[match['by']]}, confidence"
            f" {match['confidence']:.3g}"
        )
    elif not result["decoded"]:
        parts.append("not ours")
    return "  ".join(parts + ([shown] if shown else []))


def _mark(result: dict[str, Any]) -> list[str]:
    if not result["decoded"]:
        return ["no mark of this key ring"]
    pose = result["pose"]
    parts = [f"marked by {result['owner']}", f"message {result['message']}"]
    if pose["rotation_deg"]:
        parts.append(f"turned by {pose['rotation_deg']:g} degrees")
    if pose["flip"]:
        parts.append("mirrored")
    if pose["scale"] != 1.0:
        parts.append(f"the whole frame would be {pose['scale']:g} times the picture's size")
    return parts
