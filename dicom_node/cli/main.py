"""``dicom-node``: parse the command line, run one command, turn errors into exit codes."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging as levels
import os
import sys
from collections.abc import Sequence

from dicom_node import __version__, logging
from dicom_node.cli.common import EXIT_FAILED, EXIT_USAGE, reason_of
from dicom_node.config import ONE_THREAD
from dicom_node.errors import ConfigError, NodeError

COMMANDS = (
    "serve", "demo", "mark", "verify", "restore", "trace", "audit", "audit-log", "queue", "keys",
    "config", "engines", "bench",
)  # fmt: skip


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """Return the parser with every command of this release, or with one that is known."""
    parser = argparse.ArgumentParser(
        prog="dicom-node",
        description="A DICOM network node that watermarks every image on its way to the PACS.",
    )
    parser.add_argument("--version", action="version", version=f"dicom-node {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS if only is None else (only,):
        module = f"dicom_node.cli.{name.replace('-', '_')}"
        # A command that this release does not have has no module.
        if importlib.util.find_spec(module) is not None:
            importlib.import_module(module).register(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    # Before numpy is loaded: threads that spin make small products three times slower.
    for name, value in ONE_THREAD.items():
        os.environ.setdefault(name, value)
    asked = next(iter(sys.argv[1:] if argv is None else argv), None)
    # The others take as long to load as the one that is asked for.
    arguments = build_parser(asked if asked in COMMANDS else None).parse_args(argv)
    serves = arguments.command == "serve"
    logging.configure(level=levels.INFO if serves else levels.WARNING)
    try:
        return int(arguments.run(arguments))
    except ConfigError as error:
        print(f"dicom-node: {error}", file=sys.stderr)
        return EXIT_USAGE
    except NodeError as error:
        print(f"dicom-node: {error}", file=sys.stderr)
        return EXIT_FAILED
    except BrokenPipeError:
        # The reader has seen enough; keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - 1, the interpreter's own, would say "not authentic"
        print(f"dicom-node: {reason_of(error)}", file=sys.stderr)
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
