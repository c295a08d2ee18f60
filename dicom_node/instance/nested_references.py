"""References in an encoded sequence: found, and rewritten with nothing else in it touched.

A sequence of thousands of frames would take pydicom minutes. What is not as plain as it can be is
left to it all the same: `Irregular`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from pydicom.uid import UID

from dicom_node.instance.elements import (
    ITEM,
    ITEM_END,
    LONG_VR,
    SEQUENCE_END,
    UNDEFINED,
    VR_NAMES,
)
from dicom_node.instance.nested import BIG, LITTLE, MAX_DEPTH, Irregular
from dicom_node.instance.values import known_vr

REFERENCED_CLASS, REFERENCED = 0x00081150, 0x00081155
SOURCE_IMAGES = 0x00082112
# What is said of the past; study, performed procedure step, patient and visit, whose instances are
# in no archive.
LEFT_ALONE = frozenset((0x04000561, 0x00081110, 0x00081111, 0x00081120, 0x00081125))
# As they are encoded: a sequence without one refers to nothing.
MARKS = (b"\x08\x00\x55\x11", b"\x00\x08\x11\x55")

NewUID = Callable[[str], str | None]
"""New UID by old one; None for an instance that keeps its own."""


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


class ReferenceWalker:
    """Goes through the items of one encoded sequence.

    Parameters
    ----------
    value
        Encoded items.
    little
        Byte order of the data set.
    derived
        Asked for the new UID of every instance that is referred to.
    own
        SOP Instance UID that the instance will have: it may not become its own source image.

    Attributes
    ----------
    found
        UIDs referred to.
    changed
        Whether `walk` gave other bytes.
    """

    def __init__(
        self, value: bytes, *, little: bool, derived: NewUID = lambda _: None, own: str = ""
    ) -> None:
        self._value = value
        self._derived = derived
        self._own = own
        self._item, self._explicit, self._long = LITTLE if little else BIG
        # Of the place that is walked through: inside Source Image Sequence, left alone.
        self._source = self._muted = False
        self.found: set[str] = set()
        self.changed = False

    def walk(self, tag: int, *, implicit: bool) -> bytes:
        """Return the value of sequence `tag` with references rewritten.

        Raises
        ------
        Irregular
            If anything is not as plain as it can be.
        """
        self._source = tag == SOURCE_IMAGES
        try:
            parts, end = self._items(0, len(self._value), implicit, 0, delimited=False)
        except (struct.error, ValueError) as error:  # cut short, or no ASCII
            raise Irregular from error
        if end != len(self._value):
            raise Irregular
        return b"".join(parts)

    def _items(
        self, at: int, end: int, implicit: bool, depth: int, *, delimited: bool
    ) -> tuple[list[bytes], int]:
        """Return the items from `at` as they shall be, delimiter included, and where they end."""
        if depth > MAX_DEPTH:
            raise Irregular
        parts: list[bytes] = []
        while at < end or delimited:
            group, number, length = self._item.unpack_from(self._value, at)
            kind = group << 16 | number
            if kind == SEQUENCE_END and delimited:
                parts.append(self._value[at : at + 8])
                return parts, at + 8
            if kind != ITEM:
                raise Irregular
            body, at = self._content(at + 8, end, length, implicit, depth)
            content = b"".join(body)
            size = UNDEFINED if length == UNDEFINED else len(content)
            parts += (self._item.pack(group, number, size), content)
        return parts, at

    def _content(
        self, at: int, end: int, length: int, implicit: bool, depth: int
    ) -> tuple[list[bytes], int]:
        """Return an item's elements as they shall be, delimiter included, and where they end."""
        delimited = length == UNDEFINED
        stop = end if delimited else at + length
        if stop > end:
            raise Irregular
        # An item may be in implicit VR where the data set is not (PS3.5 7.5).
        implicit = implicit or self._value[at + 4 : at + 6] not in VR_NAMES
        parts: list[bytes] = []
        sop_class, place = "", -1
        while at < stop:
            head = self._head(at, implicit)
            if head.tag == ITEM_END and delimited:
                parts.append(self._value[at : at + 8])
                delimited, at = False, at + 8
                break
            if head.tag == REFERENCED:
                place = len(parts)
            if head.tag == REFERENCED_CLASS:
                sop_class = _text(self._value[head.value : head.value + head.size])
            found, at = self._element(at, stop, head, implicit, depth)
            parts += found
        if delimited or (at != stop and length != UNDEFINED):
            raise Irregular
        if place >= 0:
            parts[place] = self._reference(parts[place], implicit, sop_class)
        return parts, at

    def _head(self, at: int, implicit: bool) -> _Head:
        if implicit:
            group, number, size = self._item.unpack_from(self._value, at)
            tag = group << 16 | number
            return _Head(tag, "UN" if tag >> 16 & 1 else known_vr(tag), at + 8, size)
        group, number, code, size = self._explicit.unpack_from(self._value, at)
        if code in LONG_VR:
            (size,) = self._long.unpack_from(self._value, at + 8)
        return _Head(
            group << 16 | number, VR_NAMES.get(code, ""), at + (12 if code in LONG_VR else 8), size
        )

    def _element(
        self, start: int, stop: int, head: _Head, implicit: bool, depth: int
    ) -> tuple[list[bytes], int]:
        """Return one element as it shall be, and where it ends."""
        delimited = head.size == UNDEFINED
        end = stop if delimited else head.value + head.size
        if head.tag >> 16 == 0xFFFE or not head.vr or end > stop:
            raise Irregular
        refers = delimited or any(mark in self._value[head.value : end] for mark in MARKS)
        if not refers:
            return [self._value[start:end]], end
        if head.vr != "SQ":
            if delimited or head.vr == "UN":
                raise Irregular
            return [self._value[start:end]], end
        before = self._source, self._muted
        self._source = self._source or head.tag == SOURCE_IMAGES
        self._muted = self._muted or head.tag in LEFT_ALONE
        nested, after = self._items(head.value, end, implicit, depth + 1, delimited=delimited)
        self._source, self._muted = before
        if not delimited and after != end:
            raise Irregular
        body = b"".join(nested)
        size = UNDEFINED if delimited else len(body)
        return [self._value[start : head.value - 4], self._long.pack(size), body], after

    def _reference(self, element: bytes, implicit: bool, sop_class: str) -> bytes:
        """Return a Referenced SOP Instance UID as it shall be."""
        uid = _text(element[8:])
        if self._muted or not uid or not is_stored(sop_class):
            return element
        self.found.add(uid)
        new = self._derived(uid)
        if new is None or new == uid or (self._source and new == self._own):
            return element
        self.changed = True
        value = new.encode("ascii")
        value += bytes(len(value) % 2)
        if implicit:
            group, number, _ = self._item.unpack_from(element)
            return self._item.pack(group, number, len(value)) + value
        group, number, code, _ = self._explicit.unpack_from(element)
        if code != b"UI":
            raise Irregular
        return self._explicit.pack(group, number, code, len(value)) + value


class _Head(NamedTuple):
    """Tag, VR ("" for none known), offset and length of the value."""

    tag: int
    vr: str
    value: int
    size: int


def _text(value: bytes) -> str:
    return value.decode("ascii").strip(" \0")
