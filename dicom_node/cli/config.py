"""``dicom-node config``: check and show the configuration."""

from __future__ import annotations

import argparse
import json
from typing import Any

from dicom_node.cli.common import (
    Subparsers,
    add_action,
    add_command,
    add_json,
    config_of,
    print_json,
)
from dicom_node.config import Config
from dicom_node.errors import SpoolError
from dicom_node.spool.destinations import NOT_NAMED, open_deliveries, unknown


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "config",
        run,
        summary="check or show the configuration",
        exit_codes={0: "it can be used", 2: "it cannot: the message names key, value and fix"},
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add_action(actions, "check", help="say whether it can be used")
    show = add_action(actions, "show", help="print it with every default filled in")
    add_json(show, "configuration")


def run(arguments: argparse.Namespace) -> int:
    """Run one action."""
    config = config_of(arguments)
    values = config.model_dump(mode="json")
    if arguments.action == "check":
        origin = arguments.config or "the configuration"
        print(f"{origin}: can be used")
        if not config.destination:
            print("note: no [[destination]]: marked instances are held until there is one")
        for note in _notes_on_the_spool(config):
            print(f"note: {note}")
    elif arguments.json:
        print_json(values)
    else:
        print(to_toml(values), end="")
    return 0


def _notes_on_the_spool(config: Config) -> list[str]:
    """Say what waits for destinations that are not named any more."""
    try:
        waiting = open_deliveries(config.spool.directory)
    except SpoolError as error:
        return [f"whether anything waits for another destination is unknown: {error}"]
    names = [destination.name for destination in config.destination]
    return [
        f"instances not yet delivered to {name!r}: {count}; {NOT_NAMED.format(name=name)}"
        for name, count in unknown(waiting, names).items()
    ]


def to_toml(values: dict[str, Any]) -> str:
    """Return two levels of tables and arrays of tables as TOML."""
    lines: list[str] = []
    for name, section in values.items():
        for header, table in _tables(name, section):
            lines.append(header)
            # JSON strings, numbers and booleans are TOML as they are.
            lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
            lines.append("")
    return "\n".join(lines)


def _tables(name: str, section: Any) -> list[tuple[str, dict[str, Any]]]:
    if isinstance(section, dict):
        return [(f"[{name}]", section)]
    return [(f"[[{name}]]", table) for table in section]
