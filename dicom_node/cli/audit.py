"""``dicom-node audit``: fetch studies from the PACS and re-check them."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dicom_node.cli.common import (
    EXIT_FAILED,
    EXIT_NOT_AUTHENTIC,
    EXIT_OK,
    Subparsers,
    add_command,
    add_json,
    config_of,
    print_json,
)
from dicom_node.errors import ConfigError
from dicom_node.verify.headers import is_unsealed

if TYPE_CHECKING:
    from dicom_node.verify.audit_run import RunFile, Summary
    from dicom_node.verify.inspector import Inspector
    from dicom_node.verify.study import StudyCheck

_UID = re.compile(r"[0-9.]{1,64}")
_NAMED = 5
_CHECKED_BY = "audit"
_WHICH_DAYS = """\
A day means two things: the Study Date that the PACS has, and the day (local time) on which this
node marked a study. What was marked on these days and delivered to the PACS is looked for there,
and named as missing where it is gone. The registry keeps no Study Date: that a study was deleted
shows in an audit of the days on which it was marked. For one that was sent later than it was
acquired these are not its Study Date; leave --until out to have them all."""
_SAY_WHICH = "say which studies: --study, --since, --until, --modality or --sample"


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers, "audit", run,
        summary="fetch studies from the PACS, re-check every instance, and name what is missing",
        exit_codes={
            0: "every instance is authentic and none is missing; a changed header is named",
            1: "at least one is not authentic or missing",
            3: "at least one study could not be checked (PACS or registry is away); all others are"
               " authentic and whole",
        },
    )  # fmt: skip
    which = parser.add_argument_group("which studies", _WHICH_DAYS)
    which.add_argument("--study", nargs="+", metavar="UID", help="Study Instance UIDs")
    which.add_argument("--since", type=_day, metavar="DATE", help="this day, YYYY-MM-DD, or later")
    which.add_argument("--until", type=_day, metavar="DATE", help="this day or earlier")
    which.add_argument(
        "--modality", default="", metavar="CS",
        help="with a series of this, as CT: all of them, or of the dates, or of the sample",
    )  # fmt: skip
    which.add_argument(
        "--sample", type=_number, metavar="N",
        help="studies drawn by chance, of the dates or else of what was marked, with about N"
             " instances in all",
    )  # fmt: skip
    parser.add_argument(
        "--resume", type=Path, metavar="FILE",
        help="keep the plan and what is finished in FILE; where it is there, go on with it",
    )  # fmt: skip
    parser.add_argument("--report", type=Path, metavar="DIR", help="write reports on every study")
    add_json(parser, "study, and a summary at the end")


def run(arguments: argparse.Namespace) -> int:
    """Check every study of the plan; one that cannot be checked does not end the run."""
    _check_usage(arguments)
    from dicom_node.audit.recording import account
    from dicom_node.verify import audit_run
    from dicom_node.verify.audit_run import RunFile
    from dicom_node.verify.inspector import Inspector
    from dicom_node.verify.telling import verdict_given

    config = config_of(arguments)
    file = RunFile(arguments.resume)
    if not (file.begun or _selects(arguments)):
        raise ConfigError(_SAY_WHICH)
    with Inspector(config, listen=False) as inspector:
        if not file.begun:
            file.begin(_plan(arguments, inspector))
        if file.finished:
            _say(f"{len(file.finished)} of {len(file.studies)} studies were finished before")
        with _bar(len(file.left)) as (progress, advance):

            def told(check: StudyCheck) -> None:
                advance()
                reported = arguments.report is not None and bool(check.instances)
                how = "report" if reported else "command"
                if check.instances or check.absent:
                    inspector.recorder.record(
                        verdict_given(check, account(), how, missing=len(check.absent))
                    )
                _tell(check, as_json=arguments.json)
                if reported:
                    _report(check, arguments.report, inspector)

            summary = audit_run.run(
                inspector, file, checked_by=_CHECKED_BY, told=told, progress=progress,
                keep_files=arguments.report is not None,
            )  # fmt: skip
    _sum_up(summary, file, as_json=arguments.json)
    return exit_code(summary)


def exit_code(summary: Summary) -> int:
    """Return 1 if anything was found not sound, else 3 if anything could not be checked."""
    if summary.unsound:
        return EXIT_NOT_AUTHENTIC
    return EXIT_FAILED if summary.failed else EXIT_OK


def _selects(arguments: argparse.Namespace) -> bool:
    return bool(arguments.study or _is_searched(arguments) or arguments.sample is not None)


def _is_searched(arguments: argparse.Namespace) -> bool:
    return bool(arguments.since or arguments.until or arguments.modality)


def _check_usage(arguments: argparse.Namespace) -> None:
    named = bool(arguments.study)
    if named and (_is_searched(arguments) or arguments.sample is not None):
        raise ConfigError(
            "--study names the studies: leave out --since, --until, --modality and --sample"
        )
    if arguments.resume is None and not _selects(arguments):
        raise ConfigError(_SAY_WHICH)
    for uid in arguments.study or ():
        if not _UID.fullmatch(uid):
            raise ConfigError(f"--study {uid!r}: not a UID")


def _plan(arguments: argparse.Namespace, inspector: Inspector) -> tuple[str, ...]:
    from dicom_node.verify import audit_run

    if arguments.study:
        return tuple(dict.fromkeys(arguments.study))
    size: int | None = arguments.sample
    if size is not None and not (arguments.since or arguments.until):
        return audit_run.sample(inspector, size, arguments.modality)
    found = audit_run.by_date(inspector, arguments.since, arguments.until, arguments.modality)
    return found if size is None else audit_run.draw(inspector, found, size)


def _tell(check: StudyCheck, *, as_json: bool) -> None:
    if as_json:
        print_json(check.to_json())
        return
    counted = ", ".join(f"{number} {verdict}" for verdict, number in check.counts.items())
    parts = [check.study_instance_uid, check.verdict or "not there", counted]
    for what, uids in (
        ("missing", check.absent), (check.failure, check.unsent),
        ("extra", check.extra), ("transcoded", check.transcoded),
        ("stripped of our marks", check.stripped),
        ("older than delivered", check.superseded),
    ):  # fmt: skip
        if uids:
            more = f" and {len(uids) - _NAMED} more" if len(uids) > _NAMED else ""
            parts.append(f"{what}: {', '.join(uids[:_NAMED])}{more}")
    if check.unregistered:
        parts.append(f"registry: {check.registry}")
    headers = check.headers
    if headers.changed:
        parts.append(f"headers changed: {headers.changed} ({headers.named})")
    if headers.unsealed:
        parts.append(f"headers not sealed: {headers.unsealed}")
    print("  ".join(part for part in parts if part), flush=True)
    for each in check.instances:
        verdict = each.verdict
        unsealed = is_unsealed(verdict.verdict, verdict.header_seal)
        if verdict.verdict != "authentic" or verdict.changed or unsealed:
            print(f"    {each.sop_instance_uid}  {_finding(verdict.to_json())}", flush=True)


def _finding(line: dict[str, Any]) -> str:
    said = [str(line["verdict"])]
    if line["header"]["changed"]:
        said.append("changed in the header: " + ", ".join(map(str, line["header"]["changed"])))
    for frame in line["frames"]:
        places = [
            f"rows {box['row']}-{box['row'] + box['rows'] - 1},"
            f" columns {box['column']}-{box['column'] + box['columns'] - 1}"
            for box in frame["tampered"]
        ]
        if places:
            said.append(f"frame {frame['frame']} changed at " + "; ".join(places[:_NAMED]))
    if line.get("reason"):
        said.append(str(line["reason"]))
    return "  ".join(said)


def _report(check: StudyCheck, folder: Path, inspector: Inspector) -> None:
    from dicom_node.audit.recording import key_used
    from dicom_node.verify.report import write_reports

    inspector.recorder.record(key_used(inspector.ring, "sign"))
    write_reports(check, folder, ring=inspector.ring, checked_by=_CHECKED_BY)


def _sum_up(summary: Summary, file: RunFile, *, as_json: bool) -> None:
    if as_json:
        print_json(summary.to_json())
        return
    for study, reason in summary.failed.items():
        print(f"{study}  not checked: {reason}", file=sys.stderr, flush=True)
    counted = ", ".join(f"{number} {verdict}" for verdict, number in summary.counts.items())
    unsent = f" ({summary.unsent} of these the PACS failed to send)" if summary.unsent else ""
    _say(
        f"{summary.studies} of {len(file.studies)} studies checked,"
        f" {sum(summary.counts.values())} instances: {counted or 'none'};"
        f" {summary.missing} missing{unsent}, {summary.extra} extra,"
        f" {summary.transcoded} transcoded;"
        f" {summary.headers_changed} headers changed, {summary.headers_unsealed} not sealed;"
        f" {len(summary.unsound)} studies not sound"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _bar(studies: int) -> Iterator[tuple[Callable[[int, int], None], Callable[[], None]]]:
    """Show studies and the instances of the one in hand on a terminal, nothing in a pipe."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _done, _total: None, lambda: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn())  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        whole, one = bar.add_task("studies", total=studies), bar.add_task("instances", total=None)

        def progress(done: int, total: int) -> None:
            if total:
                bar.update(one, completed=done, total=total)

        yield progress, lambda: bar.advance(whole)


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no date; write YYYY-MM-DD") from error


def _number(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of instances, 1 or more")
    return int(text)
