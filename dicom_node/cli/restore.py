"""``dicom-node restore``: bit-exact originals from marked files."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dicom_node.audit.events import Event, Restored
from dicom_node.child import ChildEnded, Workplace
from dicom_node.cli.common import (
    EXIT_FAILED,
    EXIT_OK,
    Input,
    Subparsers,
    add_command,
    add_json,
    complain,
    config_of,
    print_json,
    progress,
    put_in_place,
    reason_of,
    refuse_overwriting,
    walk,
)
from dicom_node.cli.restore_worker import Task

if TYPE_CHECKING:
    from dicom_node.keys import KeyRing

# SOP instance, study, SOP class.
_UIDS: Final = (0x00080018, 0x0020000D, 0x00080016)
_WORKER = "dicom_node.cli.restore_worker"
_LONGEST_S = 3600.0


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "restore",
        run,
        summary="take both marks off again: bit-exact originals (needs the keys)",
        exit_codes={
            0: "every file was restored, and the signed digest proves it",
            3: "at least one could not be read or restored exactly; the others are done",
        },
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="files or folders")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where results go")
    add_json(parser, "instance")


def run(arguments: argparse.Namespace) -> int:
    """Restore every file; report the bad ones and go on."""
    from dicom_node.audit.recording import key_used, recorded
    from dicom_node.keys import KeyRing

    config = config_of(arguments)
    inputs = walk(arguments.paths)
    refuse_overwriting(inputs, arguments.out)
    ring = KeyRing.open(config.keys.directory)
    with (
        recorded(config, ring) as record,
        Workplace(_WORKER, lambda: config.keys.directory, _LONGEST_S) as workplace,
    ):
        record(key_used(ring, "restore"))
        return _restore_all(workplace, inputs, arguments, ring, record)


def _restore_all(
    workplace: Workplace, inputs: Sequence[Input], arguments: argparse.Namespace, ring: KeyRing,
    record: Callable[[Event], None],
) -> int:  # fmt: skip
    code = EXIT_OK
    with progress(len(inputs), "restoring") as advance:
        for item in inputs:
            result = _restored(workplace, item, arguments.out)
            record(_event(item.path, ring, result))
            if not result["exact"]:
                code = EXIT_FAILED
            if arguments.json:
                print_json(result)
            elif result["exact"]:
                print(f"{item.path}  exact  {result['out']}", flush=True)
            else:
                complain(item.path, f"not restored: {result['reason']}")
            advance()
    return code


def _restored(workplace: Workplace, item: Input, folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = {"path": str(item.path), "out": None}
    try:
        out = item.under(folder)
        with put_in_place(out) as place:
            outcome: dict[str, Any] = workplace.do(Task(item.path, place))
            written = str(out) if place.exists() else None
        return result | {"out": written} | outcome
    except ChildEnded as error:
        return result | {"exact": False, "reason": f"restoring it {error}"}
    except OSError as error:
        return result | {"exact": False, "reason": reason_of(error)}


def _event(path: Path, ring: KeyRing, result: dict[str, Any]) -> Event:
    """Return what the audit trail keeps: no path, because people name files by patients."""
    from dicom_node.audit.recording import account
    from dicom_node.instance.datafile import open_data_file

    sop, study, sop_class, why = "", "", "", ""
    try:
        with closing(open_data_file(path)) as data:
            sop, study, sop_class = (data.text(tag) for tag in _UIDS)
    except Exception:  # noqa: BLE001 - pydicom raises nearly anything on malformed values
        # That somebody tried is told, whatever it was.
        why = "not DICOM, or its UIDs cannot be read"
    exact = bool(result["exact"])
    return Restored(
        at=datetime.now(UTC), by=account(), key_id=ring.current.key_id.hex(), destination="file",
        sop_instance_uid=sop, study_instance_uid=study, sop_class_uid=sop_class, exact=exact,
        reason=why or ("" if exact else "not restored exactly, or not ours"),
    )
