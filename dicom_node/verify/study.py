"""What was checked of a study: every instance's verdict, and what is missing, extra or re-coded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dicom_node.errors import PixelError
from dicom_node.instance.datafile import open_data_file
from dicom_node.instance.syntaxes import name_of
from dicom_node.verify.headers import Headers, headers_of
from dicom_node.verify.verdict import InstanceVerdict, Verdict, worst

if TYPE_CHECKING:
    from dicom_node.registry.records import MarkedInstance

SUSPECT: frozenset[Verdict] = frozenset(("tampered", "foreign", "unreadable"))
"""Verdicts that nobody should be handed without a word: changed, of another image, or no image."""

KNOWN, UNKNOWN_STUDY = "known", "unknown study"
"""What the registry has of a study: something, or nothing at all."""

_SOP_CLASS, _SOP_INSTANCE = 0x00080016, 0x00080018
_MODALITY, _INSTANCE_NUMBER = 0x00080060, 0x00200013
_STUDY, _SERIES = 0x0020000D, 0x0020000E


@dataclass(frozen=True)
class CheckedInstance:
    """One instance as it was found, and the verdict on it.

    Attributes
    ----------
    transfer_syntax_uid
        How it was coded when it was checked.
    instance_number
        None where there is none, or none that is a number.
    path
        The file that was checked; None where it was thrown away after the check.
    """

    verdict: InstanceVerdict
    study_instance_uid: str = ""
    series_instance_uid: str = ""
    sop_class_uid: str = ""
    transfer_syntax_uid: str = ""
    modality: str = ""
    instance_number: int | None = None
    path: Path | None = None

    @property
    def sop_instance_uid(self) -> str:
        """SOP Instance UID, "" if it could not be read."""
        return self.verdict.sop_instance_uid

    @property
    def suspect(self) -> bool:
        """Whether the verdict is one of `SUSPECT`."""
        return self.verdict.verdict in SUSPECT

    def to_json(self) -> dict[str, Any]:
        """Return the line of ``verify --json`` with where the instance belongs."""
        line = self.verdict.to_json()
        if self.path is None:
            del line["path"]
        return line | {
            "study_instance_uid": self.study_instance_uid,
            "series_instance_uid": self.series_instance_uid,
            "sop_class_uid": self.sop_class_uid,
            "transfer_syntax_uid": self.transfer_syntax_uid,
            "modality": self.modality,
            "instance_number": self.instance_number,
        }


@dataclass(frozen=True)
class StudyCheck:
    """One study, re-checked.

    Attributes
    ----------
    checked_at
        With time zone.
    instances
        In order of series, instance number and SOP Instance UID.
    missing
        SOP Instance UIDs that the registry knows as delivered, or the PACS lists, and that did
        not come.
    unsent
        Of those missing, what the PACS has and failed to send, as it says itself: no sign that
        anything was taken away.
    failure
        How it says so, in words; "" where it does not.
    extra
        That came back although the registry does not know them, in a study of which it knows some.
    transcoded
        That came back in another transfer syntax than they were delivered in.
    entries
        The registry's records of this study, in its order.
    asked
        Whether the registry was asked for all of the study: else "none" says nothing of it.
    """

    study_instance_uid: str
    checked_at: datetime
    instances: tuple[CheckedInstance, ...] = ()
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    transcoded: tuple[str, ...] = ()
    unsent: tuple[str, ...] = ()
    failure: str = ""
    entries: tuple[MarkedInstance, ...] = field(default=(), repr=False)
    asked: bool = False

    @property
    def verdict(self) -> Verdict | Literal[""]:
        """The worst instance's verdict; "" for a study of which nothing came."""
        return worst([each.verdict.verdict for each in self.instances]) if self.instances else ""

    @property
    def registry(self) -> str | None:
        """Whether the registry knows the study; None where it was not asked for all of it."""
        if self.entries:
            return KNOWN
        return UNKNOWN_STUDY if self.asked else None

    @property
    def unregistered(self) -> bool:
        """Whether it carries marks of ours and the registry, when asked, knew nothing of it."""
        marked = self.counts.keys() - {"unmarked", "unreadable"}
        return bool(marked) and self.registry == UNKNOWN_STUDY

    @property
    def counts(self) -> dict[str, int]:
        """How many instances have each verdict; verdicts that nobody has are left out."""
        return dict(Counter(each.verdict.verdict for each in self.instances))

    @property
    def stripped(self) -> tuple[str, ...]:
        """SOP Instance UIDs that came back unmarked although the registry knows our marks."""
        known = {e.sop_instance_uid for e in self.entries if e.action != "untouched"}
        return tuple(
            each.sop_instance_uid for each in self.instances
            if each.verdict.verdict == "unmarked" and each.sop_instance_uid in known
        )  # fmt: skip

    @property
    def superseded(self) -> tuple[str, ...]:
        """SOP Instance UIDs of which an older version came back than the last that was delivered.

        The file alone is authentic: only the registry knows that it was marked anew since then.
        """
        return superseded(self.instances, self.entries)

    @property
    def absent(self) -> tuple[str, ...]:
        """Of those missing, what the PACS does not claim to have failed at."""
        unsent = set(self.unsent)
        return tuple(uid for uid in self.missing if uid not in unsent)

    @property
    def unfinished(self) -> bool:
        """Whether all that is wrong is that the PACS failed to send some of it."""
        sound = all(each.verdict.verdict == "authentic" for each in self.instances)
        return bool(self.unsent) and sound and not self.absent and not self.superseded

    @property
    def headers(self) -> Headers:
        """Headers that are not what was signed, or not sealed."""
        return headers_of(each.verdict for each in self.instances)

    @property
    def sound(self) -> bool:
        """Whether every instance is authentic, as last delivered, and none is missing.

        A changed header does not make it unsound: an archive may correct a name. See `headers`.
        """
        return self.verdict == "authentic" and not self.missing and not self.superseded

    def to_json(self) -> dict[str, Any]:
        """Return what ``audit --json`` prints of a study."""
        return {
            "study_instance_uid": self.study_instance_uid,
            "checked_at": self.checked_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "verdict": self.verdict,
            "sound": self.sound,
            "counts": self.counts,
            "missing": list(self.missing),
            "unsent": list(self.unsent),
            "failure": self.failure or None,
            "extra": list(self.extra),
            "transcoded": [
                {"sop_instance_uid": each.sop_instance_uid,
                 "transfer_syntax": name_of(each.transfer_syntax_uid)}
                for each in self.instances if each.sop_instance_uid in set(self.transcoded)
            ],
            "stripped": list(self.stripped),
            "superseded": list(self.superseded),
            "registry": self.registry,
            "headers": self.headers.to_json(),
            "instances": [each.to_json() for each in self.instances],
        }  # fmt: skip


