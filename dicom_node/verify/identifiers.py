"""Identifiers of query and retrieve: what a client asks for, and our private block in an answer.

References
----------
DICOM PS3.4 C.2.2 (attributes types and matching), C.3 (information models), C.4.2.1.4.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.tag import BaseTag

from dicom_node.errors import NodeError, PixelError
from dicom_node.instance.block import CREATOR, GROUP
from dicom_node.instance.elements import Scanner
from dicom_node.instance.parsing import parse_header
from dicom_node.instance.source import ByteSource
from dicom_node.instance.values import tag_of

Level = Literal["PATIENT", "STUDY", "SERIES", "IMAGE"]
LEVELS: Final[tuple[Level, ...]] = ("PATIENT", "STUDY", "SERIES", "IMAGE")
UNIQUE: Final[dict[Level, str]] = {
    "PATIENT": "PatientID",
    "STUDY": "StudyInstanceUID",
    "SERIES": "SeriesInstanceUID",
    "IMAGE": "SOPInstanceUID",
}
IMPLICIT = "1.2.840.10008.1.2"

# Elements of our block in identifiers; 01 to 0F are those of instances (`instance.block`).
VERDICT, VERIFIED_AT, AGE_S = 0x10, 0x11, 0x12
VERIFIED, TAMPERED, UNMARKED, MISSING = 0x13, 0x14, 0x15, 0x16
DETAILS, SUPERSEDED, VERIFY_NOW, PROGRESS = 0x17, 0x18, 0x20, 0x21
HEADERS_CHANGED, HEADERS_UNSEALED = 0x19, 0x1A

_UID = re.compile(r"[0-9.]{1,64}")
_MOST_UIDS = 10_000
_MOST_ELEMENTS = 512


class IdentifierError(NodeError):
    """An identifier that does not match its SOP class; the text holds none of its values."""

    status = 0xA900


@dataclass(frozen=True)
class Inquiry:
    """What an identifier asks for.

    Attributes
    ----------
    keys
        The identifier without our block.
    verify_now
        Whether the client wants matches re-checked first.
    """

    level: Level
    keys: Dataset
    verify_now: bool
    studies: tuple[str, ...] = ()
    series: tuple[str, ...] = ()
    instances: tuple[str, ...] = ()

    @property
    def tags(self) -> tuple[str, ...]:
        """Tags in the identifier, eight hex digits each."""
        return tuple(f"{int(tag):08X}" for tag in sorted(self.keys.keys()))


@dataclass(frozen=True)
class Standing:
    """What our block says of one match.

    Attributes
    ----------
    verdict
        The worst of the instances; "" where none was ever checked.
    verified_at
        Unix seconds: when the one checked longest ago was.
    verified, tampered, unmarked, missing
        Instances with a verdict; of these changed, foreign or unreadable; of these unmarked;
        instances that were delivered and did not come back.
    progress
        While a check goes on: how far it is.
    superseded
        Of those verified, older versions than the last that was delivered.
    headers_changed, headers_unsealed
        Of those verified: whose header is not what was signed; authentic ones whose header has no
        seal that holds.
    """

    verdict: str = ""
    verified_at: float | None = None
    verified: int = 0
    tampered: int = 0
    unmarked: int = 0
    missing: int = 0
    details: dict[str, Any] | None = None
    progress: str = ""
    superseded: int = 0
    headers_changed: int = 0
    headers_unsealed: int = 0


def decode(encoded: bytes, syntax: str) -> Dataset:
    """Return an identifier as a data set (IdentifierError if it is none)."""
    try:
        return parse_header(encoded, implicit=syntax == IMPLICIT, little=True)
    except PixelError:
        # The chain would carry values into a log.
        raise IdentifierError("the identifier cannot be parsed") from None


class _InMemory(ByteSource):
    """Bytes that the scanner walks as it walks a file."""

    def __init__(self, encoded: bytes) -> None:
        self._window, self._window_at, self.size = encoded, 0, len(encoded)

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes at `offset`."""
        return self._window[offset : offset + length]

    def window(self, offset: int, length: int) -> tuple[bytes, int]:
        """Return all bytes: no other window is needed."""
        return self._window, 0


