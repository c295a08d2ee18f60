"""``dicom-node restore``: bit-exact originals from marked files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dicom_node.cli.common import (
    EXIT_FAILED,
    EXIT_OK,
    Subparsers,
    add_command,
    add_json,
    complain,
    config_of,
    print_json,
    progress,
    refuse_overwriting,
    walk,
)
from dicom_node.errors import NodeError


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "restore",
        run,
        summary="take both marks off again: bit-exact originals (needs the keys)",
        exit_codes={
            0: "every file was restored, and the signed digest proves it",
            3: "at least one could not be read or restored exactly; the others are done",
        },
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="files or folders")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where results go")
    add_json(parser, "instance")


def run(arguments: argparse.Namespace) -> int:
    """Restore every file; report the bad ones and go on."""
    from dicom_node.keys import KeyRing
    from dicom_node.marking import restore

    config = config_of(arguments)
    inputs = walk(arguments.paths)
    refuse_overwriting(inputs, arguments.out)
    ring = KeyRing.open(config.keys.directory)
    code = EXIT_OK
    with progress(len(inputs), "restoring") as advance:
        for item in inputs:
            result: dict[str, Any] = {"path": str(item.path), "out": None}
            try:
                out = item.under(arguments.out)
                outcome = restore(item.path, out, ring)
                result["out"] = str(out) if out.exists() else None
                result |= {"exact": outcome.exact, "reason": outcome.reason}
            except (NodeError, OSError) as error:
                result |= {"exact": False, "reason": str(error)}
            if not result["exact"]:
                code = EXIT_FAILED
            if arguments.json:
                print_json(result)
            elif result["exact"]:
                print(f"{item.path}  exact  {result['out']}", flush=True)
            else:
                complain(item.path, f"not restored: {result['reason']}")
            advance()
    return code
