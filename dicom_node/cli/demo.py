"""``dicom-node demo``: the whole main job on real studies, and a forgery that is caught."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from dicom_node.cli.common import (
    EXIT_OK,
    Subparsers,
    add_command,
    config_of,
    print_json,
)
from dicom_node.errors import ConfigError

if TYPE_CHECKING:
    from dicom_node.demo.story import Row

EXIT_NOT_HELD = 1


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "demo",
        run,
        summary="embedded PACS, node and real studies: send, mark, verify, forge, catch, restore",
        exit_codes={0: "every step held", 1: "a step did not hold; the logs' folder is printed"},
    )
    parser.add_argument(
        "--pacs",
        choices=("auto", "orthanc", "qrscp"),
        default="auto",
        help="auto: Orthanc if installed, else pynetdicom's qrscp",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("demo-out"), metavar="DIR", help="where pictures go"
    )
    parser.add_argument("--json", action="store_true", help="print the table as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Tell the story in a temporary folder and print its table."""
    from dicom_node.demo.story import Story

    settings = config_of(arguments).watermark
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {arguments.out}: {error.strerror}; name another") from error
    folder = Path(tempfile.mkdtemp(prefix="dicom-node-demo-"))
    held = False
    rows: list[Row] = []
    try:
        with _ended_by_sigterm(), _progress() as say:
            story = Story(folder, arguments.out.resolve(), arguments.pacs, settings, say, rows)
            held = story.run()
    finally:
        if held:
            shutil.rmtree(folder)
        else:
            print(f"dicom-node demo: logs and files are in {folder}", file=sys.stderr)
    if arguments.json:
        steps = [vars(row) for row in rows]
        print_json({"held": held, "pictures": str(arguments.out), "steps": steps})
    else:
        _print(rows, held, arguments.out)
    return EXIT_OK if held else EXIT_NOT_HELD


def _print(rows: list[Row], held: bool, out: Path) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("", "step", "seen", "figure"):
        table.add_column(title)
    table.add_column("s", justify="right")
    for row in rows:
        mark = "ok" if row.held else "FAILED"
        table.add_row(mark, row.step, row.seen, row.figure, f"{row.seconds:.1f}")
    console = Console()
    # In a pipe there is no width to fit; a cut line would hide what was seen.
    console.width = console.width if console.is_terminal else 160
    console.print(table)
    total = sum(row.seconds for row in rows)
    if held:
        console.print(f"\nEvery step held, in {total:.0f} s. Pictures are in {out}.")
    else:
        console.print("\nThe last step did not hold.", style="bold red")


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Show the step in hand on a terminal, nothing in a pipe."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _step: None
        return
    with console.status("starting") as status:
        yield lambda step: status.update(f"{step} ...")


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind like Ctrl-C does, so that every child is ended."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
