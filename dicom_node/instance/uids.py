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
from collections.abc import Iterator
from typing import NamedTuple

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset

from dicom_node.errors import PixelError
from dicom_node.instance.elements import UNDEFINED
from dicom_node.instance.nested import Irregular
from dicom_node.instance.nested_references import (
    LEFT_ALONE,
    MARKS,
    REFERENCED,
    SOURCE_IMAGES,
    NewUID,
    ReferenceWalker,
    is_stored,
)
from dicom_node.instance.values import known_vr, tag_of

_CONTEXT = b"dicom-node derived uid 1"

Item = DataElement | RawDataElement


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
        item = header.get_item(tag_of(tag))
        walker = _walked(item)[0]
        if walker is not None:
            found |= walker.found
            continue
        with _read(item):
            found.update(reference.uid for reference in _references(header, header[tag]))
    return frozenset(found)


def changed_references(header: Dataset, derived: NewUID, *, own: str = "") -> dict[int, Item]:
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
    changed: dict[int, Item] = {}
    for tag in _suspects(header):
        item: Item = header.get_item(tag_of(tag))
        walker, value = _walked(item, derived, own)
        if walker is not None and isinstance(item, RawDataElement):
            if walker.changed:
                length = UNDEFINED if item.length == UNDEFINED else len(value)
                changed[tag] = item._replace(length=length, value=value)
            continue
        with _read(item):
            element = _by_pydicom(header, header[tag], derived, own)
        if element is not None:
            changed[tag] = element
    return changed


def _walked(
    item: Item, derived: NewUID = lambda _: None, own: str = ""
) -> tuple[ReferenceWalker | None, bytes]:
    """Return the walker that has been through an encoded sequence; None: it is for pydicom."""
    if not isinstance(item, RawDataElement) or not item.value:
        return None, b""
    if (item.VR or known_vr(int(item.tag))) != "SQ":
        return None, b""
    walker = ReferenceWalker(item.value, little=item.is_little_endian, derived=derived, own=own)
    try:
        return walker, walker.walk(int(item.tag), implicit=item.is_implicit_VR)
    except Irregular:
        return None, b""


def _by_pydicom(
    header: Dataset, before: DataElement, derived: NewUID, own: str
) -> DataElement | None:
    """Return an element of `header` rewritten; None if nothing in it has to be."""
    if not any(derived(reference.uid) for reference in _references(header, before)):
        return None
    # pydicom reads the sequence anew, or it is shared: either way a copy is changed.
    level = _with_class_of(header)
    level[before.tag] = copy.deepcopy(before)
    found = False
    for reference in list(_references(level, level[before.tag])):
        new = derived(reference.uid)
        if new in (None, reference.uid) or (reference.is_source and new == own):
            continue
        reference.level.ReferencedSOPInstanceUID = new
        found = True
    return level[before.tag] if found else None


def _suspects(header: Dataset) -> list[int]:
    """Return the tags of elements that may hold a reference, in order."""
    found = []
    for tag, item in header.items():
        number = int(tag)
        if number in LEFT_ALONE:
            continue
        vr = item.VR or known_vr(number)
        nested = vr == "SQ" or (vr == "UN" and known_vr(number) == "SQ")
        if not nested and number != REFERENCED:
            continue
        value = item.value
        if nested and isinstance(value, bytes) and not any(mark in value for mark in MARKS):
            continue
        found.append(number)
    return sorted(found)


def _references(
    level: Dataset, element: DataElement, *, is_source: bool = False
) -> Iterator[Reference]:
    """Yield every reference in an element of `level`, however deep."""
    if element.tag == REFERENCED:
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


class _read:  # noqa: N801 - reads as a word
    """Turn whatever pydicom raises on a malformed sequence into a PixelError that names it."""

    def __init__(self, item: Item) -> None:
        self._tag = item.tag

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, PixelError):
            raise PixelError(f"attribute {self._tag} cannot be read: {error}") from error
