"""``dicom-node serve``: run the node."""

from __future__ import annotations

import argparse

from dicom_node.cli.common import Subparsers, add_command, config_of
from dicom_node.node import serve


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "serve",
        run,
        summary="run the node; prints 'ready: ...' once it accepts associations",
        exit_codes={0: "stopped by SIGTERM or SIGINT, drained", 3: "a process could not start"},
    )
    parser.add_argument(
        "--only",
        metavar="ROLE",
        help="one kind of process: receive, infer, mark, forward, forward:NAME, register, verify",
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal."""
    config = config_of(arguments)
    return serve(config, only=arguments.only, announce=lambda line: print(line, flush=True))
