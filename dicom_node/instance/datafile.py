"""A DICOM file opened: meta header, encoding, header as a data set, place of the pixel data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from dicom_node.errors import PixelError
from dicom_node.instance.elements import (
    PIXEL_DATA,
    UNDEFINED,
    Element,
    Scanner,
    looks_big_endian,
    looks_implicit,
)
from dicom_node.instance.metaheader import MetaHeader, read_meta
from dicom_node.instance.parsing import Items, own_element, parse_places
from dicom_node.instance.source import ByteSource, inflate, open_source
from dicom_node.instance.syntaxes import (
    DEFLATED_LE,
    EXPLICIT_BE,
    EXPLICIT_LE,
    IMPLICIT_LE,
    SYNTAXES,
    name_of,
)
from dicom_node.instance.values import (
    known_vr,
    plain_first,
    plain_text,
    plain_whole,
    tag_of,
)

_BULK_BYTES = 1 << 20
_FLOAT_PIXELS = frozenset((0x7FE00008, 0x7FE00009))
_HEADER_LIMIT = 1 << 29
_PLAIN_BYTES = 1 << 12
MAX_PIXELS = 400_000_000  # of a frame, where the caller has no other opinion
_PIXEL_HEAD = b"\xe0\x7f\x10\x00"
# Rows, Columns, Samples per Pixel, Bits Allocated, Number of Frames
_EXTENT = (0x00280010, 0x00280011, 0x00280002, 0x00280100, 0x00280008)


@dataclass
class DataFile:
    """One instance on disk, scanned.

    Attributes
    ----------
    source
        The data set's bytes (inflated where it was deflated); element offsets are in it.
    meta
        File Meta Information; an empty one where the file has none.
    transfer_syntax_uid
        As announced, or as recognised where nothing is announced.
    implicit, little
        How the data set is encoded.
    elements
        Every top-level element by tag, in file order; a repeated tag keeps its last place.
    pixel
        The Pixel Data element, or None.
    """

    path: Path
    source: ByteSource
    meta: MetaHeader
    transfer_syntax_uid: str
    implicit: bool
    little: bool
    elements: dict[int, Element]

    @property
    def pixel(self) -> Element | None:
        """Place of Pixel Data (7FE0,0010)."""
        return self.elements.get(PIXEL_DATA)

    def is_bulk(self, element: Element) -> bool:
        """Whether an element stays on disk: pixels, and values over 1 MiB other than sequences."""
        if element.tag == PIXEL_DATA or element.tag in _FLOAT_PIXELS:
            return True
        if element.length == UNDEFINED or element.length <= _BULK_BYTES:
            return False
        return (element.vr or known_vr(element.tag)) != "SQ"

    @cached_property
    def bulk(self) -> dict[int, Element]:
        """What stays on disk, by tag."""
        return {tag: place for tag, place in self.elements.items() if self.is_bulk(place)}

    def read_header(self) -> Dataset:
        """Return everything but bulk data as a data set of one's own to change.

        Values stay raw until used. Sequences are shared between the copies: replace one, do not
        change it in place.

        Raises
        ------
        PixelError
            If pydicom cannot parse it.
        """
        items = self.items
        copied = dict(items)
        copied.update((element.tag, own_element(element)) for element in self._parsed_ones)
        return Dataset(copied)

    @cached_property
    def items(self) -> Items:
        """Everything but bulk data by tag, in file order; nothing in it may be changed."""
        places = [e for e in self.elements.values() if e.tag not in self.bulk]
        if sum(e.end - e.start for e in places) > _HEADER_LIMIT:
            raise PixelError(f"the header is larger than {_HEADER_LIMIT >> 20} MiB")
        return parse_places(self.source, places, implicit=self.implicit, little=self.little)

    @cached_property
    def _parsed_ones(self) -> list[DataElement]:
        # Setting an attribute writes into the element that is there: none may be shared.
        return [e for e in self.items.values() if isinstance(e, DataElement)]

    def group(self, number: int) -> Dataset:
        """Return the elements of one group, bulk data excepted (PixelError)."""
        places = [
            e for tag, e in self.elements.items() if tag >> 16 == number and tag not in self.bulk
        ]
        return Dataset(
            parse_places(self.source, places, implicit=self.implicit, little=self.little)
        )

    @cached_property
    def header(self) -> Dataset:
        """The header to read, not to write (PixelError if pydicom cannot parse it)."""
        return self.read_header()

    def text(self, tag: int) -> str:
        """Return a text without its padding, "" where it is absent or empty.

        pydicom is asked only where the value is not plain ASCII; what it raises on malformed
        values is raised.
        """
        found = self._plain(tag)
        if found is None:
            return ""
        text = plain_text(*found)
        return text if text is not None else str(self.header[tag_of(tag)].value or "")

    def whole(self, tag: int) -> int | None:
        """Return an integer; None where it is absent or empty (raises like `text`)."""
        found = self._plain(tag)
        if found is None or not found[0]:
            return None
        number = plain_whole(*found, little=self.little)
        if number is None:
            value = self.header[tag_of(tag)].value
            number = None if value is None or value == "" else int(value)
        return number

    def sample(self, tag: int) -> int | None:
        """Return a US or SS value as it is stored, 0..65535; None where there is none."""
        found = self._plain(tag)
        if found is None:
            return None
        number = plain_whole(*found, little=self.little) if len(found[0]) == 2 else None
        if number is None:
            value = self.header[tag_of(tag)].value
            if not isinstance(value, int):
                return None
            number = value
        return number & 0xFFFF

    def first(self, tag: int) -> float | None:
        """Return the first number of a decimal string; None where there is none (see `text`)."""
        found = self._plain(tag)
        if found is None:
            return None
        number = plain_first(*found)
        if number is None:
            value = self.header[tag_of(tag)].value
            if value is None or value == "":
                return None
            number = float(value if isinstance(value, int | float | str) else value[0])
        return number

    def _plain(self, tag: int) -> tuple[bytes, str] | None:
        """Return value and VR of an element; None where it is not in the header."""
        place = self.elements.get(tag)
        if place is None or tag in self.bulk:
            return None
        vr = place.vr or known_vr(tag)
        if place.length == UNDEFINED or place.length > _PLAIN_BYTES:
            return b"\x1b", vr  # never plain
        return self.source.peek(place.value, place.length), vr

    def fragments(self) -> list[tuple[int, int]]:
        """Return (offset, length) of each pixel data item, the offset table first (PixelError)."""
        if self.pixel is None or self.pixel.length != UNDEFINED:
            raise PixelError("the pixel data is not encapsulated")
        return Scanner(self.source, implicit=self.implicit, little=self.little).fragments(
            self.pixel
        )

    def close(self) -> None:
        """Close the file; idempotent."""
        self.source.close()


def open_data_file(
    path: Path, *, max_pixels: int = MAX_PIXELS, inflate_limit: int = 1 << 32,
    scratch: Path | None = None,
) -> DataFile:  # fmt: skip
    """Scan a DICOM file, with or without preamble and meta header.

    Parameters
    ----------
    max_pixels
        Pixels a frame may have for a deflated data set to be inflated with its pixel data.
    inflate_limit
        Bytes a deflated data set may inflate to in any case. Otherwise it is 512 MiB, and the
        pixels that its header announces.
    scratch
        Folder to inflate into; None: the system's for temporary files.

    Raises
    ------
    PixelError
        If it is no DICOM data set, is cut short, or is encoded otherwise than its meta header says.
    """
    raw = open_source(path)
    try:
        return _scan(path, raw, max_pixels, inflate_limit, scratch)
    except BaseException:
        raw.close()
        raise


def _scan(
    path: Path, raw: ByteSource, max_pixels: int, inflate_limit: int, scratch: Path | None
) -> DataFile:
    meta = read_meta(raw)
    announced, offset, source = meta.announced, meta.end, raw
    if announced == DEFLATED_LE:

        def bound(begun: ByteSource) -> int:
            return _HEADER_LIMIT + _announced_bytes(path, meta, begun, max_pixels)

        source = inflate(raw, offset, bound, limit=inflate_limit, folder=scratch)
        offset = 0
        raw.close()
    if source.size - offset < 8:
        raise PixelError("the file holds no data set")
    head = source.read(offset, 8)
    implicit, little = looks_implicit(head), not looks_big_endian(head)
    uid = announced or _native_uid(implicit, little)
    _check_encoding(uid, implicit, little)
    scanner = Scanner(source, implicit=implicit, little=little)
    elements = {}
    for element in scanner.elements(offset):
        elements[element.tag] = element
    if not any(tag >> 16 >= 8 for tag in elements):
        raise PixelError("the file is no DICOM data set")
    return DataFile(path, source, meta, uid, implicit, little, elements)


def _announced_bytes(path: Path, meta: MetaHeader, begun: ByteSource, max_pixels: int) -> int:
    """Return the bytes of pixel data that a deflated data set has by its own, credible, word.

    Parameters
    ----------
    begun
        The beginning of the data set.
    """
    scanner, elements, offset = Scanner(begun, implicit=False, little=True), {}, 0
    try:
        for element in scanner.elements(0):
            elements[element.tag], offset = element, element.end
    except PixelError:
        pass  # of what comes first behind the beginning, only the head is there
    head = begun.read(offset, 12)
    if head[:4] != _PIXEL_HEAD or head[4:6] not in (b"OB", b"OW"):
        return 0
    data = DataFile(path, begun, meta, DEFLATED_LE, False, True, elements)
    try:
        rows, columns, samples, bits, frames = (data.whole(tag) or 0 for tag in _EXTENT)
    except MemoryError:
        raise
    except Exception as error:  # pydicom raises by the element's VR
        raise PixelError(f"what the pixel data holds cannot be read: {error}") from error
    if rows * columns > max_pixels:
        return 0
    extent = rows * columns * max(samples, 1) * -(-bits // 8) * max(frames, 1)
    return min(extent, int.from_bytes(head[8:], "little"))


def _native_uid(implicit: bool, little: bool) -> str:
    if implicit:
        return IMPLICIT_LE
    return EXPLICIT_LE if little else EXPLICIT_BE


def _check_encoding(uid: str, implicit: bool, little: bool) -> None:
    """Refuse a data set that is not encoded as its meta header says (PixelError)."""
    syntax = SYNTAXES.get(uid)
    # Every transfer syntax that is not in the table is explicit little endian (PS3.5 Annex A).
    expected = (syntax.implicit, syntax.little) if syntax else (False, True)
    if expected != (implicit, little):
        found = (
            "implicit VR big endian"
            if implicit and not little
            else name_of(_native_uid(implicit, little))
        )
        raise PixelError(
            f"the meta header announces {name_of(uid)}, but the data set is encoded as {found}"
        )
