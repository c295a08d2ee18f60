"""New SOP Instance UIDs for marked instances, and references that follow them.

Under ``uid_policy = "derive"`` a marked instance is a new one. The UID follows from the old one and
a key, so that a repetition gets the same. Which instances have one is not decided here.

References
----------
DICOM PS3.5 B.2 (UUID derived UID), PS3.3 C.7.6.1.1.2, PS3.3 10.8 (SOP Instance Reference Macro).
"""

from __future__ import annotations

import copy
import hmac
import uuid
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicom_node.errors import PixelError
from dicom_node.instance.values import known_vr

SOURCE_IMAGES = 0x00082112
_REFERENCED = 0x00081155
# What is said of the past keeps the UIDs of the past.
_ORIGINAL_ATTRIBUTES = 0x04000561
# Study, performed procedure step, patient, visit: their instances are in no archive.
_NOT_STORED = frozenset((0x00081110, 0x00081111, 0x00081120, 0x00081125))
_CONTEXT = b"dicom-node derived uid 1"
# As they are encoded: a sequence without one refers to nothing, and need not be parsed.
_MARKS = (b"\x08\x00\x55\x11", b"\x00\x08\x11\x55")

Item = DataElement | RawDataElement
NewUID = Callable[[str], str | None]
"""New UID by old one; None for an instance that keeps its own."""


class Reference(NamedTuple):
    """One SOP Instance Reference Macro.

    Attributes
    ----------
    level
        The item (or the data set) that holds it.
    uid
        Referenced SOP Instance UID.
    is_source
        It stands in a Source Image Sequence.
    """

    level: Dataset
    uid: str
    is_source: bool


def derive_uid(uid: str, key: bytes) -> str:
    """Return the UID that a marked instance has instead of `uid`.

    Parameters
    ----------
    uid
        SOP Instance UID as received.
    key
        Secret: another hospital's node must not give the same UID to what it makes of `uid`.
    """
    digest = hmac.digest(key, _CONTEXT + uid.encode(), "sha3_256")
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"


def referenced_uids(header: Dataset) -> frozenset[str]:
    """Return the UIDs of all stored instances that `header` refers to, in whatever depth.

    Left out are Original Attributes Sequence, which tells of the past, and references to what no
    archive stores by its UID: patients, studies, procedure steps.

    Raises
    ------
    PixelError
        If a sequence cannot be read.
    """
    found: set[str] = set()
    for tag in _suspects(header):
        with _read(header.get_item(tag)):
            found.update(reference.uid for reference in _references(header, header[tag]))
    return frozenset(found)


def changed_references(
    header: Dataset, derived: NewUID, *, own: str = ""
) -> dict[int, DataElement]:
    """Return the elements of `header` that refer to instances with a new UID, rewritten.

    Parameters
    ----------
    header
        Read, and left as it is.
    derived
        New UID by old one; None for an instance that keeps its own.
    own
        SOP Instance UID that the instance will have: it may not become its own source image.

    Raises
    ------
    PixelError
        If a sequence cannot be read.
    """
    changed: dict[int, DataElement] = {}
    for tag in _suspects(header):
        with _read(header.get_item(tag)):
            before = [derived(reference.uid) for reference in _references(header, header[tag])]
            if not any(before):
                continue
            # pydicom reads the sequence anew, or it is shared: either way a copy is changed.
            element = copy.deepcopy(header[tag])
            level = _with_class_of(header)
            level[tag] = element
            found = False
            for reference in list(_references(level, element)):
                new = derived(reference.uid)
                if new in (None, reference.uid) or (reference.is_source and new == own):
                    continue
                reference.level.ReferencedSOPInstanceUID = new
                found = True
        if found:
            changed[tag] = level[tag]
    return changed


def _suspects(header: Dataset) -> list[int]:
    """Return the tags of elements that may hold a reference, in order."""
    found = []
    for tag, item in header.items():
        number = int(tag)
        if number == _ORIGINAL_ATTRIBUTES or number in _NOT_STORED:
            continue
        vr = item.VR or known_vr(number)
        nested = vr == "SQ" or (vr == "UN" and known_vr(number) == "SQ")
        if not nested and number != _REFERENCED:
            continue
        value = item.value
        if nested and isinstance(value, bytes) and not any(mark in value for mark in _MARKS):
            continue
        found.append(number)
    return sorted(found)


def _references(
    level: Dataset, element: DataElement, *, is_source: bool = False
) -> Iterator[Reference]:
    """Yield every reference in an element of `level`, however deep."""
    if element.tag == _REFERENCED:
        uid = element.value
        if isinstance(uid, str) and uid.strip(" \0") and is_stored(_class_of(level)):
            yield Reference(level, uid.strip(" \0"), is_source)
        return
    if element.VR != "SQ":
        return
    for item in element.value or ():
        for tag in _suspects(item):
            yield from _references(
                item, item[tag], is_source=is_source or element.tag == SOURCE_IMAGES
            )


def _class_of(level: Dataset) -> str:
    return str(level.get("ReferencedSOPClassUID") or "").strip(" \0")


def _with_class_of(header: Dataset) -> Dataset:
    """Return a data set with Referenced SOP Class UID of the main data set, where it has one."""
    level = Dataset()
    if "ReferencedSOPClassUID" in header:
        level["ReferencedSOPClassUID"] = header["ReferencedSOPClassUID"]
    return level


@lru_cache(maxsize=1 << 10)
def is_stored(sop_class_uid: str) -> bool:
    """Whether a reference of this SOP class may be to an instance that is sent with C-STORE.

    References to studies, patients and procedure steps look the same, and are in nearly every
    image. A class nobody knows may be a private Storage class.
    """
    uid = UID(sop_class_uid)
    if not sop_class_uid or not uid.name or uid.name == sop_class_uid:
        return True
    return uid.type == "SOP Class" and "Storage" in uid.name and "Directory" not in uid.name


class _read:  # noqa: N801 - reads as a word
    """Turn whatever pydicom raises on a malformed sequence into a PixelError that names it."""

    def __init__(self, item: Item) -> None:
        self._tag = item.tag

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, PixelError):
            raise PixelError(f"attribute {self._tag} cannot be read: {error}") from error
