"""The process that restores the files of one command: what a hostile image brings down is this."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dicom_node.cli.common import reason_of


@dataclass(frozen=True)
class Task:
    """One file, and where its original goes."""

    source: Path
    out: Path


def begin(keys: Path) -> Callable[[Task], dict[str, Any]]:
    """Open the key ring; return what restores a file, in the words of ``restore --json``."""
    from dicom_node import marking
    from dicom_node.keys import KeyRing

    ring = KeyRing.open(keys)

    def restored(task: Task) -> dict[str, Any]:
        try:
            outcome = marking.restore(task.source, task.out, ring)
        except Exception as error:  # noqa: BLE001 - one file's failure must not stop the others
            return {"exact": False, "reason": reason_of(error)}
        return {"exact": outcome.exact, "reason": outcome.reason}

    return restored
