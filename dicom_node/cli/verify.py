"""``dicom-node verify``: a verdict per instance, and a report per study."""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dicom_node.audit.events import Event
from dicom_node.cli.common import (
    EXIT_FAILED,
    EXIT_NOT_AUTHENTIC,
    EXIT_OK,
    Input,
    Subparsers,
    add_command,
    add_json,
    complain,
    config_of,
    print_json,
    progress,
    reason_of,
    walk,
)
from dicom_node.config import Config
from dicom_node.errors import ConfigError, RegistryError

if TYPE_CHECKING:
    from dicom_node.keys import KeyRing
    from dicom_node.registry import Registry
    from dicom_node.registry.records import MarkedInstance
    from dicom_node.verify.checking import Checked, Setup
    from dicom_node.verify.study import CheckedInstance, StudyCheck
    from dicom_node.verify.verdict import InstanceVerdict

# Starting a worker takes as long as a few dozen checks: one is needed, more are worth it then.
_WORTH_A_POOL = 64
_AHEAD = 64  # verdicts that wait for an earlier, slower one


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "verify",
        run,
        summary="say of every instance whether it is what was marked, and if not, where it differs",
        exit_codes={
            0: "every instance is authentic",
            1: "at least one is not authentic",
            3: "at least one could not be read, all others are authentic; or no report was written",
        },
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="files or folders")
    parser.add_argument(
        "--public-key",
        type=Path,
        metavar="FILE",
        help="verify with this public key (keys export-public) instead of the key ring",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="write a picture of every frame that is not authentic, changed regions outlined, or of"
        " the first frame where all are; of every study a report: a page, a PDF, JSON (signed) and"
        " a DICOM structured report",
    )
    add_json(parser, "instance")


def run(arguments: argparse.Namespace) -> int:
    """Check every file; an unreadable one is a verdict too."""
    config = config_of(arguments)
    inputs = walk(arguments.paths)
    ring = _ring(arguments.public_key, config)
    # Whoever has no more than a public key is not where the registry is.
    at_node = arguments.public_key is None
    node = config if at_node else None
    with _registry(node) as registry, _trail(node, ring) as record:
        checked, whole = _check(arguments, config, inputs, registry, record)
        code = exit_code({each.verdict.verdict for each in checked})
        whole = _tell(arguments.report, checked, ring, registry, record) and whole
    return code if whole else code or EXIT_FAILED


def exit_code(verdicts: set[str]) -> int:
    """Return 1 if anything was found not authentic, else 3 if anything could not be read."""
    if verdicts - {"authentic", "unreadable"}:
        return EXIT_NOT_AUTHENTIC
    return EXIT_FAILED if "unreadable" in verdicts else EXIT_OK


def _check(
    arguments: argparse.Namespace, config: Config, inputs: Sequence[Input],
    registry: Registry | None, record: Callable[[Event], None],
) -> tuple[list[CheckedInstance], bool]:  # fmt: skip
    """Print a line for each file as it is checked; False if a picture could not be written."""
    from dicom_node.verify.checking import Setup
    from dicom_node.verify.telling import verified

    setup = Setup(
        config.keys.directory, config.watermark.engine,
        arguments.public_key.read_text("ascii") if arguments.public_key is not None else "",
        config.registry_url if registry is not None else "",
    )  # fmt: skip
    checked, whole = [], True
    with progress(len(inputs), "verifying") as advance:
        found = _found([item.path for item in inputs], setup)
        for item, each in zip(inputs, found, strict=True):
            verdict = each.verdict
            record(verified(each, "cli", datetime.now(UTC)))
            if arguments.report is not None:
                whole = _picture(item, verdict, arguments.report) and whole
            checked.append(each)
            if arguments.json:
                print_json(verdict.to_json())
            else:
                print(_line(verdict.to_json()), flush=True)
            advance()
    return checked, whole


def _picture(item: Input, verdict: InstanceVerdict, folder: Path) -> bool:
    """Write the pictures of one file; False if that failed, which has been said."""
    from dicom_node.verify.report import write_pictures

    try:
        write_pictures(item.path, verdict, folder / item.relative.parent, item.relative.name)
    except Exception as error:  # noqa: BLE001 - the others have pictures
        complain(item.path, f"no picture: {reason_of(error)}")
        return False
    return True


