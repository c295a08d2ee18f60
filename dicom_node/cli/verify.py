"""``dicom-node verify``: a verdict per instance, and a report per study."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    walk,
)
from dicom_node.config import Config
from dicom_node.errors import ConfigError, NodeError, RegistryError

if TYPE_CHECKING:
    from dicom_node.keys import KeyRing
    from dicom_node.registry import Registry
    from dicom_node.verify.study import CheckedInstance


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
        help="write a picture of every frame that is not authentic, changed regions outlined, and"
        " of every study a report: a page, a PDF, JSON (signed) and a DICOM structured report",
    )
    add_json(parser, "instance")


def run(arguments: argparse.Namespace) -> int:
    """Check every file; an unreadable one is a verdict too."""
    config = config_of(arguments)
    inputs = walk(arguments.paths)
    ring = _ring(arguments.public_key, config)
    # Whoever has no more than a public key is not where the registry is.
    at_node = arguments.public_key is None
    with _registry(config if at_node else None) as registry:
        checked = _check(arguments, config, inputs, ring, registry)
        code = exit_code({each.verdict.verdict for each in checked})
        if arguments.report is not None and not _report(arguments.report, checked, ring, registry):
            code = code or EXIT_FAILED
    return code


def exit_code(verdicts: set[str]) -> int:
    """Return 1 if anything was found not authentic, else 3 if anything could not be read."""
    if verdicts - {"authentic", "unreadable"}:
        return EXIT_NOT_AUTHENTIC
    return EXIT_FAILED if "unreadable" in verdicts else EXIT_OK


def _check(
    arguments: argparse.Namespace, config: Config, inputs: Sequence[Input], ring: KeyRing,
    registry: Registry | None,
) -> list[CheckedInstance]:  # fmt: skip
    """Print a line for each file as it is checked."""
    from dicom_node.inference import open_engine
    from dicom_node.verify.check import check_instance
    from dicom_node.verify.content import fingerprints_in
    from dicom_node.verify.report import write_pictures
    from dicom_node.verify.study import CheckedInstance, checked_instance
    from dicom_node.verify.verdict import InstanceVerdict

    engine = open_engine(config.watermark.engine)
    known = fingerprints_in(registry) if registry is not None else None
    checked = []
    with progress(len(inputs), "verifying") as advance:
        for item in inputs:
            try:
                verdict = check_instance(item.path, ring, engine, known=known)
                if arguments.report is not None:
                    folder = arguments.report / item.relative.parent
                    write_pictures(item.path, verdict, folder, item.relative.name)
            except RegistryError:
                raise  # says nothing of the instance
            except (NodeError, OSError) as error:
                verdict = InstanceVerdict(str(item.path), "", "unreadable", reason=str(error))
            # Where an instance belongs is asked only for reports.
            found = CheckedInstance(verdict)
            if arguments.report is not None:
                found = checked_instance(item.path, verdict)
            checked.append(found)
            if arguments.json:
                print_json(verdict.to_json())
            else:
                print(_line(verdict.to_json()), flush=True)
            advance()
    return checked


def _report(
    folder: Path, checked: Sequence[CheckedInstance], ring: KeyRing, registry: Registry | None
) -> bool:
    """Write the reports of every study; False if one could not be written."""
    from dicom_node.verify.report import write_reports
    from dicom_node.verify.study import study_check

    studies: dict[str, list[CheckedInstance]] = {}
    for each in checked:
        studies.setdefault(each.study_instance_uid, []).append(each)
    whole = True
    for uid, members in studies.items():
        try:
            entries = registry.instances(study_instance_uid=uid) if registry and uid else ()
            write_reports(study_check(uid, members, entries), folder, ring=ring, checked_by="cli")
        except NodeError as error:
            complain(folder, str(error))
            whole = False
    return whole


def _ring(public_key: Path | None, config: Config) -> KeyRing:
    from dicom_node.keys import KeyRing

    if public_key is None:
        return KeyRing.open(config.keys.directory)
    try:
        return KeyRing.from_public_pem(public_key.read_text("ascii"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{public_key}: not a readable PEM file: {error}") from error


@contextmanager
def _registry(config: Config | None) -> Iterator[Registry | None]:
    """Open the registry if this machine has one; verifying files makes none."""
    from dicom_node.registry import Registry

    file = None if config is None else config.spool.directory / "registry.sqlite"
    if config is None or not (config.registry.url or (file is not None and file.is_file())):
        yield None
        return
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
