"""New SOP Instance UIDs for marked instances, and references that follow them.

Under ``uid_policy = "derive"`` a marked instance is a new one. The UID follows from the old one and
a key, so that a repetition gets the same, and an object that refers to the instance can be told its
new UID whether or not it has been marked yet.

References
----------
DICOM PS3.5 B.2 (UUID derived UID), PS3.3 C.7.6.1.1.2.
"""

from __future__ import annotations

import copy
import hmac
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from dicom_node.errors import PixelError
from dicom_node.instance.datafile import open_data_file
from dicom_node.instance.rewrite import copy_with_header
from dicom_node.instance.values import known_vr

_REFERENCED = 0x00081155
# What is said of the past keeps the UIDs of the past: Source Image, Original Attributes.
_HISTORY = frozenset((0x00082112, 0x04000561))
_CONTEXT = b"dicom-node derived uid 1"


def derive_uid(uid: str, key: bytes) -> str:
    """Return the UID that a marked instance has instead of `uid`.

    Parameters
    ----------
    uid
        SOP Instance UID as received.
    key
        Secret: without it nobody can tell which two instances belong together.
    """
    digest = hmac.digest(key, _CONTEXT + uid.encode(), "sha3_256")
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"


def changed_references(
    header: Dataset, derived: Callable[[str], str | None]
) -> dict[int, DataElement]:
    """Return the sequences of `header` that refer to instances with a new UID, rewritten.

    Parameters
    ----------
    header
        Read, and left as it is.
    derived
        New UID by old one; None for an instance that keeps its own.

    Raises
    ------
    PixelError
        If a sequence cannot be read.
    """
    changed = {}
    for tag in sorted(map(int, header.keys())):
        item = header.get_item(tag)
        if tag in _HISTORY or (item.VR or known_vr(tag)) != "SQ":
            continue
        try:
            # pydicom reads the sequence anew, or it is shared: either way a copy is changed.
            element = copy.deepcopy(header[tag])
            found = list(_referring(element, derived))
            for level, uid in found:
                level.ReferencedSOPInstanceUID = uid
        except Exception as error:  # pydicom raises nearly anything on malformed sequences
            raise PixelError(f"attribute {item.tag} cannot be read: {error}") from error
        if found:
            changed[tag] = element
    return changed


def rewrite_references(source: Path, derived: Callable[[str], str | None], out: Path) -> int:
    """Write `source` with its references changed; nothing is written if none has to be.

    Returns
    -------
    int
        Top-level sequences that were changed.

    Raises
    ------
    PixelError
        If the source cannot be parsed or an element cannot be encoded.
    """
    data = open_data_file(source, scratch=out.parent)
    try:
        changes = changed_references(data.read_header(), derived)
    finally:
        data.close()
    if changes:
        copy_with_header(source, changes, out)
    return len(changes)


def _referring(
    element: DataElement, derived: Callable[[str], str | None]
) -> Iterator[tuple[Dataset, str]]:
    """Yield every item, however deep, that refers to an instance with a new UID, and that UID."""
    for item in element.value or ():
        uid = str(item.get("ReferencedSOPInstanceUID") or "")
        new = derived(uid) if uid else None
        if new is not None and new != uid:
            yield item, new
        for member in item:
            if member.VR == "SQ" and member.tag not in _HISTORY:
                yield from _referring(member, derived)
