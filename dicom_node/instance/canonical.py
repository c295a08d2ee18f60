"""Bytes of an attribute that do not depend on how the data set is encoded.

Explicit or implicit VR, byte order, defined or undefined length, group lengths and trailing padding
leave them alone; any change of a value does not.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.values import convert_SQ

from dicom_node.errors import PixelError
from dicom_node.instance.datafile import DataFile
from dicom_node.instance.elements import PIXEL_DATA, UNDEFINED, Element
from dicom_node.instance.nested import Irregular, Walker
from dicom_node.instance.rewrite import EXTENDED_OFFSETS, Item, encode_element
from dicom_node.instance.values import known_vr

_TEXT = frozenset(
    ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR",
     "UT")
)  # fmt: skip
_WORD = {
    **dict.fromkeys(("AT", "OW", "SS", "US"), 2),
    **dict.fromkeys(("FL", "OF", "OL", "SL", "UL"), 4),
    **dict.fromkeys(("FD", "OD", "OV", "SV", "UV"), 8),
}
_ITEM_TAG = b"\xfe\xff\x00\xe0"
_LENGTH_TO_END, _TRAILING_PADDING = 0x00080001, 0xFFFCFFFC
_HEAD = struct.Struct("<IcI")
_CHUNK = 1 << 20


def is_content(tag: int) -> bool:
    """Whether an element says something of its own, rather than of how the data set is stored."""
    if tag & 0xFFFF == 0 or tag in EXTENDED_OFFSETS:
        return False
    return tag != _LENGTH_TO_END and tag != _TRAILING_PADDING


def canonical_element(header: Dataset, item: Item) -> bytes:
    """Return the canonical bytes of one attribute of `header` (PixelError if not parsable)."""
    try:
        return _element(header, item)
    except (PixelError, MemoryError):
        raise
    except Exception as error:  # pydicom raises nearly anything on malformed sequences
        raise PixelError(f"attribute {item.tag} cannot be read: {error}") from error


def sorted_items(header: Dataset) -> list[tuple[int, Item]]:
    """Return tag and element, raw or not, of the contents of a data set, in tag order."""
    # Plain integers: comparing pydicom's tags takes longer than reading the values.
    found = {int(tag): item for tag, item in header.items()}
    return [(tag, found[tag]) for tag in sorted(found) if is_content(tag)]


def contents(header: Dataset) -> Iterator[tuple[int, bytes]]:
    """Yield tag and canonical bytes of the contents of a data set, in tag order (PixelError)."""
    for tag, item in sorted_items(header):
        if type(item) is RawDataElement and form_of(tag, item.VR).text:
            # What nearly all of a header is.
            value = (item.value or b"").rstrip(b" \0")
            yield tag, _HEAD.pack(tag, b"V", len(value)) + value
        else:
            yield tag, canonical_element(header, item)


def bulk_digest(data: DataFile, element: Element) -> bytes:
    """Return SHA3-256 of a value that stays on disk; of encapsulated pixels, of every fragment."""
    digest = hashlib.sha3_256()
    word = 1 if data.little or element.vr is None else _WORD.get(element.vr, 1)
    if element.tag == PIXEL_DATA and element.length == UNDEFINED:
        # Not the offset table: it is the writer's, and some writers leave it empty.
        for offset, length in data.fragments()[1:]:
            digest.update(struct.pack("<Q", length))
            for block in _blocks(data, offset, length, 1):
                digest.update(block)
        return digest.digest()
    for block in _blocks(data, element.value, element.value_length, word):
        digest.update(block)
    if element.value_length % 2:
        digest.update(b"\0")
    return digest.digest()


def _blocks(data: DataFile, offset: int, length: int, word: int) -> Iterator[bytes]:
    end = offset + length
    while offset < end:
        block = data.source.read(offset, min(_CHUNK, end - offset))
        yield swapped(block, word)
        offset += len(block)


def _element(header: Dataset, item: Item) -> bytes:
    tag = int(item.tag)
    if isinstance(item, RawDataElement):
        form, value = form_of(tag, item.VR), item.value or b""
        if form.text:
            value = value.rstrip(b" \0")
            return _HEAD.pack(tag, b"V", len(value)) + value
        if form.vr == "SQ" or (form.vr == "UN" and value[:4] == _ITEM_TAG):
            implicit = item.is_implicit_VR or item.VR == "UN"
            try:
                return _encoded_sequence(
                    tag, value, implicit=implicit, little=item.is_little_endian
                )
            except MemoryError:
                raise
            except Exception:
                # Anything may stand in a value of unknown VR, even what begins like an item.
                if form.vr == "SQ":
                    raise
        return _written_leaf(tag, item.VR, value, item.is_little_endian)
    if item.VR == "SQ":
        return _sequence(tag, list(item.value or ()))
    encoded = encode_element(item, header, implicit=True, little=True)
    return _written_leaf(tag, item.VR, encoded[8:], little=True)


class Form(NamedTuple):
    """What is done to a value: `text` loses its padding, words are swapped, odd ones padded."""

    vr: str
    text: bool
    word: int
    pad: bytes


@lru_cache(maxsize=1 << 13)
def form_of(tag: int, written: str | None) -> Form:
    """Return what is done to the value of a tag that is written with a VR (None: implicit)."""
    vr = _vr(tag, written)
    # A private value's VR is lost in implicit VR: only what any VR allows is done to it.
    text = not tag >> 16 & 1 and vr in _TEXT
    pad = b" " if vr in _TEXT and vr != "UI" else b"\0"
    return Form(vr, text, _WORD.get(vr, 1), pad)


def _vr(tag: int, written: str | None) -> str:
    """Return the VR that decides about padding and byte order."""
    if tag >> 16 & 1:
        return written or "UN"
    if written is None or written == "UN":
        known = known_vr(tag)
        return "US" if " or " in known and "OB" not in known else known
    return written


def _encoded_sequence(tag: int, value: bytes, *, implicit: bool, little: bool) -> bytes:
    try:
        walker = Walker(value, little=little, leaf=_written_leaf, is_content=is_content)
        return walker.sequence(tag, implicit=implicit)
    except Irregular:
        return _sequence(tag, list(convert_SQ(value, implicit, little)))


def _written_leaf(tag: int, written: str | None, value: bytes, little: bool) -> bytes:
    form = form_of(tag, written)
    if form.text:
        value = value.rstrip(b" \0")
    else:
        value = value if little else swapped(value, form.word)
        value += form.pad if len(value) % 2 else b""
    return _HEAD.pack(tag, b"V", len(value)) + value


def _sequence(tag: int, items: list[Dataset]) -> bytes:
    if not items:
        return _written_leaf(tag, "SQ", b"", little=True)
    parts = [_HEAD.pack(tag, b"S", len(items))]
    for item in items:
        body = b"".join(_element(item, member) for _, member in sorted_items(item))
        parts += [struct.pack("<I", len(body)), body]
    return b"".join(parts)


def swapped(value: bytes, word: int) -> bytes:
    """Return a value with the bytes of each of its words turned round."""
    if word == 1 or len(value) % word:
        return value
    turned = bytearray(len(value))
    for k in range(word):
        turned[k::word] = value[word - 1 - k :: word]
    return bytes(turned)
