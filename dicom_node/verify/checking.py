"""Checking one file: what is handed to a worker, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import structlog

from dicom_node.errors import NodeError
from dicom_node.logging import describe
from dicom_node.verify.study import CheckedInstance

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Setup:
    """What every worker needs.

    Attributes
    ----------
    keys
        Folder of the key ring.
    public_key
        PEM text to check with instead, "" for the ring.
    engine
        ``[watermark] engine``.
    registry
        Where fingerprints are looked up, `Config.registry_url`; "" for nowhere.
    """

    keys: Path
    engine: str = "auto"
    public_key: str = ""
    registry: str = ""


@dataclass(frozen=True)
class Task:
    """One file to check; with `restore_to`, its original is written there if that is exact."""

    path: Path
    restore_to: Path | None = None


@dataclass(frozen=True)
class Checked:
    """What became of a task.

    Attributes
    ----------
    exact
        Whether the original was written; None where that was not asked for.
    reason
        Why it was not, or why there is no verdict worth the name.
    """

    found: CheckedInstance
    exact: bool | None = None
    reason: str = ""


class Checker:
    """Checks files in this process (KeyRingError, EngineError on opening)."""

    def __init__(self, setup: Setup) -> None:
        from dicom_node.inference import open_engine
        from dicom_node.keys import KeyRing
        from dicom_node.verify.content import fingerprints_at

        if setup.public_key:
            self._ring = KeyRing.from_public_pem(setup.public_key)
        else:
            self._ring = KeyRing.open(setup.keys)
        self._engine = open_engine(setup.engine)
        self._known = fingerprints_at(setup.registry) if setup.registry else None

    def check(self, task: Task) -> Checked:
        """Return the verdict on a file; a fault of the file is a verdict, too."""
        from dicom_node.verify.check import check_instance
        from dicom_node.verify.study import checked_instance

        try:
            verdict = check_instance(task.path, self._ring, self._engine, known=self._known)
        except (NodeError, OSError) as error:
            return unreadable(task, str(error))
        except Exception as error:  # noqa: BLE001 - a fault of ours must not pass for a verdict
            _log.exception("check_failed")
            return unreadable(task, f"fault in the check: {describe(error)}")
        found = checked_instance(task.path, verdict)
        if task.restore_to is None:
            return Checked(found)
        return self._restored(task, task.restore_to, found)

    def _restored(self, task: Task, out: Path, found: CheckedInstance) -> Checked:
        from dicom_node.restoring import restore

        try:
            outcome = restore(task.path, out, self._ring)
        except (NodeError, OSError) as error:
            out.unlink(missing_ok=True)
            return Checked(found, exact=False, reason=str(error))
        if not outcome.exact:
            out.unlink(missing_ok=True)
        return Checked(found, outcome.exact, outcome.reason)


def unreadable(task: Task, reason: str) -> Checked:
    """Return the verdict on a file that nothing can be said of."""
    from dicom_node.verify.study import checked_instance
    from dicom_node.verify.verdict import InstanceVerdict

    verdict = InstanceVerdict(str(task.path), "", "unreadable", reason=reason)
    exact = None if task.restore_to is None else False
    return Checked(checked_instance(task.path, verdict), exact, reason)
