"""``dicom-node verify``: a verdict per instance."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dicom_node.cli.common import (
    EXIT_FAILED,
    EXIT_NOT_AUTHENTIC,
    EXIT_OK,
    Subparsers,
    add_command,
    add_json,
    config_of,
    print_json,
    progress,
    walk,
)
from dicom_node.errors import ConfigError, NodeError


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "verify",
        run,
        summary="say of every instance whether it is what was marked, and if not, where it differs",
        exit_codes={
            0: "every instance is authentic",
            1: "at least one is not authentic",
            3: "at least one could not be read, all others are authentic",
        },
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="files or folders")
    parser.add_argument(
        "--public-key",
        type=Path,
        metavar="FILE",
        help="verify with this public key (keys export-public) instead of the key ring",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="write a picture of every frame that is not authentic, changed regions outlined",
    )
    add_json(parser, "instance")


def run(arguments: argparse.Namespace) -> int:
    """Check every file; an unreadable one is a verdict too."""
    from dicom_node.inference import open_engine
    from dicom_node.keys import KeyRing
    from dicom_node.verify.check import check_instance
    from dicom_node.verify.report import write_pictures

    config = config_of(arguments)
    inputs = walk(arguments.paths)
    if arguments.public_key is None:
        ring = KeyRing.open(config.keys.directory)
    else:
        try:
            ring = KeyRing.from_public_pem(arguments.public_key.read_text("ascii"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{arguments.public_key}: not a readable PEM file: {error}"
            ) from error
    engine = open_engine(config.watermark.engine)
    verdicts: set[str] = set()
    with progress(len(inputs), "verifying") as advance:
        for item in inputs:
            try:
                verdict = check_instance(item.path, ring, engine)
                result = verdict.to_json()
                if arguments.report is not None:
                    folder = arguments.report / item.relative.parent
                    write_pictures(item.path, verdict, folder, item.relative.name)
            except (NodeError, OSError) as error:
                result = _unreadable(item.path, str(error))
            verdicts.add(str(result["verdict"]))
            if arguments.json:
                print_json(result)
            else:
                print(_line(result), flush=True)
            advance()
    return exit_code(verdicts)


def exit_code(verdicts: set[str]) -> int:
    """Return 1 if anything was found not authentic, else 3 if anything could not be read."""
    if verdicts - {"authentic", "unreadable"}:
        return EXIT_NOT_AUTHENTIC
    return EXIT_FAILED if "unreadable" in verdicts else EXIT_OK


def _unreadable(path: Path, reason: str) -> dict[str, Any]:
    return {
        "path": str(path),
        "sop_instance_uid": "",
        "verdict": "unreadable",
        "owner": None,
        "signed_by": None,
        "marked_at": None,
        "header": {"changed": []},
        "frames": [],
        "reason": reason,
    }


def _line(result: dict[str, Any]) -> str:
    parts = [str(result["path"]), str(result["verdict"])]
    if result.get("owner"):
        parts.append(f"marked by {result['owner']} at {result['marked_at']}")
    changed = result["header"]["changed"]
    if changed:
        parts.append("changed in the header: " + ", ".join(map(str, changed)))
    for frame in result["frames"]:
        places = [
            f"rows {box['row']}-{box['row'] + box['rows'] - 1},"
            f" columns {box['column']}-{box['column'] + box['columns'] - 1}"
            for box in frame["tampered"]
        ]
        if places:
            parts.append(f"frame {frame['frame']} changed at " + "; ".join(places[:8]))
    if result.get("reason"):
        parts.append(str(result["reason"]))
    return "  ".join(parts)
