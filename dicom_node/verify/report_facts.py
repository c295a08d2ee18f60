"""What a report on a study says, before it is a page, a document or a structured report.

Every text in here has been through `report_text.printable`; escaping it for a format is left to
that format.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Container, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydicom.dataset import Dataset

from dicom_node import __version__
from dicom_node.errors import PixelError
from dicom_node.instance.datafile import open_data_file
from dicom_node.instance.sealed import SealedChange, sealed_changes
from dicom_node.instance.syntaxes import name_of
from dicom_node.keys import KeyRing
from dicom_node.verify.report_chain import Step, chain_of, moment
from dicom_node.verify.report_pictures import Picture, pictures_of
from dicom_node.verify.report_text import printable, value_text
from dicom_node.verify.report_words import OF_LIKELIHOOD, WORDS, verdict_in_words
from dicom_node.verify.study import CheckedInstance, StudyCheck
from dicom_node.verify.verdict import ORDER, FrameVerdict, Verdict

if TYPE_CHECKING:
    from dicom_node.registry.records import MarkedInstance

_MOST_FINDINGS = 40
_MOST_PICTURES, _MOST_OF_ONE = 48, 12
_SAMPLES = 6
_OLDER = "It was marked before the version that was delivered last: the archive gives an older one."
_CHANGED_PX, _SAMPLE_PX = 720, 320
# What stands before an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410, 4).
_SPKI = bytes.fromhex("302a300506032b6570032100")
_BIRTH_DATE, _STUDY_DATE = 0x00100030, 0x00080020
_PATIENT: tuple[tuple[str, int], ...] = (
    ("Patient's name", 0x00100010), ("Patient ID", 0x00100020), ("Birth date", _BIRTH_DATE),
    ("Sex", 0x00100040), ("Study date", _STUDY_DATE), ("Study description", 0x00081030),
    ("Accession number", 0x00080050), ("Institution", 0x00080080),
)  # fmt: skip


@dataclass(frozen=True)
class HeaderLine:
    """One changed attribute: digests as hex, "" for an attribute that was not, or is not, there.

    `value` is what it says now, `original` what it said, where that is on record and proven.
    """

    name: str
    tag: str
    before: str
    now: str
    value: str
    original: str = ""


@dataclass(frozen=True)
class InstanceFacts:
    """One instance as a report names it.

    Attributes
    ----------
    label
        Modality and number, such as ``CT 14``.
    place
        Of the instance among those of the check, from 0.
    remarks
        What there is to say beside the verdict, one sentence each.
    """

    label: str
    verdict: Verdict
    sop_instance_uid: str
    series_instance_uid: str
    transfer_syntax: str
    frames: int
    place: int
    remarks: tuple[str, ...] = ()
    header: tuple[HeaderLine, ...] = ()
    pictures: tuple[Picture, ...] = ()
    chain: tuple[Step, ...] = ()

    @property
    def word(self) -> str:
        """The verdict as it is called."""
        return WORDS[self.verdict][0]

    @property
    def finding(self) -> str:
        """The verdict as it heads a finding: authentic pixels may stand under another header."""
        if self.verdict != "authentic":
            return self.word
        if _OLDER in self.remarks:
            return f"{self.word}, an older version"
        return f"{self.word} pixels, {'changed header' if self.header else 'header not sealed'}"


@dataclass(frozen=True)
class KeyFacts:
    """A key that the marks of this study name.

    Attributes
    ----------
    fingerprint
        SHA-256 of the public key in DER (``openssl pkey -pubin -outform DER | openssl sha256``),
        hex; "" where the key was not at hand.
    """

    key_id: str
    owner: str = ""
    created: str = ""
    fingerprint: str = ""
    pem: str = ""


@dataclass(frozen=True)
class StudyFacts:
    """Everything a report says.

    Attributes
    ----------
    level
        A verdict, or of an authentic study: ``superseded`` if an older version of something came
        back, ``incomplete`` if something is missing.
    patient
        Label and value: patient data, as one instance of the study has it.
    findings
        Instances with something to say about, worst first; at most 40.
    unshown
        Findings beyond those.
    samples
        Of a study without findings: a frame of some series.
    caveats
        What limits this check.
    """

    study_instance_uid: str
    level: str
    headline: str
    sentences: tuple[str, ...]
    checked_at: str
    version: str
    patient: tuple[tuple[str, str], ...]
    chain: tuple[Step, ...]
    findings: tuple[InstanceFacts, ...]
    unshown: int
    instances: tuple[InstanceFacts, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    samples: tuple[tuple[str, Picture], ...]
    keys: tuple[KeyFacts, ...]
    caveats: tuple[str, ...]


def facts_of(check: StudyCheck, ring: KeyRing | None, *, checked_by: str = "") -> StudyFacts:
    """Return what is to be said about a study.

    Parameters
    ----------
    ring
        What it was checked with: whether a key is known, and what its public half is.
    checked_by
        AE title of whoever asked, or the name of a command.
    """
    entries = {entry.sop_instance_uid: entry for entry in check.entries}
    # Of a study of one instance the chain is the instance's.
    own = entries if len(check.instances) > 1 else {}
    bare = [
        _instance(each, own.get(each.sop_instance_uid), i) for i, each in enumerate(check.instances)
    ]
    older, unsent = frozenset(check.superseded), frozenset(check.unsent)
    told = [i for i, each in enumerate(check.instances) if is_finding(each, older)]
    told.sort(key=lambda i: (-ORDER.index(bare[i].verdict), i))
    findings, left = [], _MOST_PICTURES
    for i in told[:_MOST_FINDINGS]:
        each = check.instances[i]
        finding = _finding(each, bare[i], ring, min(left, _MOST_OF_ONE),
                           older=each.sop_instance_uid in older)  # fmt: skip
        left -= len(finding.pictures)
        findings.append(finding)
    level, headline, sentences = verdict_in_words(check)
    return StudyFacts(
        printable(check.study_instance_uid), level, headline, sentences,
        moment(check.checked_at.timestamp()), __version__, _patient(check.instances),
        chain_of(check, checked_by), tuple(findings), len(told) - len(findings), tuple(bare),
        tuple(
            _missing(uid, entries.get(uid), unsent=uid in unsent) for uid in check.missing
        ),
        tuple(map(printable, check.extra)),
        () if told else _samples(check.instances), _keys(check, ring), _caveats(check, ring),
    )  # fmt: skip


def is_finding(each: CheckedInstance, older: Container[str]) -> bool:
    """Whether there is anything to say about an instance but that it is authentic.

    `older` has the UIDs of what is superseded.
    """
    if each.sop_instance_uid in older:
        return True
    said = each.verdict
    unsealed = said.header_seal in ("absent", "invalid")
    return said.verdict != "authentic" or bool(said.changed) or unsealed


def _instance(
    each: CheckedInstance, entry: MarkedInstance | None, place: int = 0
) -> InstanceFacts:
    number = "" if each.instance_number is None else f" {each.instance_number}"
    said = each.verdict
    syntax = each.transfer_syntax_uid
    return InstanceFacts(
        printable(each.modality or "Instance", 16) + number, said.verdict,
        printable(said.sop_instance_uid), printable(each.series_instance_uid),
        printable(name_of(syntax)) if syntax else "", len(said.frames), place,
        chain=chain_of(StudyCheck("", datetime.now(UTC), entries=(entry,)), "") if entry else (),
    )  # fmt: skip


def _missing(uid: str, entry: MarkedInstance | None, *, unsent: bool) -> str:
    """Name an instance that did not come back as the registry knows it."""
    number = None if entry is None else entry.instance_number
    known = [] if entry is None else [printable(entry.modality or "Instance", 16)]
    known += [] if number is None else [str(number)]
    return " ".join([*known, printable(uid)]) + (", which the archive failed to send" * unsent)


def _finding(
    each: CheckedInstance, bare: InstanceFacts, ring: KeyRing | None, room: int, *, older: bool
) -> InstanceFacts:
    """Add what is to be said and shown about one instance; `room` pictures at most."""
    said = each.verdict
    remarks = [_OLDER] if older else []
    remarks += [printable(said.reason)] if said.reason else []
    remarks += _frame_remarks(said.frames)
    header = tuple(HeaderLine(printable(name), "", "", "", "") for name in said.changed)
    pictures: list[Picture] = []
    if each.path is not None:
        try:
            header = _header_lines(each, ring) or header
            shown = [f for f in said.frames if f.verdict != "authentic"][:room]
            pictures = pictures_of(each.path, shown, _CHANGED_PX)
        except (PixelError, OSError) as error:
            remarks.append(f"No picture or header can be shown: {printable(error)}")
    return InstanceFacts(
        bare.label, bare.verdict, bare.sop_instance_uid, bare.series_instance_uid,
        bare.transfer_syntax, bare.frames, bare.place, tuple(remarks), header, tuple(pictures),
        bare.chain,
    )  # fmt: skip


def _frame_remarks(frames: Sequence[FrameVerdict]) -> list[str]:
    """Return what the frames have to say; frames that say the same are named together."""
    said: dict[str, list[int]] = {}
    for frame in frames:
        if frame.verdict == "authentic" and not frame.reason:
            continue
        parts = [WORDS[frame.verdict][0].lower()]
        if frame.tampered:
            count = len(frame.tampered)
            by = ", by the content fingerprint" if frame.integrity == "absent" else ""
            parts.append(f"{count} changed {'region' if count == 1 else 'regions'}{by}")
        if frame.reason:
            parts.append(printable(frame.reason))
        if frame.robust.phash_distance is not None and frame.integrity == "absent":
            parts.append(f"the robust mark reads, {frame.robust.phash_distance} of 64 bits of "
                         "the perceptual hash differ")  # fmt: skip
        said.setdefault("; ".join(parts), []).append(frame.frame)
    return [f"{_frames(numbers)}: {text}." for text, numbers in said.items()]


def _frames(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"Frame {numbers[0]}"
    named = ", ".join(map(str, numbers[:12]))
    return f"Frames {named}" + (f" and {len(numbers) - 12} more" if len(numbers) > 12 else "")


def _header_lines(each: CheckedInstance, ring: KeyRing | None) -> tuple[HeaderLine, ...]:
    if each.path is None or ring is None or not each.verdict.changed:
        return ()
    with closing(open_data_file(each.path)) as data:
        header = data.read_header()
        changes = sealed_changes(header, data, ring)
        # Values from a header of their own: looking at one changes how it is held.
        shown = data.read_header()
        return tuple(_header_line(change, shown) for change in changes)


def _header_line(change: SealedChange, header: Dataset) -> HeaderLine:
    original = "" if change.original is None else value_text(change.original, change.tag)
    return HeaderLine(
        change.name, f"({change.tag >> 16:04X},{change.tag & 0xFFFF:04X})",
        change.before.hex(), change.now.hex(),
        value_text(header, change.tag), original,
    )  # fmt: skip


def _patient(instances: Sequence[CheckedInstance]) -> tuple[tuple[str, str], ...]:
    """Return patient and study as the first instance that can be read has them."""
    for each in instances:
        if each.path is None:
            continue
        try:
            with closing(open_data_file(each.path)) as data:
                header = data.read_header()
        except (PixelError, OSError):
            continue  # it is reported as unreadable; another one may name the patient
        rows = ((label, _dated(tag, value_text(header, tag))) for label, tag in _PATIENT)
        return tuple((label, value) for label, value in rows if value)
    return ()


def _dated(tag: int, value: str) -> str:
    """Return a date as 2026-11-21, anything else as it is."""
    if (
        tag not in (_BIRTH_DATE, _STUDY_DATE)
        or len(value) != 8
        or not (value.isascii() and value.isdigit())
    ):
        return value
    return f"{value[:4]}-{value[4:6]}-{value[6:]}"


def _samples(instances: Sequence[CheckedInstance]) -> tuple[tuple[str, Picture], ...]:
    """Return a picture from the middle of each of the first series."""
    series: dict[str, list[CheckedInstance]] = {}
    for each in instances:
        if each.path is not None and each.verdict.frames:
            series.setdefault(each.series_instance_uid, []).append(each)
    made: list[tuple[str, Picture]] = []
    for members in list(series.values())[:_SAMPLES]:
        chosen = members[len(members) // 2]
        frames = chosen.verdict.frames
        label = _instance(chosen, None).label
        assert chosen.path is not None  # filtered above
        try:
            middle = frames[len(frames) // 2]
            [picture] = pictures_of(chosen.path, [middle], _SAMPLE_PX)
        except (PixelError, OSError):
            continue  # a sample is no evidence: the verdict stands without it
        made.append((label, picture))
    return tuple(made)


def _keys(check: StudyCheck, ring: KeyRing | None) -> tuple[KeyFacts, ...]:
    owners = {
        each.verdict.signed_by: each.verdict.owner
        for each in check.instances if each.verdict.signed_by
    }  # fmt: skip
    for entry in check.entries:
        if entry.key_id:
            owners.setdefault(entry.key_id, "")
    return tuple(_key(key_id, owner, ring) for key_id, owner in sorted(owners.items()))


def _key(key_id: bytes, owner: str, ring: KeyRing | None) -> KeyFacts:
    keys = ring.get(key_id) if ring is not None else None
    if keys is None:
        return KeyFacts(key_id.hex(), printable(owner))
    der = _SPKI + keys.public_key
    body = base64.b64encode(der).decode("ascii")
    pem = f"-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----"
    return KeyFacts(
        key_id.hex(), printable(keys.owner or owner),
        moment(keys.created.timestamp()) if keys.created.timestamp() > 0 else "",
        hashlib.sha256(der).hexdigest(), pem,
    )  # fmt: skip


def _caveats(check: StudyCheck, ring: KeyRing | None) -> tuple[str, ...]:
    said = []
    if any(_is_likely(frame) for each in check.instances for frame in each.verdict.frames):
        said.append(OF_LIKELIHOOD)
    if ring is not None and not any(keys.has_secrets for keys in ring.all()):
        said.append("Checked with public keys alone: a change is found, but not where; the robust "
                    "mark is not read, so what lost its integrity mark counts as "
                    "unmarked.")  # fmt: skip
    if not check.entries:
        said.append("No registry was asked, or it does not know this study: whether instances are "
                    "missing cannot be said.")  # fmt: skip
    return tuple(said)


def _is_likely(frame: FrameVerdict) -> bool:
    """Whether a frame was judged by its robust mark: the integrity mark is gone."""
    return frame.integrity == "absent" and frame.robust.decoded


def findings_first(instances: Iterable[InstanceFacts]) -> list[InstanceFacts]:
    """Return instances as a table lists them: worst first, else in order."""
    return sorted(instances, key=lambda each: -ORDER.index(each.verdict))
