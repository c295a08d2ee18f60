"""``dicom-node engines``: the networks and what runs them."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from dicom_node.cli.common import (
    EXIT_FAILED,
    EXIT_OK,
    Subparsers,
    add_action,
    add_command,
    add_json,
    config_of,
    print_json,
)

_CAPABILITY = re.compile(r"SM\d{2,3}")


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "engines",
        run,
        summary="list the networks, check every backend of this machine, compile for a GPU",
        exit_codes={
            0: "all well",
            3: "a network is missing, altered or does not work, or a plan cannot be built",
        },
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add_json(add_action(actions, "list", help="list the networks"), "network")
    check = "compare every backend of this machine with ONNX Runtime on the CPU, on real frames"
    add_json(add_action(actions, "check", help=check), "network and backend")
    build = add_action(actions, "build", help="compile TensorRT plans for this machine")
    add_json(build, "plan")
    build.add_argument(
        "--for",
        dest="capabilities",
        nargs="+",
        default=[],
        type=_capability,
        metavar="SM89",
        help="compute capabilities of GPUs that are elsewhere (TensorRT for RTX only)",
    )
    build.add_argument(
        "--out", type=Path, metavar="DIR", help="where to (default: the cache the node looks in)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run one action."""
    config_of(arguments)
    rows = _rows(arguments)
    for row in rows:
        if arguments.json:
            print_json(row)
        else:
            print("  ".join(f"{key}={value}" for key, value in row.items()))
    failed = any(row.get("ok") is False for row in rows)
    return EXIT_FAILED if failed else EXIT_OK


def _rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from dicom_node.inference import check_engines, list_engines

    if arguments.action == "list":
        return list_engines()
    if arguments.action == "check":
        return check_engines()
    from dicom_node.inference.catalogue import read_card
    from dicom_node.inference.tensorrt import build_plans

    return build_plans(read_card(), arguments.capabilities, arguments.out)


def _capability(text: str) -> str:
    if not _CAPABILITY.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r}: write a compute capability as SM89")
    return text
