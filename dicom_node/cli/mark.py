"""``dicom-node mark``: mark files offline, by the same code as the node."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dicom_node.cli.common import (
    EXIT_FAILED,
    EXIT_OK,
    Input,
    Subparsers,
    add_command,
    add_json,
    complain,
    config_of,
    print_json,
    progress,
    reason_of,
    refuse_overwriting,
    walk,
)
from dicom_node.errors import ReferencesPending

if TYPE_CHECKING:
    from dicom_node.marking import Marker
    from dicom_node.naming import BatchNames


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "mark",
        run,
        summary="mark files offline, by the same code as the node",
        exit_codes={
            0: "every file has a result in --out (marked, or passed on by policy)",
            3: "a file could not be read or marked and has none; the others are done",
        },
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="files or folders")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where results go")
    add_json(parser, "instance")


def run(arguments: argparse.Namespace) -> int:
    """Mark every file; report the bad ones and go on."""
    from dicom_node.audit.recording import key_used, recorded
    from dicom_node.inference import open_engine
    from dicom_node.keys import KeyRing
    from dicom_node.marking import Marker
    from dicom_node.naming import BatchNames

    config = config_of(arguments)
    inputs = walk(arguments.paths)
    refuse_overwriting(inputs, arguments.out)
    ring = KeyRing.open(config.keys.directory)
    engine = open_engine(config.watermark.engine)
    names = BatchNames(ring.uid_key) if config.watermark.uid_policy == "derive" else None
    marker = Marker(config.watermark, ring, engine, measure=True, names=names)
    if inputs:
        with recorded(config, ring) as record:
            record(key_used(ring, "sign"))
    code = EXIT_OK
    with progress(len(inputs), "marking") as advance:
        for result in _results(marker, names, inputs, arguments.out):
            if result["out"] is None:
                code = EXIT_FAILED
            if arguments.json:
                print_json(result)
            elif result["out"] is None:
                complain(Path(result["path"]), f"{result['action']}: {result['reason']}")
            else:
                print(_line(result), flush=True)
            advance()
    return code


def _results(
    marker: Marker, names: BatchNames | None, inputs: Sequence[Input], out_folder: Path
) -> Iterator[dict[str, Any]]:
    """Mark every file; what refers to others comes when it is known what became of those."""
    waiting = []
    for item in inputs:
        try:
            yield _mark(marker, item, out_folder)
        except ReferencesPending:
            waiting.append(item)
    if names is not None:
        names.all_tried()
    for item in waiting:
        yield _mark(marker, item, out_folder)


def _mark(marker: Marker, item: Input, out_folder: Path) -> dict[str, Any]:
    nothing = {"frames": 0, "message": [], "psnr_db": None, "ssim": None, "max_change": None}
    result: dict[str, Any] = {"path": str(item.path), "out": None}
    try:
        out = item.under(out_folder)
        outcome = marker.mark(item.path, out, marked_at=datetime.now(UTC).replace(microsecond=0))
    except ReferencesPending:
        raise
    except Exception as error:  # noqa: BLE001 - one file's failure must not stop the others
        return result | {"action": "held", "reason": reason_of(error)} | nothing
    written = outcome.action not in ("held", "rejected")
    return result | {
        "out": str(out) if written else None,
        "action": outcome.action,
        "reason": outcome.reason,
        "frames": outcome.frames,
        "message": list(outcome.message),
        "psnr_db": outcome.psnr_db,
        "ssim": outcome.ssim,
        "max_change": outcome.max_change,
    }


def _line(result: dict[str, Any]) -> str:
    parts = [result["path"], result["action"]]
    if result["psnr_db"] is not None:
        parts.append(f"{result['frames']} frames, {result['psnr_db']:.1f} dB")
    if result["reason"]:
        parts.append(result["reason"])
    return "  ".join(parts)
