"""The schema of DICOM audit messages (PS3.15 A.5.1.1, RELAX NG compact), restated to check with.

Each element has a table of its attributes and children; a child is given with how often it may
occur, in the order it has to. What an attribute or a text may be is a regular expression.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from xml.etree import ElementTree as Xml

TOKEN = r"\S(?:.*\S)?|"
TEXT = r"(?s:.*)"
BASE64 = r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)"
UID = r"[0-2](?:\.(?:0|[1-9]\d*))*"
BOOLEAN = "true|false|0|1"


def _one_of(*values):
    return "|".join(values)


@dataclass
class Element:
    """Attributes as ``{name: (pattern, required)}``, children as ``[(name, least, most)]``."""

    attributes: dict = field(default_factory=dict)
    children: list = field(default_factory=list)
    text: str = ""
    either: tuple = ()


_CODE = {
    "csd-code": (TOKEN, True), "codeSystemName": (TOKEN, True), "displayName": (TOKEN, False),
    "originalText": (TOKEN, True),
}  # fmt: skip
MANY = 10**6

ELEMENTS = {
    "AuditMessage": Element(children=[
        ("EventIdentification", 1, 1), ("ActiveParticipant", 1, MANY),
        ("AuditSourceIdentification", 1, 1), ("ParticipantObjectIdentification", 0, MANY),
    ]),
    "EventIdentification": Element(
        {"EventActionCode": (_one_of(*"CRUDE"), False), "EventDateTime": (TIME, True),
         "EventOutcomeIndicator": (_one_of("0", "4", "8", "12"), True)},
        [("EventID", 1, 1), ("EventTypeCode", 0, MANY), ("EventOutcomeDescription", 0, 1)],
    ),
    "ActiveParticipant": Element(
        {"UserID": (TEXT, True), "AlternativeUserID": (TEXT, False), "UserName": (TEXT, False),
         "UserIsRequestor": (BOOLEAN, True), "NetworkAccessPointID": (TOKEN, False),
         "NetworkAccessPointTypeCode": (_one_of(*"12345"), False)},
        [("RoleIDCode", 0, MANY), ("MediaIdentifier", 0, 1)],
    ),
    "MediaIdentifier": Element(children=[("MediaType", 1, 1)]),
    "AuditSourceIdentification": Element(
        {"AuditEnterpriseSiteID": (TOKEN, False), "AuditSourceID": (TOKEN, True)},
        [("AuditSourceTypeCode", 0, MANY)],
    ),
    "AuditSourceTypeCode": Element(
        {name: (pattern, name == "csd-code") for name, (pattern, _) in _CODE.items()}
    ),
    "ParticipantObjectIdentification": Element(
        {"ParticipantObjectID": (TOKEN, True),
         "ParticipantObjectTypeCode": (_one_of(*"1234"), False),
         "ParticipantObjectTypeCodeRole": (_one_of(*map(str, range(1, 27))), False),
         "ParticipantObjectDataLifeCycle": (_one_of(*map(str, range(1, 16))), False),
         "ParticipantObjectSensitivity": (TOKEN, False)},
        [("ParticipantObjectIDTypeCode", 1, 1), ("ParticipantObjectName", 0, 1),
         ("ParticipantObjectQuery", 0, 1), ("ParticipantObjectDetail", 0, MANY),
         ("ParticipantObjectDescription", 0, MANY)],
        either=("ParticipantObjectName", "ParticipantObjectQuery"),
    ),
    "ParticipantObjectName": Element(text=TOKEN),
    "ParticipantObjectQuery": Element(text=BASE64),
    "EventOutcomeDescription": Element(text=TEXT),
    "ParticipantObjectDetail": Element({"type": (TOKEN, True), "value": (BASE64, True)}),
    "ParticipantObjectDescription": Element(children=[
        ("MPPS", 0, MANY), ("Accession", 0, MANY), ("SOPClass", 0, MANY),
        ("ParticipantObjectContainsStudy", 0, 1), ("Encrypted", 0, 1), ("Anonymized", 0, 1),
    ]),
    "SOPClass": Element(
        {"UID": (UID, False), "NumberOfInstances": (r"\d+", True)}, [("Instance", 0, MANY)]
    ),
    "Instance": Element({"UID": (UID, True)}),
    **{name: Element(_CODE) for name in (
        "EventID", "EventTypeCode", "RoleIDCode", "MediaType", "ParticipantObjectIDTypeCode",
    )},
}  # fmt: skip


def problems(xml: bytes) -> list[str]:
    """Return what is wrong with a message; [] if it is valid."""
    root = Xml.fromstring(xml)
    found = [] if root.tag == "AuditMessage" else [f"the root is {root.tag}"]
    return found + _check(root, root.tag)


def _check(element, path):
    known = ELEMENTS.get(element.tag)
    if known is None:
        return [f"{path}: unknown element"]
    found = []
    for name, value in element.attrib.items():
        pattern = known.attributes.get(name)
        if pattern is None or not re.fullmatch(pattern[0], value):
            found.append(f"{path}@{name} = {value!r}")
    for name, (_, required) in known.attributes.items():
        if required and name not in element.attrib:
            found.append(f"{path}@{name} is missing")
    if not re.fullmatch(known.text, element.text or ""):
        found.append(f"{path}: text {element.text!r}")
    found += _children(element, known, path)
    for child in element:
        found += _check(child, f"{path}/{child.tag}")
    return found


def _children(element, known, path):
    names = [child.tag for child in element]
    order = [name for name, _, _ in known.children]
    found = [f"{path}: {name} does not belong here" for name in names if name not in order]
    inside = [order.index(name) for name in names if name in order]
    if inside != sorted(inside):
        found.append(f"{path}: children out of order: {names}")
    for name, least, most in known.children:
        if not least <= names.count(name) <= most:
            found.append(f"{path}: {names.count(name)} x {name}")
    if known.either and sum(names.count(name) for name in known.either) != 1:
        found.append(f"{path}: exactly one of {known.either}")
    return found
