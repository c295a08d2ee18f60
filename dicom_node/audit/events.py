"""What the audit trail tells of: one frozen dataclass per kind of event.

No event holds patient data: instances, series and studies are named by their UIDs, peers by AE
title and address, people by the account they ran a command under. Texts are scrubbed as log lines
are. Empty fields are left out of the JSON and come back as their defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, Literal, Self

from dicom_node.errors import AuditError
from dicom_node.logging import drop_patient_data

Stage = Literal["associate", "receive", "mark", "forward", "query", "retrieve"]
KeyUse = Literal["init", "rotate", "export-public", "restore", "sign"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of every event; `at` is when it happened, with a time zone."""

    kind: ClassVar[str] = ""
    at: datetime

    def __post_init__(self) -> None:
        if self.at.tzinfo is None:
            raise ValueError(f"{self.kind}: a time without a time zone says nothing")

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values: `kind`, `at` and every field that is not empty."""
        values: dict[str, Any] = {"kind": self.kind, "at": format_time(self.at)}
        for name in _names(self):
            value = getattr(self, name)
            if value in _EMPTY:
                continue
            values[name] = _scrubbed(value) if name == "reason" else _plain(value)
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the event `to_json` described (AuditError where it is none)."""
        try:
            known = {name: _tuples(values[name]) for name in _names(cls) if name in values}
            return cls(at=datetime.fromisoformat(str(values["at"])), **known)
        except (KeyError, TypeError, ValueError) as error:
            raise AuditError(f"not an event of kind {cls.kind!r}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Activity(Event):
    """The node began or stopped to work. `process` is the role, ``node`` for all of it."""

    kind: ClassVar[str] = "activity"
    action: Literal["start", "stop"]
    process: str = "node"
    version: str = ""


@dataclass(frozen=True, kw_only=True)
class Marked(Event):
    """An instance was received, marked (or sealed, or passed on) and is ready to leave.

    Attributes
    ----------
    action
        ``marked``, ``sealed`` (header only) or ``untouched``.
    key_id, digest
        Hex: which key signed, BLAKE2b-256 of the data set that leaves.
    source_ae, source_address
        Who sent it.
    """

    kind: ClassVar[str] = "marked"
    sop_instance_uid: str
    sop_class_uid: str = ""
    study_instance_uid: str = ""
    series_instance_uid: str = ""
    action: Literal["marked", "sealed", "untouched"] = "marked"
    frames: int = 0
    key_id: str = ""
    digest: str = ""
    source_ae: str = ""
    source_address: str = ""


@dataclass(frozen=True, kw_only=True)
class Forwarded(Event):
    """A destination took an instance: it answered `status`, success or a warning."""

    kind: ClassVar[str] = "forwarded"
    sop_instance_uid: str
    sop_class_uid: str = ""
    study_instance_uid: str = ""
    destination: str = ""
    ae_title: str = ""
    address: str = ""
    status: int = 0x0000
    digest: str = ""


@dataclass(frozen=True, kw_only=True)
class Refused(Event):
    """We did not do what was asked, or a destination did not.

    Attributes
    ----------
    stage
        Where: ``associate``, ``receive``, ``mark``, ``forward``, ``query`` or ``retrieve``.
    outcome
        ``held`` (an administrator decides), ``rejected`` (by a rule of ours), ``refused`` (the
        peer was answered with a failure).
    status
        DIMSE status, where there was one.
    count
        Where one event stands for several refusals: how many; 0: for one.
    """

    kind: ClassVar[str] = "refused"
    stage: Stage
    outcome: Literal["held", "rejected", "refused"] = "refused"
    reason: str = ""
    sop_instance_uid: str = ""
    sop_class_uid: str = ""
    study_instance_uid: str = ""
    peer_ae: str = ""
    peer_address: str = ""
    status: int | None = None
    count: int = 0


@dataclass(frozen=True, kw_only=True)
class Queried(Event):
    """Somebody asked the verification service with C-FIND.

    Attributes
    ----------
    level, model
        Query/retrieve level; ``study`` or ``patient`` root.
    keys
        Tags in the identifier, eight hex digits each; of the values only Study Instance UID is
        kept.
    matches, status
        Answers given, and the final DIMSE status.
    """

    kind: ClassVar[str] = "queried"
    client_ae: str
    client_address: str = ""
    level: str = ""
    model: Literal["study", "patient"] = "study"
    keys: tuple[str, ...] = ()
    study_instance_uid: str = ""
    matches: int = 0
    status: int = 0x0000


@dataclass(frozen=True, kw_only=True)
class Retrieved(Event):
    """Instances of one study were given to somebody by C-MOVE or C-GET.

    Attributes
    ----------
    client_ae, destination_ae
        Who asked, who got them (the same for C-GET).
    instances, failed, warnings
        Completed, failed and warned sub-operations.
    policy
        ``as-is``, ``restored`` or ``refuse-tampered``.
    verdict
        The worst of what came from the archive; "" where nothing came. A client that is answered
        with a success was told no more than that nothing is suspect: see `VerdictGiven`.
    """

    kind: ClassVar[str] = "retrieved"
    client_ae: str
    client_address: str = ""
    destination_ae: str = ""
    destination_address: str = ""
    how: Literal["move", "get"] = "move"
    study_instance_uid: str = ""
    sop_class_uids: tuple[str, ...] = ()
    instances: int = 0
    failed: int = 0
    warnings: int = 0
    policy: str = "as-is"
    status: int = 0x0000
    verdict: str = ""


@dataclass(frozen=True, kw_only=True)
class Verified(Event):
    """An instance was checked.

    Attributes
    ----------
    checked_by
        AE title it was checked for, ``audit``, ``nightly`` or ``cli``.
    verdict
        Of the verdict ladder; anything but ``authentic`` and ``content-preserved`` alarms.
    changed
        Keywords of header attributes that differ from what was signed.
    header_seal
        ``absent`` or ``invalid``; "" where the seal holds.
    """

    kind: ClassVar[str] = "verified"
    sop_instance_uid: str
    verdict: str
    sop_class_uid: str = ""
    study_instance_uid: str = ""
    series_instance_uid: str = ""
    checked_by: str = ""
    signed_by: str = ""
    changed: tuple[str, ...] = ()
    reason: str = ""
    header_seal: str = ""


@dataclass(frozen=True, kw_only=True)
class VerdictGiven(Event):
    """A verdict on a study was told or handed to somebody.

    Attributes
    ----------
    how
        ``find``, ``retrieve`` (by its status and comment), ``report``,
        ``command``, ``web``; ``nightly``: nobody but the log was told.
    given_to
        AE title or account; ``nightly``.
    counts
        Instances by verdict; also how many are ``missing``, and how many ``superseded`` (an older
        version than was delivered, whatever its verdict).
    """

    kind: ClassVar[str] = "verdict-given"
    given_to: str
    verdict: str
    address: str = ""
    how: str = "find"
    study_instance_uid: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Restored(Event):
    """The marks were taken off an instance for somebody; `exact` if the signed digest proves it."""

    kind: ClassVar[str] = "restored"
    sop_instance_uid: str
    study_instance_uid: str = ""
    sop_class_uid: str = ""
    by: str = ""
    how: Literal["command", "retrieve"] = "command"
    destination: str = ""
    key_id: str = ""
    exact: bool = False
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class KeyUsed(Event):
    """The key ring was made, rotated, exported or opened to restore; or its current key signs.

    Attributes
    ----------
    use
        ``sign``: reports, or files that `mark` marks. Of what the node marks, `Marked` has the key.
    by
        The account.
    """

    kind: ClassVar[str] = "key-used"
    use: KeyUse
    key_id: str
    by: str = ""


@dataclass(frozen=True, kw_only=True)
class Recovered(Event):
    """The trail ended in an unfinished line, as after a power failure; it was set aside.

    Attributes
    ----------
    size, digest, kept_as
        Bytes set aside, their SHA3-256 in hex, and the file beside the log that has them.
    """

    kind: ClassVar[str] = "recovered"
    size: int
    digest: str
    kept_as: str = ""


KINDS: Final[dict[str, type[Event]]] = {
    each.kind: each
    for each in (
        Activity, Marked, Forwarded, Refused, Queried, Retrieved, Verified, VerdictGiven, Restored,
        KeyUsed, Recovered,
    )
}  # fmt: skip
_EMPTY: Final[tuple[Any, ...]] = ("", None, (), {})
_NAMES: Final[dict[str, tuple[str, ...]]] = {}


def event_of(values: Mapping[str, Any]) -> Event:
    """Return the event that JSON values describe (AuditError for an unknown kind)."""
    known = KINDS.get(str(values.get("kind")))
    if known is None:
        raise AuditError(f"an event of unknown kind {values.get('kind')!r}; a newer release's?")
    return known.from_json(values)


def format_time(when: datetime) -> str:
    """Return a time as the trail writes it: UTC, microseconds, ``Z``."""
    return when.astimezone(UTC).isoformat(timespec="microseconds")[:-6] + "Z"


def _names(event: Event | type[Event]) -> tuple[str, ...]:
    known = _NAMES.get(event.kind)
    if known is None:
        known = tuple(each.name for each in fields(event) if each.name != "at")
        _NAMES[event.kind] = known
    return known


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _scrubbed(text: str) -> Any:
    return drop_patient_data(None, "", {"reason": text})["reason"]
