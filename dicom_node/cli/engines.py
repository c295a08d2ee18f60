"""``dicom-node engines``: the networks."""

from __future__ import annotations

import argparse

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


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "engines",
        run,
        summary="list the networks, or check that they are unaltered and work on this machine",
        exit_codes={0: "all well", 3: "a network is missing, altered or does not work"},
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text in (("list", "list the networks"), ("check", "run each on a known input")):
        add_json(add_action(actions, name, help=text), "network")


def run(arguments: argparse.Namespace) -> int:
    """Run one action."""
    from dicom_node.inference import check_engines, list_engines

    config_of(arguments)
    rows = list_engines() if arguments.action == "list" else check_engines()
    for row in rows:
        if arguments.json:
            print_json(row)
        else:
            print("  ".join(f"{key}={value}" for key, value in row.items()))
    failed = any(row.get("ok") is False for row in rows)
    return EXIT_FAILED if failed else EXIT_OK
