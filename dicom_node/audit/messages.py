"""DICOM audit messages (PS3.15 A.5) for the events of the trail.

=================  ==============================================  ======  ========================
event              message                                         action  outcome
=================  ==============================================  ======  ========================
activity           110100 Application Activity                     E       0
marked             110104 Instances Transferred (modality to us)   C       0
                   110103 Instances Accessed, if it was changed    U       0
forwarded          110104 Instances Transferred (us to the PACS)   R       0
refused, receive   110104 Instances Transferred (sender to us)     C       4 held, else 8
refused, mark      110103 Instances Accessed                       U       4 held, else 8
refused, forward   110104 Instances Transferred (us to the peer)   R       4 held, else 8
refused, retrieve  110104 Instances Transferred (us to the peer)   R       8
refused, query     110112 Query                                    E       8
refused, associate 110113 Security Alert, 110126 Node Authentic.   E       8
queried            110112 Query                                    E       0, 8 if it failed
retrieved          110104 Instances Transferred, given and failed  R       0; 8 those that failed
verified           110103 Instances Accessed                       R       0
                   110113 Security Alert, 99DICOMNODE integrity,   E       8
                   where the verdict alarms
                   110113 Security Alert, 99DICOMNODE header,      E       4
                   where it does not and the header is not as
                   signed
verdict-given      110103 Instances Accessed                       R       0
                   110113 Security Alert, 99DICOMNODE integrity,   E       8
                   where anything is suspect, missing or an older
                   version than was delivered
restored           110106 Data Export (command), else 110103       R       0, 8 if not exact
key-used           110113 Security Alert, 110129 or 110132         E       0
recovered          110113 Security Alert, 110133                   E       4
=================  ==============================================  ======  ========================

Neighbours of one kind, study and peer become one message. The trail holds no patient data, so the
Patient object that most tables want is left out, and of a query's keys only the tags and UIDs are
there.

References
----------
DICOM PS3.15 A.5.2 (conventions), A.5.3.1, .3, .6, .7, .10, .11; PS3.16 CID 400, 403.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Final
from xml.etree import ElementTree as Xml

from dicom_node.audit.events import (
    Activity,
    Event,
    Forwarded,
    KeyUsed,
    Marked,
    Queried,
    Recovered,
    Refused,
    Restored,
    Retrieved,
    VerdictGiven,
    Verified,
)
from dicom_node.audit.message_xml import (
    AuditMessage,
    Code,
    Draft,
    Node,
    Party,
    Study,
    document,
    object_of,
    studies_in,
    study_object,
)

MOST_INSTANCES: Final = 100
QUIET: Final = frozenset({"authentic", "content-preserved"})
"""Verdicts that raise no alert."""
ALARMING: Final = ("tampered", "foreign", "unreadable", "missing", "superseded")
"""What of the counts of a study raises one."""
_OWN_CHECKS: Final = ("cli", "audit", "nightly")
_BY_NETWORK: Final = ("find", "retrieve")

ACTIVITY: Final[Code] = ("110100", "DCM", "Application Activity")
ACCESSED: Final[Code] = ("110103", "DCM", "DICOM Instances Accessed")
TRANSFERRED: Final[Code] = ("110104", "DCM", "DICOM Instances Transferred")
EXPORT: Final[Code] = ("110106", "DCM", "Export")
QUERY: Final[Code] = ("110112", "DCM", "Query")
ALERT: Final[Code] = ("110113", "DCM", "Security Alert")
_STARTED: Final[Code] = ("110120", "DCM", "Application Start")
_STOPPED: Final[Code] = ("110121", "DCM", "Application Stop")
_NODE_AUTHENTICATION: Final[Code] = ("110126", "DCM", "Node Authentication")
_CONFIGURATION: Final[Code] = ("110129", "DCM", "Security Configuration")
_RESTRICTED: Final[Code] = ("110132", "DCM", "Use of Restricted Function")
_RECORDING_STOPPED: Final[Code] = ("110133", "DCM", "Audit Recording Stopped")
_INTEGRITY: Final[Code] = ("integrity", "99DICOMNODE", "Image integrity violated")
_HEADER: Final[Code] = ("header", "99DICOMNODE", "Image header not as signed")
_MOST_ATTRIBUTES: Final = 20
_APPLICATION: Final[Code] = ("110150", "DCM", "Application")
_SOURCE: Final[Code] = ("110153", "DCM", "Source Role ID")
_DESTINATION: Final[Code] = ("110152", "DCM", "Destination Role ID")
_MEDIA: Final[Code] = ("110154", "DCM", "Destination Media")
_SOP_CLASS: Final[Code] = ("110181", "DCM", "SOP Class UID")
_NODE: Final[Code] = ("110182", "DCM", "Node ID")
_FIND: Final = {
    "study": "1.2.840.10008.5.1.4.1.2.2.1", "patient": "1.2.840.10008.5.1.4.1.2.1.1",
}  # fmt: skip
_IMPLICIT: Final = "1.2.840.10008.1.2"


def messages_of(events: Iterable[Event], node: Node) -> list[AuditMessage]:
    """Return the messages for some events in their order."""
    found = []
    for _, group in groupby(events, _group_key):
        for some in _chunks(list(group), MOST_INSTANCES):
            at = max(event.at for event in some)
            found += [AuditMessage(at, document(at, draft, node)) for draft in _drafts(some, node)]
    return found


def _chunks(events: list[Event], size: int) -> Iterator[list[Event]]:
    for start in range(0, len(events), size):
        yield events[start : start + size]


def _group_key(event: Event) -> tuple[object, ...]:
    """Return what events of one message have in common; an event of its own for the rest."""
    match event:
        case Marked():
            return (event.kind, event.study_instance_uid, event.source_ae, event.action)
        case Forwarded():
            return (event.kind, event.study_instance_uid, event.destination, event.ae_title)
        case Verified():
            return (event.kind, event.study_instance_uid, event.checked_by, event.verdict,
                    event.changed, event.header_seal)  # fmt: skip
        case _:
            return (id(event),)


def _drafts(events: Sequence[Event], node: Node) -> list[Draft]:
    """Return what to say of events that `_group_key` put together."""
    ours = Party(ae_title=node.ae_title, address=node.host)
    first = events[0]
    match first:
        case Marked():
            return _marked(first, studies_in(events), ours)
        case Forwarded():
            peer = Party(ae_title=first.ae_title or first.destination, address=first.address)
            return [_transfer("R", 0, ours, peer, studies_in(events))]
        case Refused():
            return [_refused(first, ours)]
        case Queried():
            return [_query(first, ours)]
        case Retrieved():
            return _retrieved(first, ours)
        case Verified():
            return _verified(first, studies_in(events), ours)
        case VerdictGiven():
            return _given(first, ours)
        case Restored():
            return [_restored(first, studies_in(events), ours)]
        case _:
            return [_of_the_node(first, ours)]


def _of_the_node(event: Event, ours: Party) -> Draft:
    match event:
        case Activity():
            kind = _STARTED if event.action == "start" else _STOPPED
            return Draft(ACTIVITY, "E", 0, (replace(ours, role=_APPLICATION, user=event.process),),
                          (kind,))  # fmt: skip
        case KeyUsed():
            kind = _RESTRICTED if event.use in ("restore", "sign") else _CONFIGURATION
            user = Party(user=event.by or "unknown", asked=True)
            subject = object_of("13", _NODE, event.key_id, "signing key",
                              details={"Alert Description": f"key {event.use}"})  # fmt: skip
            return Draft(ALERT, "E", 0, (ours, user), (kind,), objects=(subject,))
        case Recovered():
            said = f"an unfinished write of {event.size} bytes was set aside in {event.kept_as}"
            return Draft(ALERT, "E", 4, (replace(ours, asked=True),), (_RECORDING_STOPPED,), said)
        case _:
            raise TypeError(f"no message for {type(event).__name__}")


def _marked(event: Marked, studies: tuple[Xml.Element, ...], ours: Party) -> list[Draft]:
    modality = Party(ae_title=event.source_ae, address=event.source_address, asked=True)
    received = _transfer("C", 0, modality, ours, studies)
    if event.action == "untouched":
        return [received]
    return [received, _accessed("U", 0, (ours,), studies)]


def _refused(event: Refused, ours: Party) -> Draft:
    peer = Party(ae_title=event.peer_ae, address=event.peer_address)
    outcome = 4 if event.outcome == "held" else 8
    studies = studies_in([event])
    asked = replace(peer, asked=True)
    match event.stage:
        case "receive":
            said = event.reason + (f" ({event.count} of them)" if event.count else "")
            return _transfer("C", outcome, asked, ours, studies, said)
        case "mark":
            return _accessed("U", outcome, (ours,), studies, event.reason)
        case "forward" | "retrieve":
            return _transfer("R", outcome, ours, peer, studies, event.reason)
        case "query":
            return Draft(QUERY, "E", outcome,
                          (replace(asked, role=_SOURCE), replace(ours, role=_DESTINATION)),
                          said=event.reason)  # fmt: skip
        case _:
            return Draft(ALERT, "E", outcome, (replace(ours, asked=True), peer),
                          (_NODE_AUTHENTICATION,), event.reason)  # fmt: skip


def _query(event: Queried, ours: Party) -> Draft:
    client = Party(_SOURCE, event.client_ae, event.client_address, asked=True)
    asked = object_of(
        "3", _SOP_CLASS, _FIND[event.model], query=_identifier(event),
        details={"TransferSyntax": _IMPLICIT, "Level": event.level, "Matches": str(event.matches)},
    )  # fmt: skip
    outcome = 0 if event.status in (0x0000, 0xFE00) else 8
    return Draft(QUERY, "E", outcome, (client, replace(ours, role=_DESTINATION)), objects=(asked,))


def _identifier(event: Queried) -> bytes:
    """Return the query's keys without their values (but the study's UID), Implicit VR."""
    found = bytearray()
    for tag in sorted(event.keys):
        value = b""
        if tag.lower() == "0020000d":
            value = event.study_instance_uid.encode("ascii", "replace")
            value += bytes(len(value) % 2)
        group, element = int(tag[:4], 16), int(tag[4:], 16)
        found += struct.pack("<HHL", group, element, len(value)) + value
    return bytes(found)


def _retrieved(event: Retrieved, ours: Party) -> list[Draft]:
    """Say what was given and what was not in messages of their own, as A.5.2 asks."""
    peer = Party(ae_title=event.destination_ae or event.client_ae,
                  address=event.destination_address or event.client_address)  # fmt: skip
    others: tuple[Party, ...] = ()
    if event.client_ae == peer.ae_title:
        peer = replace(peer, asked=True)
    else:
        others = (Party(ae_title=event.client_ae, address=event.client_address, asked=True),)
    drafts = []
    classes = event.sop_class_uids or ("",)
    for outcome, count in ((0, event.instances + event.warnings), (8, event.failed)):
        if count or (outcome == 0 and not event.failed):
            said = "" if outcome == 0 else f"status 0x{event.status:04X}, policy {event.policy}"
            counted = {classes[0]: count} if len(classes) == 1 else {"": count}
            study = study_object(Study(event.study_instance_uid, counts=counted))
            drafts.append(_transfer("R", outcome, ours, peer, (study,), said, others))
    return drafts


def _verified(event: Verified, studies: tuple[Xml.Element, ...], ours: Party) -> list[Draft]:
    ae_title = "" if event.checked_by in _OWN_CHECKS else event.checked_by
    client = Party(ae_title=ae_title, user=event.checked_by, asked=True)
    header = _header_of(event)
    drafts = [_accessed("R", 0, (ours, client), studies, header)]
    loud = event.verdict not in QUIET
    if loud or header:
        said = f"verdict {event.verdict}" + (f": {event.reason}" if event.reason else "")
        said += f"; {header}" if header else ""
        # Pixels are as they were: by A.5.3.11 a minor one, where the image itself is serious.
        outcome, kind = (8, _INTEGRITY) if loud else (4, _HEADER)
        drafts.append(Draft(ALERT, "E", outcome, (replace(ours, asked=True),), (kind,), said,
                             studies))  # fmt: skip
    return drafts


def _given(event: VerdictGiven, ours: Party) -> list[Draft]:
    """Say what was told; what is wrong with a study as a whole has no other message."""
    ae_title = event.given_to if event.how in _BY_NETWORK else ""
    client = Party(ae_title=ae_title, user=event.given_to, address=event.address, asked=True)
    study = study_object(Study(event.study_instance_uid))
    counted = ", ".join(f"{count} {what}" for what, count in event.counts.items() if count)
    said = f"verdict {event.verdict}" + (f": {counted}" if counted else "")
    drafts = [_accessed("R", 0, (ours, client), (study,), said)]
    if any(event.counts.get(what) for what in ALARMING):
        drafts.append(Draft(ALERT, "E", 8, (replace(ours, asked=True),), (_INTEGRITY,), said,
                            (study,)))  # fmt: skip
    return drafts


def _header_of(event: Verified) -> str:
    """Return what there is to say of a header; "" where it is as it was signed."""
    said = []
    if event.changed:
        more = len(event.changed) - _MOST_ATTRIBUTES
        named = ", ".join(event.changed[:_MOST_ATTRIBUTES])
        said.append(f"header changed: {named}" + (f" and {more} more" if more > 0 else ""))
    if event.verdict == "authentic" and event.header_seal:
        said.append(f"header seal {event.header_seal}")
    return "; ".join(said)


def _restored(event: Restored, studies: tuple[Xml.Element, ...], ours: Party) -> Draft:
    outcome = 0 if event.exact else 8
    user = Party(user=event.by or "unknown", asked=True)
    if event.how != "command":
        return _accessed("R", outcome, (ours, user), studies, event.reason)
    media = Party(_MEDIA, user=event.destination or "file")
    return Draft(EXPORT, "R", outcome, (replace(user, role=_SOURCE), media), said=event.reason,
                  objects=studies)  # fmt: skip


def _transfer(
    action: str, outcome: int, source: Party, destination: Party,
    studies: tuple[Xml.Element, ...], said: str = "", others: tuple[Party, ...] = (),
) -> Draft:  # fmt: skip
    parties = (replace(source, role=_SOURCE), replace(destination, role=_DESTINATION), *others)
    return Draft(TRANSFERRED, action, outcome, parties, said=said, objects=studies)


def _accessed(
    action: str, outcome: int, parties: tuple[Party, ...], studies: tuple[Xml.Element, ...],
    said: str = "",
) -> Draft:  # fmt: skip
    return Draft(ACCESSED, action, outcome, parties, said=said, objects=studies)
