"""``dicom-node audit-log``: check and read the audit trail."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dicom_node.cli.common import (
    EXIT_NOT_AUTHENTIC,
    EXIT_OK,
    Subparsers,
    add_action,
    add_command,
    add_json,
    config_of,
    print_json,
)
from dicom_node.errors import ConfigError


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "audit-log",
        run,
        summary="check that nobody changed the audit trail, and read it",
        exit_codes={
            0: "verify: every entry is in its place, and the signatures hold",
            1: "verify: the trail is broken; the first broken entry is named",
            3: "there is no trail, or it cannot be read",
        },
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    verify = add_action(actions, "verify", help="check chain, signatures and checkpoints")
    verify.add_argument(
        "--public-key",
        type=Path,
        metavar="PEM",
        help="check signatures with this public key (keys export-public) instead of the key ring",
    )
    verify.add_argument(
        "--checkpoints",
        type=Path,
        metavar="FILE",
        help="checkpoints kept elsewhere, one JSON line each, as the syslog collector got them",
    )
    show = add_action(actions, "show", help="print entries, oldest first")
    show.add_argument("--since", metavar="TIME", help="only from then on: 2026-11-22 or ...T06:00Z")
    show.add_argument("--kind", action="append", metavar="KIND", help="only this kind; repeatable")
    for action in (verify, show):
        action.add_argument(
            "directory", nargs="?", type=Path, metavar="DIR",
            help="folder of the trail (default: the configuration's)",
        )  # fmt: skip
        add_json(action, "trail" if action is verify else "entry")


def run(arguments: argparse.Namespace) -> int:
    """Run one action."""
    config = config_of(arguments)
    directory = arguments.directory or config.audit_directory
    if not directory.is_dir():
        raise ConfigError(f"{directory}: no such folder; name the trail's, or its --config")
    if arguments.action == "verify":
        return _verify(arguments, directory, config.keys.directory)
    return _show(arguments, directory)


def _verify(arguments: argparse.Namespace, directory: Path, keys: Path) -> int:
    from dicom_node.audit.checking import check_log
    from dicom_node.keys import KeyRing

    if arguments.public_key is None:
        ring = KeyRing.open(keys)
    else:
        ring = KeyRing.from_public_pem(_read(arguments.public_key).decode("ascii", "replace"))
    kept = _read(arguments.checkpoints).splitlines() if arguments.checkpoints else []
    found = check_log(directory, ring, elsewhere=kept)
    if arguments.json:
        print_json({"path": str(directory)} | found.to_json())
    else:
        _explain(directory, found.to_json())
    return EXIT_OK if found.broken is None else EXIT_NOT_AUTHENTIC


def _explain(directory: Path, found: dict[str, Any]) -> None:
    broken = found["broken"]
    print(f"{directory}: {found['entries']} entries in {found['segments']} files, signed up to "
          f"entry {found['signed_up_to']} by {found['checkpoints']} checkpoints")  # fmt: skip
    if found["recovered"]:
        which = ", ".join(map(str, found["recovered"]))
        print(f"unfinished writes were set aside; entries {which} say so")
    if found["unknown_keys"]:
        print(f"checkpoints of keys that are not here: {', '.join(found['unknown_keys'])}")
    if broken is not None:
        where = f" ({broken['segment']}, line {broken['line']})" if broken["segment"] else ""
        print(f"BROKEN at entry {broken['entry']}, {broken['kind']}{where}: {broken['words']}")
    elif found["unsigned"]:
        print(f"whole; no signature covers the last {found['unsigned']} entries yet")
    else:
        print("whole")


def _show(arguments: argparse.Namespace, directory: Path) -> int:
    from dicom_node.audit.events import KINDS
    from dicom_node.audit.reading import entries

    since = _time(arguments.since) if arguments.since else None
    kinds = set(arguments.kind or ())
    unknown = kinds - set(KINDS)
    if unknown:
        raise ConfigError(f"--kind {min(unknown)}: one of {', '.join(KINDS)}")
    for entry, _ in entries(directory):
        if entry.kind not in KINDS or (kinds and entry.kind not in kinds):
            continue
        event = entry.event
        # When it happened: it may have been written later.
        if since is not None and datetime.fromisoformat(str(event["at"])) < since:
            continue
        if arguments.json:
            reference = {"reference": entry.reference} if entry.reference else {}
            print_json({"entry": entry.seq, "written": entry.time} | reference | event)
        else:
            print("  ".join([f"{entry.seq:>8}", event["at"], entry.kind, *_said(event)]))
    return EXIT_OK


def _said(event: dict[str, Any]) -> Iterator[str]:
    for key, value in event.items():
        if key not in ("kind", "at"):
            shown = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            # A peer chooses its AE title; a terminal obeys what is not printable.
            yield f"{key}=" + "".join(c if c.isprintable() else "\ufffd" for c in shown)


def _time(text: str) -> datetime:
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(
            f"--since {text!r}: not a time like 2026-11-22 or 2026-11-22T06:00Z"
        ) from error
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
