"""The XML of one DICOM audit message: what PS3.15 A.5.1 calls by which name, and in which order.

References
----------
DICOM PS3.15 A.5.1.1 (schema), A.5.2 (conventions).
"""

from __future__ import annotations

import base64
import ipaddress
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from xml.etree import ElementTree as Xml

from dicom_node.audit.events import Event, format_time

Code = tuple[str, str, str]
"""Value, scheme, meaning."""

LONGEST: Final = 600
"""Characters of a value; a whole message stays below the 64 KiB of a datagram."""

_DECLARATION: Final = '<?xml version="1.0" encoding="UTF-8"?>'
_UID: Final = 64  # characters, PS3.5 9.1
_STUDY: Final[Code] = ("110180", "DCM", "Study Instance UID")


@dataclass(frozen=True)
class Node:
    """Who sends the messages: AE title, host name, the hospital (``watermark.owner``)."""

    ae_title: str
    host: str
    site: str


@dataclass(frozen=True)
class AuditMessage:
    """One message: when the event was, and its XML in UTF-8."""

    at: datetime
    xml: bytes


@dataclass(frozen=True)
class Party:
    """An active participant; `ae_title` or, for people and media, `user`."""

    role: Code | None = None
    ae_title: str = ""
    address: str = ""
    user: str = ""
    asked: bool = False


@dataclass(frozen=True)
class Study:
    """Instances of one study by SOP class; `counts` where they are not named one by one."""

    uid: str
    named: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Draft:
    """What one message says: event, action, outcome, who, which types, about what."""

    event: Code
    action: str
    outcome: int
    parties: tuple[Party, ...]
    types: tuple[Code, ...] = ()
    said: str = ""
    objects: tuple[Xml.Element, ...] = ()


def document(at: datetime, draft: Draft, node: Node) -> bytes:
    """Return a message in UTF-8, with its XML declaration, without a line feed."""
    root = Xml.Element("AuditMessage")
    event = Xml.SubElement(root, "EventIdentification", {
        "EventActionCode": draft.action, "EventDateTime": format_time(at),
        "EventOutcomeIndicator": str(draft.outcome),
    })  # fmt: skip
    _code(event, "EventID", draft.event)
    for kind in draft.types:
        _code(event, "EventTypeCode", kind)
    if draft.said:
        Xml.SubElement(event, "EventOutcomeDescription").text = _clean(draft.said)
    for party in draft.parties:
        root.append(_participant(party))
    source = Xml.SubElement(root, "AuditSourceIdentification", {
        "AuditEnterpriseSiteID": _clean(node.site),
        "AuditSourceID": _clean(f"{node.ae_title}@{node.host}"),
    })  # fmt: skip
    Xml.SubElement(source, "AuditSourceTypeCode", {"csd-code": "4"})
    root.extend(draft.objects)
    # On one line: collectors escape line feeds, and what they keep would be no XML.
    return (_DECLARATION + Xml.tostring(root, encoding="unicode")).encode("utf-8")


def _code(parent: Xml.Element, name: str, code: Code) -> None:
    value, scheme, meaning = code
    Xml.SubElement(parent, name, {
        "csd-code": value, "codeSystemName": scheme, "originalText": meaning,
    })  # fmt: skip


def _participant(party: Party) -> Xml.Element:
    user = party.user or party.ae_title or "unknown"
    attributes = {"UserID": _clean(user), "UserIsRequestor": str(party.asked).lower()}
    if party.ae_title:
        attributes["AlternativeUserID"] = _clean(f"AETITLES={party.ae_title}")
    if party.address:
        host, _, port = party.address.rpartition(":")
        host = host.strip("[]") if host and port.isdigit() and not _is_address(party.address) \
            else party.address
        attributes["NetworkAccessPointID"] = _clean(host)
        attributes["NetworkAccessPointTypeCode"] = "2" if _is_address(host) else "1"
    element = Xml.Element("ActiveParticipant", attributes)
    if party.role is not None:
        _code(element, "RoleIDCode", party.role)
    return element


def studies_in(events: Sequence[Event]) -> tuple[Xml.Element, ...]:
    """Return a participating object for every study among some events, instances named."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for event in events:
        uid = getattr(event, "sop_instance_uid", "")
        if uid or getattr(event, "study_instance_uid", ""):
            instances = found[getattr(event, "study_instance_uid", "")]
            instances[getattr(event, "sop_class_uid", "")] += [uid] if uid else []
    return tuple(study_object(Study(uid, dict(named))) for uid, named in found.items())


def study_object(study: Study) -> Xml.Element:
    """Return a study as a participating object, with what is known of its instances."""
    element = object_of("3", _STUDY, study.uid, "study")
    listed = {uid: len(named) for uid, named in study.named.items() if named} | study.counts
    if listed:
        description = Xml.SubElement(element, "ParticipantObjectDescription")
        for sop_class, count in listed.items():
            attributes = {"UID": _clean(sop_class)[:_UID]} if sop_class else {}
            attributes["NumberOfInstances"] = str(count)
            parent = Xml.SubElement(description, "SOPClass", attributes)
            for uid in study.named.get(sop_class, ()):
                Xml.SubElement(parent, "Instance", {"UID": _clean(uid)[:_UID]})
    return element


def object_of(
    role: str, kind: Code, identifier: str, name: str = "", *,
    query: bytes | None = None, details: dict[str, str] | None = None,
) -> Xml.Element:  # fmt: skip
    """Return a participating system object; it has a name, or the query that was asked."""
    element = Xml.Element("ParticipantObjectIdentification", {
        "ParticipantObjectID": _clean(identifier), "ParticipantObjectTypeCode": "2",
        "ParticipantObjectTypeCodeRole": role,
    })  # fmt: skip
    _code(element, "ParticipantObjectIDTypeCode", kind)
    if query is None:
        Xml.SubElement(element, "ParticipantObjectName").text = _clean(name)
    else:
        text = base64.b64encode(query).decode("ascii")
        Xml.SubElement(element, "ParticipantObjectQuery").text = text
    for key, value in (details or {}).items():
        encoded = base64.b64encode(value.encode("utf-8")).decode("ascii")
        Xml.SubElement(element, "ParticipantObjectDetail", {"type": key, "value": encoded})
    return element


def _clean(text: str) -> str:
    """Replace what XML 1.0 cannot hold, and keep it short: peers choose titles and UIDs."""
    return "".join(
        c if " " <= c < "\ud800" or "\ue000" <= c <= "\ufffd" or c > "\uffff"
        else " " if c in "\t\n\r" else "\ufffd"
        for c in text[:LONGEST]
    )  # fmt: skip


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
