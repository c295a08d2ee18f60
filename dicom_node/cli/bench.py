"""``dicom-node bench``: the tables of docs/BENCHMARKS.md, measured again."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table as RichTable

from dicom_node.cli.common import (
    EXIT_OK,
    Subparsers,
    add_command,
    config_of,
    print_json,
    progress,
)

if TYPE_CHECKING:
    from dicom_node.bench.report import Table
    from dicom_node.config import Config

_LINES = 10  # of a stage, where no bar can be shown


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "bench",
        run,
        summary="measure how good the marks are and how fast the node is",
        exit_codes={
            0: "measured (whatever the figures are)",
            3: "it could not be measured: a process failed, instances did not arrive",
        },
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    fidelity = kinds.add_parser("fidelity", help="image quality, restoration, robustness")
    fidelity.add_argument(
        "data", nargs="+", type=Path, metavar="DATA",
        help="folders of DICOM objects or pictures; a MANIFEST.csv in one selects the test set",
    )  # fmt: skip
    fidelity.add_argument(
        "--limit", type=_positive, metavar="N", help="at most N frames of each modality"
    )
    robustness = kinds.add_parser("robustness", help="every attack on the robust mark, and peers")
    _add_robustness(robustness)
    fingerprint = kinds.add_parser("fingerprint", help="what it finds, and what it mistakes")
    fingerprint.add_argument(
        "data", nargs="+", type=Path, metavar="DATA",
        help="folders of DICOM objects or pictures; a MANIFEST.csv in one selects the test set",
    )  # fmt: skip
    fingerprint.add_argument(
        "--limit", type=_positive, metavar="N", help="at most N frames of each modality"
    )
    throughput = kinds.add_parser("throughput", help="instances per second, CPU time, memory")
    throughput.add_argument("--instances", type=_positive, default=300, metavar="N")
    throughput.add_argument("--rounds", type=_positive, default=3, metavar="N")
    throughput.add_argument(
        "--scenarios", default="abc", metavar="abc",
        help="a: Orthanc auto-routing, b: node without marking, c: node with marking",
    )  # fmt: skip
    throughput.add_argument(
        "--source", action="append", type=Path, metavar="PATH",
        help="CT slices of 512 x 512 to make the instances of (default: a made-up one, which the"
        " tables say)",
    )  # fmt: skip
    throughput.add_argument(
        "--profile", action="store_true",
        help="instead, mark one CT many times and show where the CPU time goes",
    )  # fmt: skip
    for each in (fidelity, robustness, fingerprint, throughput):
        each.add_argument("--out", type=Path, metavar="DIR", help="write Markdown and JSON there")
        each.add_argument("--json", action="store_true", help="print one JSON object, no tables")


def _add_robustness(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", nargs="+", type=Path, metavar="DATA",
        help="folders of DICOM objects or pictures; a MANIFEST.csv in one selects the test set",
    )  # fmt: skip
    parser.add_argument(
        "--frames-per-modality", type=_positive, metavar="N",
        help="at most N frames of each modality (default: all)",
    )
    parser.add_argument(
        "--attacks", nargs="+", default=[], metavar="NAME",
        help="attacks or families of them (default: all; a wrong name lists them)",
    )
    parser.add_argument(
        "--workers", type=_positive, default=_cores(), metavar="N",
        help="processes, one thread each (default: one a core, %(default)s here)",
    )
    parser.add_argument(
        "--search-s", type=_seconds, default=3.0, metavar="S",
        help="CPU seconds for one search of the pose, 0 for none (default: %(default)s)",
    )
    parser.add_argument(
        "--search-frames", type=_positive, default=8, metavar="N",
        help="try attacks that take a search on N frames of each modality (default: %(default)s)",
    )
    parser.add_argument(
        "--peer-frames", type=_whole, default=2, metavar="N",
        help="run the peers on N frames of each modality, 0 for none (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    config = config_of(arguments)
    name, tables, values = _measure(arguments, config)
    if arguments.out is not None:
        from dicom_node.bench.report import write

        write(arguments.out, name, tables, values)
    if arguments.json:
        print_json(values)
    else:
        _print(tables)
    return EXIT_OK


def _measure(
    arguments: argparse.Namespace, config: Config
) -> tuple[str, list[Table], dict[str, Any]]:
    if arguments.kind == "fidelity":
        return _fidelity(arguments, config)
    if arguments.kind == "robustness":
        return _robustness(arguments, config)
    if arguments.kind == "fingerprint":
        return _fingerprint(arguments, config)
    sources = arguments.source or []
    if arguments.profile:
        from dicom_node.bench import profile

        spent = profile.profile(sources, config.watermark)
        stages = {"stage_ms": spent.stage_ms, "total_ms": spent.total_ms}
        return "profile", profile.tables(spent), stages
    from dicom_node.bench import throughput

    result = throughput.run(
        sources, instances=arguments.instances, rounds=arguments.rounds,
        scenarios=_scenarios(arguments.scenarios), report=_say,
    )  # fmt: skip
    return "throughput", throughput.tables(result), throughput.to_json(result)


def _fidelity(
    arguments: argparse.Namespace, config: Config
) -> tuple[str, list[Table], dict[str, Any]]:
    from dicom_node.bench import fidelity, fidelity_tables, frames

    samples = frames.select(arguments.data, limit=arguments.limit)
    if not arguments.json:
        _say(f"{len(samples)} files, {sum(len(each.frames) for each in samples)} frames")
    with progress(len(samples), "measuring") as advance:
        result = fidelity.run(samples, config.watermark, pictures=arguments.out, advance=advance)
    return "fidelity", fidelity_tables.tables(result), fidelity.to_json(result)


def _fingerprint(
    arguments: argparse.Namespace, config: Config
) -> tuple[str, list[Table], dict[str, Any]]:
    from dicom_node.bench import fingerprint, fingerprint_tables, frames

    samples = frames.select(arguments.data, limit=arguments.limit)
    if not arguments.json:
        _say(f"{len(samples)} files, those of {fingerprint.CALIBRATION} left out")
    with progress(len(samples), "measuring") as advance:
        result = fingerprint.run(
            samples, config.watermark.profile, pictures=arguments.out, advance=advance
        )
    return "fingerprint", fingerprint_tables.tables(result), fingerprint.to_json(result)


def _robustness(
    arguments: argparse.Namespace, config: Config
) -> tuple[str, list[Table], dict[str, Any]]:
    from dicom_node.bench import attacks, frames
    from dicom_node.bench.robustness import measure, plots, tables

    chosen = attacks.choose(arguments.attacks)
    samples = frames.select(arguments.data, limit=arguments.frames_per_modality)
    if not arguments.json:
        count = sum(len(each.frames) for each in samples)
        _say(f"{len(samples)} files, {count} frames, {len(chosen)} attacks")
    plan = measure.Plan(
        chosen, processes=arguments.workers, search_s=arguments.search_s,
        search_frames=arguments.search_frames, peer_frames=arguments.peer_frames,
        pictures=arguments.out,
    )  # fmt: skip

    def stage(steps: int, name: str) -> AbstractContextManager[Callable[[], None]]:
        return progress(steps, name) if arguments.json else _stage(steps, name)

    result = measure.run(samples, config.watermark, plan, stage)
    if arguments.out is not None and not plots.draw(result, arguments.out):
        result.not_measured.append(plots.MISSING)
    return "robustness", tables.tables(result), measure.to_json(result)


def _scenarios(text: str) -> Sequence[str]:
    from dicom_node.bench.throughput import SCENARIOS
    from dicom_node.errors import ConfigError

    unknown = set(text) - set(SCENARIOS)
    if unknown or not text:
        raise ConfigError(f"--scenarios {text}: use letters of {''.join(SCENARIOS)}")
    return [scenario for scenario in SCENARIOS if scenario in text]


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("a number of 1 or more")
    return number


def _whole(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("a number of 0 or more")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError("a number of seconds, 0 or more")
    return number


def _cores() -> int:
    return len(os.sched_getaffinity(0))


@contextmanager
def _stage(steps: int, name: str) -> Iterator[Callable[[], None]]:
    """Say what begins, with a bar on a terminal; else a line each tenth: a run takes hours."""
    _say(f"{name}: {steps}")
    done = 0
    with progress(steps, name) as advance:

        def step() -> None:
            nonlocal done
            done += 1
            advance()
            if not sys.stderr.isatty() and done * _LINES // steps > (done - 1) * _LINES // steps:
                _say(f"{name}: {done} of {steps}")

        yield step


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print(tables: Sequence[Table]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 200)
    for table in tables:
        shown = RichTable(title=table.title, title_justify="left")
        for column in table.columns:
            shown.add_column(column, overflow="fold")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
