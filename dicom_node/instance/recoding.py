"""A native data set in Explicit or Implicit VR Little Endian: its coding changes, no value does.

Values are taken over as bytes and never read, so what no reader understands arrives as it came.
The copy is read back: it is given away only if every attribute has the canonical bytes that the
header seal is over.

References
----------
DICOM PS3.5 6.2.2 (unknown VR), 7.5 (sequences), 8.2 and Annex A (pixel data, byte order).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from dicom_node.errors import PixelError
from dicom_node.instance.canonical import bulk_digest, contents, form_of, is_content, swapped
from dicom_node.instance.datafile import DataFile, open_data_file
from dicom_node.instance.elements import (
    LONG_VR,
    PIXEL_DATA,
    UNDEFINED,
    Element,
    Scanner,
    tag_text,
)
from dicom_node.instance.encoding import element_bytes
from dicom_node.instance.rewrite import Sink, item_header, write_part10
from dicom_node.instance.syntaxes import EXPLICIT_LE, IMPLICIT_LE
from dicom_node.instance.values import known_vr

_BITS_ALLOCATED, _PIXEL_REPRESENTATION = 0x00280100, 0x00280103
_CHUNK = 1 << 20


def recode(source: Path, out: Path, transfer_syntax_uid: str, *, max_pixels: int) -> None:
    """Write `source` in Explicit or Implicit VR Little Endian.

    Raises
    ------
    PixelError
        If the source cannot be parsed or is compressed, or if the copy would say anything else.
    """
    if transfer_syntax_uid not in (EXPLICIT_LE, IMPLICIT_LE):
        raise ValueError(f"{transfer_syntax_uid}: use Explicit or Implicit VR Little Endian")
    data = open_data_file(source, max_pixels=max_pixels, scratch=out.parent)
    with closing(data):
        recoder = _Recoder(data, implicit=transfer_syntax_uid == IMPLICIT_LE)
        write_part10(data.meta, data.header, transfer_syntax_uid, recoder.write, out)
        before = _said(data)
    copy = open_data_file(out, max_pixels=max_pixels, scratch=out.parent)
    with closing(copy):
        after = _said(copy)
    wrong = [tag for tag in sorted({*before, *after}) if before.get(tag) != after.get(tag)]
    if wrong:
        out.unlink()
        raise PixelError(f"{tag_text(wrong[0])} would not survive it")


class _Recoder:
    """Writes the elements of one data set, little endian and in tag order."""

    def __init__(self, data: DataFile, *, implicit: bool) -> None:
        self._data = data
        self._implicit = implicit
        self._scanner = Scanner(data.source, implicit=data.implicit, little=data.little)

    def write(self, sink: Sink) -> None:
        """Write all of it (PixelError where it cannot be)."""
        elements = self._data.elements
        signed = self._signed(elements.values(), inherited=False)
        # Group lengths (PS3.5 7.2, retired) would be wrong now.
        for tag in filter(_is_kept, sorted(elements)):
            if tag in self._data.bulk:
                self._write_bulk(elements[tag], sink)
            else:
                sink.write(self._element(elements[tag], signed))

    def _element(self, element: Element, signed: bool) -> bytes:
        vr = element.vr or _explicit_vr(element, signed)
        if vr == "SQ":
            items = [self._item(members, signed) for members in self._scanner.items(element)]
            return self._encoded(element.tag, vr, b"".join(items))
        value = self._data.source.read(element.value, element.value_length)
        if element.length == UNDEFINED:
            if vr != "UN":
                raise PixelError(f"{tag_text(element.tag)} in a sequence is compressed")
            # A sequence of unknown VR is in implicit VR whatever is around it.
            return self._encoded(element.tag, vr, value, undefined=True)
        form = form_of(element.tag, element.vr)
        value = value if self._data.little else swapped(value, form.word)
        return self._encoded(element.tag, vr, value + form.pad * (len(value) % 2))

    def _item(self, members: list[Element], signed: bool) -> bytes:
        signed = self._signed(members, inherited=signed)
        kept = [element for element in members if _is_kept(element.tag)]
        body = b"".join(self._element(element, signed) for element in kept)
        return item_header(len(body)) + body

    def _encoded(self, tag: int, vr: str, value: bytes, *, undefined: bool = False) -> bytes:
        for name in (vr, "UN"):  # what is too long for the VR's 16 bits of length becomes unknown
            coded = element_bytes(
                tag, name, value, implicit=self._implicit, little=True, undefined=undefined
            )
            if coded is not None:
                return coded
        raise PixelError(f"{tag_text(tag)} cannot be encoded")

    def _write_bulk(self, element: Element, sink: Sink) -> None:
        if element.length == UNDEFINED:
            raise PixelError(f"{tag_text(element.tag)} is compressed")
        vr = element.vr or _explicit_vr(element, signed=False)
        if element.tag == PIXEL_DATA and element.vr is None:
            vr = "OB" if (self._data.whole(_BITS_ALLOCATED) or 0) <= 8 else "OW"
        odd = element.length % 2
        # The head of an element without a value, and then the length of this one.
        vr = vr if vr.encode() in LONG_VR else "UN"
        head = self._encoded(element.tag, vr, b"")[:-4]
        sink.write(head + (element.length + odd).to_bytes(4, "little"))
        word = 1 if self._data.little else form_of(element.tag, element.vr).word
        for at in range(element.value, element.end, _CHUNK):
            block = self._data.source.read(at, min(_CHUNK, element.end - at))
            sink.write(swapped(block, word))
        sink.write(bytes(odd))

    def _signed(self, elements: Iterable[Element], *, inherited: bool) -> bool:
        """Whether pixel values are signed here, which decides between US and SS."""
        order = "little" if self._data.little else "big"
        for element in elements:
            if element.tag == _PIXEL_REPRESENTATION and element.length == 2:
                value = self._data.source.read(element.value, 2)
                return int.from_bytes(value, order) == 1  # type: ignore[arg-type]
        return inherited


def _is_kept(tag: int) -> bool:
    return tag & 0xFFFF != 0 and tag != 0x00080001


def _explicit_vr(element: Element, signed: bool) -> str:
    """Return the VR to write for an element of implicit VR."""
    tag = element.tag
    if tag >> 16 & 1:
        return "LO" if 0x10 <= tag & 0xFFFF <= 0xFF else "UN"
    known = known_vr(tag)
    if element.length == UNDEFINED and known != "SQ":
        return "UN"
    if " or " not in known:
        return known
    if known == "US or SS":
        return "SS" if signed else "US"
    return "US" if known == "US or OW" and element.length == 2 else "OW"


def _said(data: DataFile) -> dict[int, bytes]:
    """Return a digest of every attribute, in the canonical form that the seal is over."""
    said = {
        tag: hashlib.sha3_256(content).digest() for tag, content in contents(data.read_header())
    }
    bulk = {tag: bulk_digest(data, e) for tag, e in data.bulk.items() if is_content(tag)}
    return said | bulk