def _found(paths: Sequence[Path], setup: Setup) -> Iterator[CheckedInstance]:
    """Yield what is found of each file, in order; none of them can end this process."""
    from dicom_node.verify.checking import Task
    from dicom_node.verify.checking_pool import CheckingPool

    with CheckingPool(setup, workers=1 if len(paths) < _WORTH_A_POOL else 0) as pool:
        waiting: deque[Future[Checked]] = deque()
        for path in paths:
            waiting.append(pool.check(Task(path)))
            while waiting and (waiting[0].done() or len(waiting) > _AHEAD):
                yield waiting.popleft().result().found
        while waiting:
            yield waiting.popleft().result().found


def _tell(
    folder: Path | None, checked: Sequence[CheckedInstance], ring: KeyRing,
    registry: Registry | None, record: Callable[[Event], None],
) -> bool:  # fmt: skip
    """Record the verdict on every study and report it; False if a report could not be written."""
    from dicom_node.audit.recording import account
    from dicom_node.verify.study import study_check
    from dicom_node.verify.telling import verdict_given

    studies: dict[str, list[CheckedInstance]] = {}
    for each in checked:
        studies.setdefault(each.study_instance_uid, []).append(each)
    whole = True
    for uid, members in studies.items():
        entries: Sequence[MarkedInstance] = ()
        unknown = ""
        if folder is not None and registry is not None and uid:
            try:
                entries = registry.instances(study_instance_uid=uid)
            except RegistryError as error:
                unknown = reason_of(error)
        study = study_check(uid, members, entries)
        record(verdict_given(study, account(), "command" if folder is None else "report"))
        if folder is not None and (unknown := unknown or _report(folder, study, ring, record)):
            complain(folder, f"no report on study {uid or '(unknown)'}: {unknown}")
            whole = False
    return whole


def _report(
    folder: Path, study: StudyCheck, ring: KeyRing, record: Callable[[Event], None]
) -> str:
    """Write the reports on a study; return why not, "" if they are written."""
    from dicom_node.audit.recording import key_used
    from dicom_node.verify.report import write_reports

    record(key_used(ring, "sign"))
    try:
        write_reports(study, folder, ring=ring, checked_by="cli")
    except Exception as error:  # noqa: BLE001 - the other studies have reports
        return reason_of(error)
    return ""


def _ring(public_key: Path | None, config: Config) -> KeyRing:
    from dicom_node.keys import KeyRing

    if public_key is None:
        return KeyRing.open(config.keys.directory)
    try:
        return KeyRing.from_public_pem(public_key.read_text("ascii"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{public_key}: not a readable PEM file: {error}") from error


@contextmanager
def _trail(config: Config | None, ring: KeyRing) -> Iterator[Callable[[Event], None]]:
    """Give what records an event where there is a node; it does nothing elsewhere."""
    if config is None:
        yield lambda event: None
        return
    from dicom_node.audit.recording import recorded

    with recorded(config, ring) as record:
        yield record


@contextmanager
def _registry(config: Config | None) -> Iterator[Registry | None]:
    """Open the registry if this machine has one; verifying files makes none."""
    file = None if config is None else config.spool.directory / "registry.sqlite"
    if config is None or not (config.registry.url or (file is not None and file.is_file())):
        yield None
        return
    from dicom_node.registry import Registry

    with Registry.open(config.registry_url) as registry:
        yield registry


def _line(result: dict[str, Any]) -> str:
    parts = [str(result["path"]), str(result["verdict"])]
    if result.get("owner"):
        parts.append(f"marked by {result['owner']} at {result['marked_at']}")
    changed = result["header"]["changed"]
    if changed:
        parts.append("changed in the header: " + ", ".join(map(str, changed)))
    for frame in result["frames"]:
        places = [
            f"rows {box['row']}-{box['row'] + box['rows'] - 1},"
            f" columns {box['column']}-{box['column'] + box['columns'] - 1}"
            for box in frame["tampered"]
        ]
        if places:
            parts.append(f"frame {frame['frame']} changed at " + "; ".join(places[:8]))
    if result.get("reason"):
        parts.append(str(result["reason"]))
    return "  ".join(parts)
