"""What the commands share: options, exit codes, walking folders, JSON lines, the progress bar."""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from dicom_node.config import Config, load
from dicom_node.errors import ConfigError, NodeError
from dicom_node.logging import describe

_log = structlog.get_logger(__name__)

EXIT_OK = 0
EXIT_NOT_AUTHENTIC = 1
EXIT_USAGE = 2
EXIT_FAILED = 3

Subparsers = Any  # argparse has no public name for what add_subparsers() returns


def add_command(
    subparsers: Subparsers,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    summary: str,
    exit_codes: Mapping[int, str],
) -> argparse.ArgumentParser:
    """Add one command with ``--config`` and a help text that ends with its exit codes."""
    codes = dict(exit_codes) | {EXIT_USAGE: "wrong usage or configuration"}
    lines = [f"  {code}  {meaning}" for code, meaning in sorted(codes.items())]
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=summary,
        description=summary,
        epilog="exit codes:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_config(parser, None)
    parser.set_defaults(run=run)
    return parser


def add_action(actions: Subparsers, name: str, **more: Any) -> argparse.ArgumentParser:
    """Add one action of a command; ``--config`` may stand before or after it."""
    parser: argparse.ArgumentParser = actions.add_parser(name, **more)
    _add_config(parser, argparse.SUPPRESS)
    return parser


def _add_config(parser: argparse.ArgumentParser, default: Any) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        default=default,
        metavar="FILE",
        help="configuration (default: conf/node.toml here, else the packaged defaults)",
    )


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help=f"one JSON object per line and {what}")


def config_of(arguments: argparse.Namespace) -> Config:
    """Read the configuration a command was told to use (ConfigError)."""
    return load(arguments.config)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON line; what is not a finite number is null."""
    print(json.dumps(_finite(value), ensure_ascii=False), flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


@dataclass(frozen=True)
class Input:
    """One file to work on; `relative` is where its result goes below ``--out``."""

    path: Path
    relative: Path

    @property
    def hidden(self) -> bool:
        """Whether the file or a folder on the way to it begins with a dot."""
        return any(part.startswith(".") for part in self.relative.parts)

    def under(self, out: Path) -> Path:
        """Return the result's path, its folder made."""
        target = out / self.relative
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def walk(paths: Sequence[Path]) -> list[Input]:
    """Return every file named or below a named folder, in a stable order; hidden ones are left out.

    A link to nothing is a file that cannot be read: it is not passed over.

    Raises
    ------
    ConfigError
        If a path does not exist, a folder holds no file, or two files would have the same relative
        path.
    """
    found: list[Input] = []
    for path in paths:
        if path.is_dir():
            inside = [Input(each, each.relative_to(path)) for each in sorted(path.rglob("*"))]
            files = [item for item in inside if _is_file(item.path) and not item.hidden]
            if not files:
                raise ConfigError(f"{path}: no file in this folder")
            found += files
        elif _is_file(path):
            found.append(Input(path, Path(path.name)))
        else:
            raise ConfigError(f"{path}: no such file or folder")
    seen: dict[Path, Path] = {}
    for item in found:
        other = seen.setdefault(item.relative, item.path)
        if other.resolve() != item.path.resolve():
            raise ConfigError(
                f"{other} and {item.path} would both become {item.relative}; name their folder"
            )
    return list({item.relative: item for item in found}.values())


def _is_file(path: Path) -> bool:
    return path.is_file() or (path.is_symlink() and not path.exists())


def refuse_overwriting(inputs: Iterable[Input], out: Path) -> None:
    """Raise ConfigError if a result would replace its own source."""
    for item in inputs:
        if (out / item.relative).resolve() == item.path.resolve():
            raise ConfigError(f"--out {out}: would overwrite {item.path}; name another folder")


@contextmanager
def put_in_place(out: Path) -> Iterator[Path]:
    """Yield where to write a result; a whole one takes its place, of a broken one nothing stays."""
    with tempfile.TemporaryDirectory(prefix=".dicom-node-", dir=out.parent) as folder:
        result = Path(folder) / out.name
        yield result
        if result.exists():
            result.replace(out)


@contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[], None]]:
    """Show a progress bar on a terminal, nothing in a pipe; yields what to call after each step."""
    if total < 2 or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


def complain(path: Path, reason: str) -> None:
    """Report one bad file on standard error."""
    print(f"{path}: {reason}", file=sys.stderr, flush=True)


def reason_of(error: Exception) -> str:
    """Say why one file failed; what nobody foresaw goes to the log, with its traceback."""
    if isinstance(error, NodeError | OSError):
        return str(error)
    _log.error("unexpected_failure", exc_info=error)
    return f"fault in dicom-node: {describe(error)}"
