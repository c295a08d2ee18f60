"""``dicom-node trace``: whose is this picture, wherever it was found, and which frame it shows."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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
from dicom_node.errors import KeyRingError, NodeError, RegistryError

if TYPE_CHECKING:
    from dicom_node.config import Config
    from dicom_node.matching import Match, Matcher
    from dicom_node.registry import MarkedInstance
    from dicom_node.side_by_side import Fetch
    from dicom_node.tracing import Traced


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
    from dicom_node.inference import open_engine
    from dicom_node.keys import KeyRing
    from dicom_node.side_by_side import SideBySide
    from dicom_node.tracing import trace

    config = config_of(arguments)
    inputs = walk(arguments.paths)
    keys = [each for each in KeyRing.open(config.keys.directory).all() if each.has_secrets]
    if not keys:
        raise KeyRingError(f"{config.keys.directory}: no secret key; a public one reads no mark")
    engine = open_engine(config.watermark.engine)
    codes: set[int] = set()
    with (
        _matcher(config, codes) as matcher,
        _fetching(config, wanted=arguments.fetch) as fetch,
        progress(len(inputs), "tracing") as advance,
    ):
        drawn = arguments.pictures and SideBySide(
            config, arguments.pictures, arguments.beside, fetch
        )
        for item in inputs:
            found, shown = None, ""
            try:
                found = trace(
                    item.path, keys, engine, search=not arguments.no_search, matcher=matcher
                )
                if drawn and found.match is not None:
                    shown = drawn.draw(item.path, found.picture, found.match)
            except (NodeError, OSError) as error:
                complain(item.path, str(error))
                codes.add(EXIT_FAILED)
            if found is not None:
                codes.add(_code(found))
            result = to_json(item.path, found)
            if arguments.json:
                print_json(result)
            elif found is not None:
                print(_line(result, shown), flush=True)
            advance()
    return EXIT_NOT_AUTHENTIC if EXIT_NOT_AUTHENTIC in codes else max(codes, default=EXIT_OK)


@contextmanager
def _matcher(config: Config, codes: set[int]) -> Iterator[Matcher | None]:
    """Open the registry if there is one; marks are read without it, too."""
    from dicom_node.inference.fingerprinter import open_fingerprinter
    from dicom_node.matching import Matcher
    from dicom_node.registry import Registry

    registry = None
    try:
        registry = Registry.existing(config.registry_url, cache=config.spool.directory)
    except RegistryError as error:
        complain(Path(config.spool.directory), str(error))
        codes.add(EXIT_FAILED)
    try:
        yield Matcher(registry, open_fingerprinter()) if registry is not None else None
    finally:
        if registry is not None:
            registry.close()


@contextmanager
def _fetching(config: Config, *, wanted: bool) -> Iterator[Fetch | None]:
    """Give what fetches one instance from the PACS; what it brought is removed at the end."""
    if not wanted:
        yield None
        return
    from dicom_node.verify.fetching import Fetcher
    from dicom_node.verify.pacs import Pacs, Wanted

    with tempfile.TemporaryDirectory(prefix="dicom-node-") as name:
        pacs = Pacs.of(config)
        fetcher = Fetcher(config, pacs, Path(name))

        def fetch(instance: MarkedInstance) -> Path | None:
            one = Wanted(instance.study_instance_uid, (instance.series_instance_uid,),
                         (instance.sop_instance_uid,))  # fmt: skip
            taken: list[Path] = []
            planned = pacs.plan(one)
            if planned:
                fetcher.fetch(one, planned, lambda path, _: taken.append(path), lambda: False)
            return taken[0] if taken else None

        try:
            yield fetch
        finally:
            fetcher.close()


def _code(found: Traced) -> int:
    ours = found.detection.decoded or found.match is not None
    return EXIT_OK if ours else EXIT_NOT_AUTHENTIC


def to_json(path: Path, found: Traced | None) -> dict[str, Any]:
    """Return one line of ``trace --json``."""
    detection = found.detection if found is not None else None
    decoded = detection is not None and detection.decoded
    pose: dict[str, Any] = dict.fromkeys(("rotation_deg", "flip", "scale"))
    if detection is not None and decoded:
        pose = {
            "rotation_deg": round(detection.pose.rotation_deg, 2),
            "flip": detection.pose.flip,
            "scale": round(detection.pose.scale, 4),
        }
    match: Match | None = found.match if found is not None else None
    return {
        "path": str(path),
        "decoded": decoded,
        "message": detection.message.hex() if detection is not None else "",
        "owner": (detection.owner or None) if detection is not None else None,
        "pose": pose,
        "match": match.to_json() if match is not None else None,
    }


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