def _require_whole(encoded: bytes, syntax: str) -> None:
    """Refuse what is cut short, which pydicom takes as far as it goes: it would ask for more."""
    scanner = Scanner(_InMemory(encoded), implicit=syntax == IMPLICIT, little=True)
    try:
        found = sum(1 for _ in itertools.islice(scanner.elements(0), _MOST_ELEMENTS + 1))
    except PixelError:
        raise IdentifierError("the identifier is cut short") from None
    if found > _MOST_ELEMENTS:
        raise IdentifierError(f"the identifier has more than {_MOST_ELEMENTS} elements")


def encode(ds: Dataset, syntax: str) -> bytes:
    """Return a data set encoded for a presentation context (IdentifierError)."""
    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = syntax == IMPLICIT, True
    try:
        write_dataset(stream, ds)
    except Exception:  # noqa: BLE001 - pydicom raises nearly anything on malformed values
        raise IdentifierError("a value of the identifier cannot be encoded") from None
    return stream.getvalue()


def parse(encoded: bytes, syntax: str, *, patient_root: bool, retrieve: bool) -> Inquiry:
    """Return what a client asks for.

    Parameters
    ----------
    retrieve
        For C-MOVE and C-GET, which need a unique key for their level and each above it.

    Raises
    ------
    IdentifierError
        Without a level of this model, with values that are no UIDs, or without a key it needs.
    """
    _require_whole(encoded, syntax)
    ds = decode(encoded, syntax)
    verify_now = bool(_own_value(ds, VERIFY_NOW).strip(b"\0 "))
    for tag in _own_tags(ds):
        del ds[tag]
    level = _text(ds, "QueryRetrieveLevel")
    levels = LEVELS if patient_root else LEVELS[1:]
    if level not in levels:
        raise IdentifierError(f"Query/Retrieve Level is not one of {', '.join(levels)}")
    if not retrieve:
        _open_universal(ds)
    uids = [_uids(ds, UNIQUE[each]) for each in LEVELS[1:]]
    inquiry = Inquiry(level, ds, verify_now, *uids)
    if retrieve:
        _require_keys(inquiry, ds, patient_root=patient_root)
    return inquiry


def _open_universal(ds: Dataset) -> None:
    """Empty a unique key that is a lone ``*``: some clients write universal matching so."""
    for level in LEVELS[1:]:
        if _text(ds, UNIQUE[level]) == "*":
            ds.add(DataElement(tag_of(_TAG[UNIQUE[level]]), "UI", ""))


def _require_keys(inquiry: Inquiry, ds: Dataset, *, patient_root: bool) -> None:
    depth = LEVELS.index(inquiry.level)
    given = dict(zip(LEVELS[1:], (inquiry.studies, inquiry.series, inquiry.instances), strict=True))
    for each in LEVELS[1 : depth + 1]:
        if not given[each]:
            raise IdentifierError(f"{UNIQUE[each]} is missing: retrieve needs it at this level")
        if each != inquiry.level and len(given[each]) > 1:
            raise IdentifierError(f"{UNIQUE[each]} is a list above the level that is retrieved")
    if inquiry.level == "PATIENT" or (patient_root and "PatientID" in ds):
        patient = _text(ds, "PatientID")
        if inquiry.level == "PATIENT" and (not patient or set(patient) & set("*?\\")):
            raise IdentifierError("Patient ID is not a single value")


def _uids(ds: Dataset, keyword: str) -> tuple[str, ...]:
    text = _text(ds, keyword)
    values = tuple(value.strip(" \0") for value in text.split("\\")) if text else ()
    if len(values) > _MOST_UIDS or not all(map(_UID.fullmatch, values)):
        raise IdentifierError(f"{keyword} holds something that is no UID")
    return tuple(dict.fromkeys(values))


def _text(ds: Dataset, keyword: str) -> str:
    """Return an element's text without conversion, multiple values joined by backslashes."""
    if keyword not in ds:
        return ""
    item: DataElement | RawDataElement = ds.get_item(keyword)
    value = item.value
    if isinstance(value, bytes):
        return value.decode("latin-1").strip(" \0")
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip(" \0")
    return "\\".join(map(str, value)) if isinstance(value, Iterable) else str(value)


def text_of(ds: Dataset, keyword: str) -> str:
    """Return an ASCII text of a match, "" where it is absent."""
    return _text(ds, keyword)


def with_keys(keys: Dataset, level: Level) -> Dataset:
    """Return an identifier that asks for the unique keys of its level and those above it, too."""
    asked = Dataset(dict(keys.items()))
    for each in LEVELS[1 : LEVELS.index(level) + 1]:
        if UNIQUE[each] not in asked:
            asked.add(DataElement(tag_of(_TAG[UNIQUE[each]]), "UI", ""))
    return asked


