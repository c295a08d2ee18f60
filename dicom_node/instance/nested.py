"""Canonical bytes of a sequence straight from how it is encoded, items within items.

The same bytes as `canonical` makes of what pydicom reads, at a tenth of the time. What pydicom
might read otherwise is not read here: `Irregular` leaves it to pydicom.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from dicom_node.instance.elements import (
    ITEM,
    ITEM_END,
    LONG_VR,
    SEQUENCE_END,
    UNDEFINED,
    VR_NAMES,
)
from dicom_node.instance.values import known_vr

Leaf = Callable[[int, str | None, bytes, bool], bytes]

_ITEM_TAG = b"\xfe\xff\x00\xe0"
LITTLE = (struct.Struct("<HHI"), struct.Struct("<HH2sH"), struct.Struct("<I"))
BIG = (struct.Struct(">HHI"), struct.Struct(">HH2sH"), struct.Struct(">I"))
_COUNT = struct.Struct("<IcI")
_SIZE = struct.Struct("<I")
MAX_DEPTH = 64


class Irregular(Exception):
    """The bytes are not what every reader reads alike."""


class Walker:
    """Reads the items of one sequence value.

    Parameters
    ----------
    value
        Encoded items.
    little
        Byte order of the data set.
    leaf
        Canonical bytes of an element that is no sequence: tag, VR as written, value, byte order.
    is_content
        Whether an element counts.
    """

    def __init__(
        self, value: bytes, *, little: bool, leaf: Leaf, is_content: Callable[[int], bool]
    ) -> None:
        self._value = value
        self._little = little
        self._leaf = leaf
        self._is_content = is_content
        self._item, self._explicit, self._long = LITTLE if little else BIG

    def sequence(self, tag: int, *, implicit: bool) -> bytes:
        """Return the canonical bytes of the whole value as sequence `tag`.

        Raises
        ------
        Irregular
            If anything is not as plain as it can be.
        """
        try:
            found, end = self._items(tag, 0, len(self._value), implicit, 0)
        except struct.error as error:
            raise Irregular from error
        if end != len(self._value):
            raise Irregular
        return found

    def _items(
        self, tag: int, at: int, end: int, implicit: bool, depth: int, *, delimited: bool = False
    ) -> tuple[bytes, int]:
        """Return the sequence's bytes, and where it ends."""
        if depth > MAX_DEPTH:
            raise Irregular
        count, parts = 0, [b""]
        while at < end or delimited:
            group, number, length = self._item.unpack_from(self._value, at)
            at += 8
            kind = group << 16 | number
            if kind == SEQUENCE_END and delimited:
                break
            if kind != ITEM:
                raise Irregular
            body, at = self._content(at, end, length, implicit, depth)
            count += 1
            parts += (_SIZE.pack(len(body)), body)
        if not count:
            return self._leaf(tag, "SQ", b"", True), at
        parts[0] = _COUNT.pack(tag, b"S", count)
        return b"".join(parts), at

    def _content(
        self, at: int, end: int, length: int, implicit: bool, depth: int
    ) -> tuple[bytes, int]:
        """Return an item's canonical elements in tag order, and where it ends."""
        delimited = length == UNDEFINED
        stop = end if delimited else at + length
        if stop > end:
            raise Irregular
        value, found = self._value, dict[int, bytes]()
        # An item may be in implicit VR where the data set is not (PS3.5 7.5).
        implicit = implicit or value[at + 4 : at + 6] not in VR_NAMES
        while at < stop:
            vr: str | None = None
            if implicit:
                group, number, size = self._item.unpack_from(value, at)
                at += 8
            else:
                group, number, code, size = self._explicit.unpack_from(value, at)
                at += 8
                vr = VR_NAMES.get(code)
                if code in LONG_VR:
                    (size,) = self._long.unpack_from(value, at)
                    at += 4
            tag = group << 16 | number
            if tag == ITEM_END and delimited:
                delimited = False
                break
            if (vr is None and not implicit) or group == 0xFFFE:
                raise Irregular
            content, at = self._element(tag, vr, at, stop, size, implicit, depth)
            found[tag] = content
        if delimited or (at != stop and length != UNDEFINED):
            raise Irregular
        return b"".join([found[tag] for tag in sorted(found) if self._is_content(tag)]), at

    def _element(
        self, tag: int, vr: str | None, at: int, end: int, size: int, implicit: bool, depth: int
    ) -> tuple[bytes, int]:
        kind = vr or ("UN" if tag >> 16 & 1 else known_vr(tag))
        if size == UNDEFINED:
            if kind != "SQ":
                raise Irregular
            return self._items(tag, at, end, implicit, depth + 1, delimited=True)
        stop = at + size
        if stop > end:
            raise Irregular
        if kind == "SQ":
            found, _ = self._items(tag, at, stop, implicit, depth + 1)
            return found, stop
        content = self._value[at:stop]
        if kind == "UN" and content[:4] == _ITEM_TAG:
            raise Irregular
        return self._leaf(tag, vr, content, self._little), stop