def study_check(
    study_instance_uid: str,
    instances: Iterable[CheckedInstance],
    entries: Sequence[MarkedInstance] = (),
    *,
    destination: str = "",
    listed: Iterable[str] = (),
    failure: str = "",
    failed: Iterable[str] = (),
    checked_at: datetime | None = None,
    asked: bool = False,
) -> StudyCheck:
    """Compare what was checked with what the registry says was delivered.

    Parameters
    ----------
    instances
        Every instance that came back, in any order.
    entries
        The registry's records of what was asked for: of the study, or of the part of it.
    destination
        Name of the ``[[destination]]`` that was asked; "" for any. What it never took is not
        expected back.
    listed
        SOP Instance UIDs that the PACS says it has.
    failure, failed
        In words, that the PACS failed to send some; their SOP Instance UIDs, where it named them:
        else it may be any that it lists.
    asked
        Whether `entries` are all that the registry has of the study.
    """
    listed = tuple(listed)
    found = tuple(sorted(instances, key=_in_order))
    came = {each.sop_instance_uid: each for each in found}
    known = {entry.sop_instance_uid: entry for entry in entries}
    delivered = [entry.sop_instance_uid for entry in entries if was_delivered(entry, destination)]
    due = dict.fromkeys([*delivered, *listed])
    missing = tuple(uid for uid in due if uid not in came)
    claimed = (set(failed) or set(listed)) if failure else set()
    return StudyCheck(
        study_instance_uid,
        checked_at or datetime.now(UTC),
        found,
        missing=missing,
        unsent=tuple(uid for uid in missing if uid in claimed),
        failure=failure,
        extra=tuple(uid for uid in came if known and uid not in known),
        transcoded=tuple(
            uid for uid, each in came.items() if is_transcoded(each, known.get(uid), destination)
        ),
        entries=tuple(entries),
        asked=asked,
    )


def superseded(
    instances: Iterable[CheckedInstance], entries: Iterable[MarkedInstance]
) -> tuple[str, ...]:
    """Return SOP Instance UIDs of what is older than the version that was delivered last."""
    last: dict[str, int] = {}
    for entry in entries:
        # What passed through untouched was not marked then.
        if entry.action != "untouched" and entry.deliveries:
            uid = entry.sop_instance_uid
            last[uid] = max(last.get(uid, 0), entry.marked_at)
    return tuple(
        each.sop_instance_uid for each in instances
        if (at := each.verdict.marked_at) is not None and at < last.get(each.sop_instance_uid, 0)
    )  # fmt: skip


def was_delivered(entry: MarkedInstance, destination: str = "") -> bool:
    """Say whether this destination ("": any) has taken the instance."""
    return entry.delivered_to(destination) if destination else bool(entry.deliveries)


def is_transcoded(
    found: CheckedInstance, entry: MarkedInstance | None, destination: str = ""
) -> bool:
    """Say whether an instance is coded otherwise than we sent it there ("": anywhere)."""
    if entry is None or not entry.transfer_syntax_uid or not found.transfer_syntax_uid:
        return False
    return found.transfer_syntax_uid not in entry.sent_in(destination)


def checked_instance(
    path: Path, verdict: InstanceVerdict, *, keep_path: bool = True
) -> CheckedInstance:
    """Return the verdict on a file together with where the instance belongs.

    What cannot be read of the header is empty: an unreadable instance has a verdict, too.
    """
    kept = path if keep_path else None
    try:
        with closing(open_data_file(path)) as data:

            def text(tag: int) -> str:
                try:
                    return data.text(tag).strip(" \0")
                except Exception:  # noqa: BLE001 - pydicom raises nearly anything on such values
                    return ""

            number = text(_INSTANCE_NUMBER)
            return CheckedInstance(
                verdict, text(_STUDY), text(_SERIES), text(_SOP_CLASS), data.transfer_syntax_uid,
                text(_MODALITY), int(number) if number.isascii() and number.isdigit() else None,
                kept,
            )  # fmt: skip
    except (PixelError, OSError):
        return CheckedInstance(verdict, path=kept)


def remove_files(instances: Iterable[CheckedInstance]) -> None:
    """Remove the fetched files that instances still name."""
    for each in instances:
        if each.path is not None:
            each.path.unlink(missing_ok=True)


def _in_order(each: CheckedInstance) -> tuple[str, int, str]:
    number = each.instance_number
    return each.series_instance_uid, -1 if number is None else number, each.sop_instance_uid
