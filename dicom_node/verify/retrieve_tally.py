"""The sub-operations of one C-MOVE or C-GET, counted, and the final status they make."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from dicom_node.dimse.query_commands import SUCCESS, SubOperations
from dicom_node.verify.pacs import Planned
from dicom_node.verify.study import StudyCheck

CANNOT_PERFORM = 0xA702
WITH_FAILURES = 0xB000
_LISTED = 900  # UIDs that fit a value of 16-bit length


class Due:
    """The instances of a study that are counted on, each until it came.

    An instance is known by what the PACS calls it: its header may be unreadable, or name another
    series than the PACS's index.

    Parameters
    ----------
    planned
        What the PACS lists.
    absent
        SOP Instance UIDs that it should list and does not; they may come all the same.
    """

    def __init__(self, planned: Iterable[Planned], absent: Iterable[str] = ()) -> None:
        self._series: dict[str, list[str]] = {}
        for each in planned:
            self._series.setdefault(each.sop_instance_uid, []).append(each.series_instance_uid)
        for uid in absent:
            self._series.setdefault(uid, []).append("")

    def take(self, sop_instance_uid: str, series_instance_uid: str) -> bool:
        """Cross an instance off; False if it was not counted on.

        Two series may have the same UID: that of its own series goes first.
        """
        left = self._series.get(sop_instance_uid)
        if not left:
            return False
        own = series_instance_uid if series_instance_uid in left else left[0]
        left.remove(own)
        return True

    def left(self) -> list[str]:
        """Return the SOP Instance UIDs of what has not come, in order."""
        return sorted(uid for uid, series in self._series.items() for _ in series)


@dataclass
class Tally:
    """Sub-operations of one request."""

    remaining: int = 0
    completed: int = 0
    failed: int = 0
    warning: int = 0
    failed_uids: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unsure: bool = False
    """Nobody can say what ought to be there: no number of sub-operations is a success."""

    def counts(self) -> SubOperations:
        """Return the numbers of a response."""
        return SubOperations(max(0, self.remaining), self.completed, self.failed, self.warning)

    def count(self, outcome: str, sop_instance_uid: str) -> None:
        """Count one sub-operation: ``completed``, ``warning`` or ``failed``."""
        self.remaining -= 1
        setattr(self, outcome, getattr(self, outcome) + 1)
        if outcome == "failed" and len(self.failed_uids) < _LISTED:
            self.failed_uids.append(sop_instance_uid)

    @property
    def status(self) -> int:
        """The final status they make."""
        if not self.failed and not self.warning:
            return WITH_FAILURES if self.unsure else SUCCESS
        if not self.completed and not self.warning:
            return CANNOT_PERFORM
        return WITH_FAILURES


def in_words(check: StudyCheck, error: str) -> list[str]:
    """Return what is to be said of a study in an error comment of 64 characters."""
    counts, headers = check.counts, check.headers
    said = [
        f"{number} {what}"
        for what, number in (
            ("tampered", counts.get("tampered", 0)), ("foreign", counts.get("foreign", 0)),
            ("unreadable", counts.get("unreadable", 0)), ("stripped", len(check.stripped)),
            ("superseded", len(check.superseded)),
            ("missing", len(check.absent)), ("extra", len(check.extra)),
            ("transcoded", len(check.transcoded)), ("header changed", headers.changed),
            ("header unsealed", headers.unsealed),
        ) if number
    ]  # fmt: skip
    return [*said, *([error] if error else [])]
