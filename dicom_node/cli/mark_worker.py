"""The process that marks the files of one command: what a hostile image brings down is this."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dicom_node.cli.common import reason_of
from dicom_node.config import WatermarkConfig
from dicom_node.errors import ReferencesPending

if TYPE_CHECKING:
    from dicom_node.marking import Marker

NOTHING = {"frames": 0, "message": [], "psnr_db": None, "ssim": None, "max_change": None}


@dataclass(frozen=True)
class Setup:
    """Settings, the key ring's folder, and the UIDs said so far by a process before this one."""

    settings: WatermarkConfig
    keys: Path
    sent_as: dict[str, str]


@dataclass(frozen=True)
class Task:
    """One file, and where its result goes; `all_tried`: no more files come that it may refer to."""

    source: Path
    out: Path
    all_tried: bool = False


@dataclass(frozen=True)
class Done:
    """What became of it, in the words of ``mark --json``; None: it waits for files that come.

    `sent_as` has the UIDs said meanwhile.
    """

    said: dict[str, Any] | None
    sent_as: dict[str, str] = field(default_factory=dict)


def begin(setup: Setup) -> Callable[[Task], Done]:
    """Open keys and networks; return what marks a file (NodeError)."""
    from dicom_node.inference import open_engine
    from dicom_node.keys import KeyRing
    from dicom_node.marking import Marker
    from dicom_node.naming import BatchNames

    ring = KeyRing.open(setup.keys)
    names = None
    if setup.settings.uid_policy == "derive":
        names = BatchNames(ring.uid_key, setup.sent_as)
    engine = open_engine(setup.settings.engine)
    marker = Marker(setup.settings, ring, engine, measure=True, names=names)

    def mark(task: Task) -> Done:
        if names is not None and task.all_tried:
            names.all_tried()
        try:
            said = _mark(marker, task)
        except ReferencesPending:
            said = None
        return Done(said, names.news() if names is not None else {})

    return mark


def _mark(marker: Marker, task: Task) -> dict[str, Any]:
    marked_at = datetime.now(UTC).replace(microsecond=0)
    try:
        outcome = marker.mark(task.source, task.out, marked_at=marked_at)
    except ReferencesPending:
        raise
    except Exception as error:  # noqa: BLE001 - one file's failure must not stop the others
        return {"action": "held", "reason": reason_of(error)} | NOTHING
    return {
        "action": outcome.action,
        "reason": outcome.reason,
        "frames": outcome.frames,
        "message": list(outcome.message),
        "psnr_db": outcome.psnr_db,
        "ssim": outcome.ssim,
        "max_change": outcome.max_change,
    }
