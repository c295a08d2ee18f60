"""Elements encoded from bytes that need no conversion, as pydicom would write them."""

from __future__ import annotations

import struct

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

from dicom_node.instance.elements import LONG_VR, UNDEFINED
from dicom_node.instance.values import encoded_text, tag_of

# Tag, VR, and the text or the one item of a sequence.
Spec = tuple[tuple[int, str, "str | Spec"], ...]

_LONG_NAMES = frozenset(vr.decode("ascii") for vr in LONG_VR)
_MOST_SHORT = 0xFFFF
_PARTS = {
    little: tuple(struct.Struct(order + form) for form in ("HHI", "HH2sH", "HH2sHI"))
    for little, order in ((True, "<"), (False, ">"))
}


def element_bytes(
    tag: int, vr: str | None, value: bytes, *, implicit: bool, little: bool,
    undefined: bool = False,
) -> bytes | None:  # fmt: skip
    """Return an encoded element; None where the value does not fit it, or its VR is not known.

    Parameters
    ----------
    value
        As encoded, of even length.
    undefined
        Write the length of a sequence as undefined, and a delimiter behind the value.
    """
    of_implicit, of_short, of_long = _PARTS[little]
    group, number = tag >> 16, tag & 0xFFFF
    size = UNDEFINED if undefined else len(value)
    tail = of_implicit.pack(0xFFFE, 0xE0DD, 0) if undefined else b""
    if implicit:
        return of_implicit.pack(group, number, size) + value + tail
    if vr is None or len(vr) != 2:
        return None
    if vr in _LONG_NAMES:
        return of_long.pack(group, number, vr.encode("ascii"), 0, size) + value + tail
    if size > _MOST_SHORT:
        return None
    return of_short.pack(group, number, vr.encode("ascii"), size) + value


def raw_bytes(item: RawDataElement, *, implicit: bool, little: bool) -> bytes | None:
    """Return a raw element encoded; None where pydicom has to see to it."""
    if item.value is None or (item.is_implicit_VR, item.is_little_endian) != (implicit, little):
        return None
    undefined = item.length == UNDEFINED
    return element_bytes(
        int(item.tag), item.VR, item.value, implicit=implicit, little=little, undefined=undefined
    )


def raw_element(tag: int, vr: str, value: bytes, *, implicit: bool, little: bool) -> RawDataElement:
    """Return an element of an encoded value as pydicom reads one from a file."""
    shown = None if implicit else vr
    return RawDataElement(tag_of(tag), shown, len(value), value, 0, implicit, little)


def item_bytes(spec: Spec, *, implicit: bool, little: bool) -> bytes | None:
    """Return a sequence item, tags in order; None where a text is not plain ASCII."""
    parts = []
    for tag, vr, content in spec:
        if isinstance(content, str):
            value = encoded_text(content, vr)
        else:
            value = item_bytes(content, implicit=implicit, little=little)
        if value is None:
            return None
        encoded = element_bytes(tag, vr, value, implicit=implicit, little=little)
        if encoded is None:
            return None
        parts.append(encoded)
    body = b"".join(parts)
    return _PARTS[little][0].pack(0xFFFE, 0xE000, len(body)) + body


def data_set(spec: Spec) -> Dataset:
    """Return a sequence item for pydicom to encode, in whatever character set it will be."""
    made = Dataset()
    for tag, vr, content in spec:
        made.add_new(tag, vr, content if isinstance(content, str) else [data_set(content)])
    return made