def answer(match: Dataset, asked: Dataset, standing: Standing | None, retrieve_ae: str) -> Dataset:
    """Return a match as the client gets it: only keys it asked for, and our block.

    `retrieve_ae` is where the client can retrieve it, which is from us.
    """
    ds = Dataset(dict(match.items()))
    for keyword in UNIQUE.values():
        if keyword in ds and keyword not in asked:
            del ds[keyword]
    for tag in _own_tags(ds):
        del ds[tag]
    if "RetrieveAETitle" in ds:
        ds.RetrieveAETitle = retrieve_ae
    if standing is not None:
        _put_block(ds, standing)
    return ds


def _put_block(ds: Dataset, standing: Standing) -> None:
    taken = {tag & 0xFFFF for tag in map(int, ds.keys()) if tag >> 16 == GROUP}
    slot = next((n for n in range(0x10, 0x100) if n not in taken), None)
    if slot is None:
        raise IdentifierError(f"every private block of group {GROUP:04X} is taken")

    def put(element: int, vr: str, value: object) -> None:
        ds.add(DataElement(tag_of(GROUP << 16 | slot << 8 | element), vr, value))

    ds.add(DataElement(tag_of(GROUP << 16 | slot), "LO", CREATOR))
    put(VERDICT, "LO", standing.verdict)
    if standing.verified_at is not None:
        when = datetime.fromtimestamp(standing.verified_at, UTC)
        put(VERIFIED_AT, "DT", when.strftime("%Y%m%d%H%M%S+0000"))
        put(AGE_S, "UL", max(0, int(datetime.now(UTC).timestamp() - standing.verified_at)))
    put(VERIFIED, "UL", standing.verified)
    put(TAMPERED, "UL", standing.tampered)
    put(UNMARKED, "UL", standing.unmarked)
    put(MISSING, "UL", standing.missing)
    if standing.details is not None:
        put(DETAILS, "UT", json.dumps(standing.details, separators=(",", ":")))
    put(SUPERSEDED, "UL", standing.superseded)
    put(HEADERS_CHANGED, "UL", standing.headers_changed)
    put(HEADERS_UNSEALED, "UL", standing.headers_unsealed)
    if standing.progress:
        put(PROGRESS, "LO", standing.progress)


def read_block(ds: Dataset) -> dict[int, bytes]:
    """Return the elements of our block in an answer by number, as they are encoded."""
    return {int(tag) & 0xFF: _bytes(ds.get_item(tag)) for tag in _own_tags(ds)[1:]}


def _own_tags(ds: Dataset) -> list[BaseTag]:
    """Return the tags of our block, its creator's first; [] without one."""
    ours = sorted(tag for tag in map(int, ds.keys()) if tag >> 16 == GROUP)
    for tag in ours:
        slot = tag & 0xFFFF
        if 0x10 <= slot < 0x100:
            creator = _bytes(ds.get_item(tag_of(tag))).decode("ascii", "replace").strip(" \0")
            if creator == CREATOR:
                inside = [each for each in ours if (each & 0xFFFF) >> 8 == slot]
                return [tag_of(each) for each in (tag, *inside)]
    return []


def _own_value(ds: Dataset, element: int) -> bytes:
    return read_block(ds).get(element, b"")


def _bytes(item: DataElement | RawDataElement) -> bytes:
    value = item.value
    if isinstance(value, bytes):
        return value
    return b"" if value is None else str(value).encode("ascii", "replace")


_TAG: Final[dict[str, int]] = {
    "PatientID": 0x00100020,
    "StudyInstanceUID": 0x0020000D,
    "SeriesInstanceUID": 0x0020000E,
    "SOPInstanceUID": 0x00080018,
}


def keys_of(level: Level, values: dict[str, str], wanted: Iterable[str] = ()) -> Dataset:
    """Return an identifier of our own: matching keys by keyword, and what is to be returned."""
    ds = Dataset()
    ds.QueryRetrieveLevel = level
    for keyword, value in values.items():
        setattr(ds, keyword, value.split("\\") if "\\" in value else value)
    for keyword in wanted:
        if keyword not in ds:
            setattr(ds, keyword, None if keyword != "ModalitiesInStudy" else "")
    return ds
