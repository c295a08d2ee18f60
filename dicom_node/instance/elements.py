"""Where the elements of a data set lie in its bytes: found without decoding any value.

pydicom reads values; this finds their places, so that a rewritten header can take every element
that did not change over byte for byte, whatever pydicom makes of its value.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from dicom_node.errors import PixelError
from dicom_node.instance.source import ByteSource

UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXEL_DATA = 0x7FE00010
_ITEM_PAIR, _ITEM_END_PAIR = (0xFFFE, 0xE000), (0xFFFE, 0xE00D)
LONG_VR = frozenset(
    (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
)
_SHORT_VR = (
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN",
    b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US",
)  # fmt: skip
VR_NAMES = {vr: vr.decode("ascii") for vr in (*LONG_VR, *_SHORT_VR)}
_MAX_DEPTH = 64


class Element(NamedTuple):
    """Place of one data element, offsets in bytes of its source.

    Attributes
    ----------
    vr
        The VR as written; None in implicit VR.
    start, value, end
        Offset of the tag, of the value, and behind the element (delimiter included).
    length
        Value length as written; `UNDEFINED` possible.
    """

    tag: int
    vr: str | None
    start: int
    value: int
    length: int
    end: int

    @property
    def value_length(self) -> int:
        """Bytes of the value; without the delimiter where the length is undefined."""
        return self.end - self.value - (8 if self.length == UNDEFINED else 0)


# What the class of a named tuple does when called, without the call.
_made = tuple.__new__


def tag_text(tag: int) -> str:
    """Return ``(gggg,eeee)``."""
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def looks_implicit(head: bytes) -> bool:
    """Whether the first 8 bytes of a data set are of an implicit VR element."""
    return not (len(head) >= 6 and 0x41 <= head[4] <= 0x5A and 0x41 <= head[5] <= 0x5A)


def looks_big_endian(head: bytes) -> bool:
    """Whether the first 2 bytes of a data set are a big endian group number."""
    return head[0] < head[1]


class Scanner:
    """Walk the elements of one data set.

    Parameters
    ----------
    source
        The bytes; of a deflated data set the inflated ones.
    implicit, little
        The encoding of the data set.

    Raises
    ------
    PixelError
        From every method, where a length leads behind the end of the data.
    """

    def __init__(self, source: ByteSource, *, implicit: bool, little: bool) -> None:
        self._source = source
        self._implicit = implicit
        order = "<" if little else ">"
        self._tag = struct.Struct(order + "HH")
        self._short = struct.Struct(order + "H")
        self._long = struct.Struct(order + "I")
        self._head = struct.Struct(order + ("HHI" if implicit else "HH2sH"))

    def elements(self, offset: int) -> Iterator[Element]:
        """Yield the top-level elements from `offset` to the end of the source."""
        end = self._source.size
        while offset + 8 <= end:
            for element in self._plain(offset):
                yield element
                offset = element.end
            if offset + 8 > end:
                break
            head = self._source.peek(offset, 12)
            if not any(head) and self._only_zeros(offset):
                return
            element = self._element(offset, head, self._implicit, 0)
            yield element
            offset = element.end
        if offset < end and any(self._source.read(offset, end - offset)):
            raise PixelError(
                f"the data set is cut short: {end - offset} bytes of an element remain"
            )

    def fragments(self, element: Element) -> list[tuple[int, int]]:
        """Return (offset, length) of every item of an undefined-length pixel data element."""
        found: list[tuple[int, int]] = []
        offset = element.value
        while True:
            tag, length = self._item(offset, "pixel data")
            if tag == SEQUENCE_END:
                return found
            found.append((offset + 8, length))
            offset += 8 + length

    def items(self, element: Element) -> Iterator[list[Element]]:
        """Yield the elements of every item of a sequence."""
        offset = element.value
        end = offset + element.value_length
        while offset < end:
            tag, length = self._item(offset, tag_text(element.tag))
            if tag != ITEM:
                return
            offset += 8
            stop = end if length == UNDEFINED else offset + length
            members: list[Element] = []
            while offset < stop:
                head = self._source.peek(offset, 12)
                if len(head) >= 8 and self._tag.unpack_from(head) == _ITEM_END_PAIR:
                    offset += 8
                    break
                if len(head) < 8:
                    raise PixelError("the data set is cut short inside a sequence")
                members.append(self._element(offset, head, self._implicit, 0))
                offset = members[-1].end
            yield members

    def is_sequence(self, element: Element) -> bool:
        """Whether an element is a sequence, by its VR as written or by its items."""
        if element.vr is not None:
            return element.vr == "SQ"
        head = self._source.read(element.value, 4)
        if element.length == UNDEFINED or len(head) < 4 or not element.length:
            return element.length == UNDEFINED
        return self._tag.unpack(head) == _ITEM_PAIR

    def _plain(self, offset: int) -> Iterator[Element]:
        """Yield elements from `offset` on as long as they are plain and in one window.

        That is nearly every header, at a quarter of the time `_element` takes for each.
        """
        window, base = self._source.window(offset, 12)
        size, last = self._source.size, base + len(window) - 12
        unpack, long, implicit = self._head.unpack_from, self._long.unpack_from, self._implicit
        name: str | None = None
        while offset <= last:
            if implicit:
                group, number, length = unpack(window, offset - base)
                value = offset + 8
            else:
                group, number, vr, length = unpack(window, offset - base)
                name = VR_NAMES.get(vr)
                if name is None:
                    return
                value = offset + 8
                if vr in LONG_VR:
                    (length,) = long(window, value - base)
                    value += 4
            end = value + length
            if length == UNDEFINED or end > size or not (group or number):
                return
            yield _made(Element, (group << 16 | number, name, offset, value, length, end))
            offset = end

    def _element(self, offset: int, head: bytes, implicit: bool, depth: int) -> Element:
        group, number = self._tag.unpack_from(head)
        tag = group << 16 | number
        vr = None if implicit or looks_implicit(head) else head[4:6]
        if vr is None:
            length, value = self._long.unpack_from(head, 4)[0], offset + 8
        elif vr in LONG_VR:
            if len(head) < 12:
                raise PixelError(f"the data set is cut short in {tag_text(tag)}")
            length, value = self._long.unpack_from(head, 8)[0], offset + 12
        else:
            length, value = self._short.unpack_from(head, 6)[0], offset + 8
        defined = length != UNDEFINED
        end = value + length if defined else self._behind_undefined(tag, value, depth)
        if end > self._source.size:
            raise PixelError(
                f"the data set is cut short: {tag_text(tag)} announces {length} bytes, "
                f"{max(self._source.size - value, 0)} are there"
            )
        return Element(tag, vr.decode("ascii") if vr else None, offset, value, length, end)

    def _behind_undefined(self, tag: int, offset: int, depth: int) -> int:
        if depth > _MAX_DEPTH:
            raise PixelError(f"sequences are nested more than {_MAX_DEPTH} deep")
        while True:
            item, length = self._item(offset, tag_text(tag))
            offset += 8
            if item == SEQUENCE_END:
                return offset
            offset = self._behind_item(offset, depth) if length == UNDEFINED else offset + length

    def _behind_item(self, offset: int, depth: int) -> int:
        implicit = looks_implicit(self._source.peek(offset, 8))
        while True:
            head = self._source.peek(offset, 12)
            if len(head) < 8:
                raise PixelError("the data set is cut short inside a sequence")
            group, number = self._tag.unpack_from(head)
            if group << 16 | number == ITEM_END:
                return offset + 8
            offset = self._element(offset, head, implicit, depth + 1).end

    def _item(self, offset: int, where: str) -> tuple[int, int]:
        head = self._source.peek(offset, 8)
        if len(head) < 8:
            raise PixelError(f"the data set is cut short inside {where}")
        group, number = self._tag.unpack_from(head)
        tag = group << 16 | number
        length = self._long.unpack_from(head, 4)[0]
        if tag not in (ITEM, SEQUENCE_END):
            raise PixelError(f"an item was expected inside {where}, found {tag_text(tag)}")
        if length != UNDEFINED and offset + 8 + length > self._source.size:
            raise PixelError(f"the data set is cut short inside {where}")
        return tag, length

    def _only_zeros(self, offset: int) -> bool:
        while block := self._source.read(offset, 1 << 20):
            if any(block):
                return False
            offset += len(block)
        return True
