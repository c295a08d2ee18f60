"""``dicom-node mark``: mark files offline, by the same code as the node."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
from dicom_node.cli.mark_worker import NOTHING, Done, Setup, Task

_WORKER = "dicom_node.cli.mark_worker"
_LONGEST_S = 3600.0


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "mark",
        run,
        summary="mark files offline, by the same code as the node",
        exit_codes={
            0: "every file has a result in --out (marked, or passed on by policy)",
            3: "a file could not be read or marked and has none; the others are done",
        },
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="files or folders")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where results go")
    add_json(parser, "instance")


def run(arguments: argparse.Namespace) -> int:
    """Mark every file; report the bad ones and go on."""
    from dicom_node.audit.recording import key_used, recorded
    from dicom_node.keys import KeyRing

    config = config_of(arguments)
    inputs = walk(arguments.paths)
    refuse_overwriting(inputs, arguments.out)
    ring = KeyRing.open(config.keys.directory)
    sent_as: dict[str, str] = {}
    setup = Setup(config.watermark, config.keys.directory, sent_as)
    with Workplace(_WORKER, lambda: setup, _LONGEST_S) as workplace:
        workplace.begin()
        with recorded(config, ring) as record:
            record(key_used(ring, "sign"))
        return _mark_all(_Marking(workplace, arguments.out, sent_as), inputs, arguments)


def _mark_all(marking: _Marking, inputs: Sequence[Input], arguments: argparse.Namespace) -> int:
    code = EXIT_OK
    with progress(len(inputs), "marking") as advance:
        for result in marking.results(inputs):
            if result["out"] is None:
                code = EXIT_FAILED
            if arguments.json:
                print_json(result)
            elif result["out"] is None:
                complain(Path(result["path"]), f"{result['action']}: {result['reason']}")
            else:
                print(_line(result), flush=True)
            advance()
    return code


class _Marking:
    """Has files marked, one by one, and knows the UIDs said on the way."""

    def __init__(self, workplace: Workplace, folder: Path, sent_as: dict[str, str]) -> None:
        self._workplace = workplace
        self._folder = folder
        self._sent_as = sent_as

    def results(self, inputs: Sequence[Input]) -> Iterator[dict[str, Any]]:
        """Mark every file; what refers to others comes when it is known what became of those."""
        waiting = []
        for item in inputs:
            result = self._mark(item)
            if result is None:
                waiting.append(item)
            else:
                yield result
        for item in waiting:
            result = self._mark(item, all_tried=True)
            assert result is not None, "nothing is left to wait for"
            yield result

    def _mark(self, item: Input, *, all_tried: bool = False) -> dict[str, Any] | None:
        """Return one line of ``mark --json``, None while it waits for other files."""
        result: dict[str, Any] = {"path": str(item.path), "out": None}
        try:
            out = item.under(self._folder)
            with put_in_place(out) as place:
                done: Done = self._workplace.do(Task(item.path, place, all_tried))
        except ChildEnded as error:
            return result | {"action": "held", "reason": f"marking it {error}"} | NOTHING
        except OSError as error:
            return result | {"action": "held", "reason": reason_of(error)} | NOTHING
        self._sent_as |= done.sent_as
        if done.said is None:
            return None
        if done.said["action"] not in ("held", "rejected"):
            result["out"] = str(out)
        return result | done.said


def _line(result: dict[str, Any]) -> str:
    parts = [result["path"], result["action"]]
    if result["psnr_db"] is not None:
        parts.append(f"{result['frames']} frames, {result['psnr_db']:.1f} dB")
    if result["reason"]:
        parts.append(result["reason"])
    return "  ".join(parts)
