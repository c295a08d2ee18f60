"""A DICOM file opened: meta header, encoding, header as a data set, place of the pixel data."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement, empty_value_for_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.valuerep import VR

from dicom_node.errors import PixelError
from dicom_node.instance.elements import (
    ITEM_END,
    PIXEL_DATA,
    UNDEFINED,
    Element,
    Scanner,
    looks_big_endian,
    looks_implicit,
)
from dicom_node.instance.source import ByteSource, inflate, open_source
from dicom_node.instance.syntaxes import (
    DEFLATED_LE,
    EXPLICIT_BE,
    EXPLICIT_LE,
    IMPLICIT_LE,
    SYNTAXES,
    name_of,
)

_BULK_BYTES = 1 << 20
_FLOAT_PIXELS = frozenset((0x7FE00008, 0x7FE00009))
_HEADER_LIMIT = 1 << 29
_CHARACTER_SET = 0x00080005
_KNOWN_VR = frozenset(str(vr) for vr in VR if len(str(vr)) == 2)


@dataclass
class DataFile:
    """One instance on disk, scanned.

    Attributes
    ----------
    source
        The data set's bytes (inflated where it was deflated); element offsets are in it.
    meta
        File Meta Information; empty where the file has none.
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
    meta: FileMetaDataset
    transfer_syntax_uid: str
    implicit: bool
    little: bool
    elements: dict[int, Element]
    _header: Dataset | None = field(default=None, init=False, repr=False)
    _parsed_ones: list[DataElement] = field(default_factory=list, init=False, repr=False)

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
        return (element.vr or _known_vr(element.tag)) != "SQ"

    def read_header(self) -> Dataset:
        """Return everything but bulk data as a data set of one's own to change.

        Values stay raw until used. Sequences are shared between the copies: replace one, do not
        change it in place.

        Raises
        ------
        PixelError
            If pydicom cannot parse it.
        """
        if self._header is None:
            places = [e for e in self.elements.values() if not self.is_bulk(e)]
            if sum(e.end - e.start for e in places) > _HEADER_LIMIT:
                raise PixelError(f"the header is larger than {_HEADER_LIMIT >> 20} MiB")
            self._header = self._parsed(places)
            # Setting an attribute writes into the element that is there: none may be shared.
            self._parsed_ones = [e for e in self._header.values() if isinstance(e, DataElement)]
        copied = dict(self._header.items())
        copied.update((element.tag, _own_element(element)) for element in self._parsed_ones)
        return Dataset(copied)

    def _parsed(self, places: list[Element]) -> Dataset:
        """Return the elements at `places`: raw from where the scanner found them, if that is plain.

        pydicom parses what has an undefined length, and everything where it could see the file
        otherwise than the scanner; telling it where each element lies is a tenth of the work.
        """
        nested = [e for e in places if e.length == UNDEFINED]
        # The character set says how the sequences' texts are to be read.
        some = [e for e in places if e.tag == _CHARACTER_SET or e.length == UNDEFINED]
        parsed = self._by_pydicom(some) if nested else Dataset()
        plain = all(e.tag != ITEM_END and (self.implicit or e.vr in _KNOWN_VR) for e in places)
        if not plain or any(e.tag not in parsed for e in nested):
            return self._by_pydicom(places)
        made: dict[BaseTag, DataElement | RawDataElement] = {}
        run, block = (0, 0), b""
        waiting = iter(_runs(places))
        for element in places:
            tag, length = BaseTag(element.tag), element.length
            if not run[0] <= element.start < run[1]:
                run = next(waiting)
                block = self.source.read(run[0], run[1] - run[0])
            if length == UNDEFINED:
                made[tag] = parsed.get_item(tag)
                continue
            at = element.value - run[0]
            value: bytes | None = block[at : at + length]
            if not length:
                value = cast(bytes | None, empty_value_for_VR(element.vr, raw=True))
            made[tag] = RawDataElement(
                tag, element.vr, length, value, element.value, self.implicit, self.little
            )
        return Dataset(made)

    def _by_pydicom(self, places: list[Element]) -> Dataset:
        block = b"".join(self.source.read(start, end - start) for start, end in _runs(places))
        return parse_header(block, implicit=self.implicit, little=self.little)

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


def parse_header(block: bytes, *, implicit: bool, little: bool) -> Dataset:
    """Parse encoded elements with pydicom (PixelError where it cannot)."""
    try:
        return read_dataset(io.BytesIO(block), implicit, little, len(block))
    except Exception as error:  # pydicom raises nearly anything on malformed values
        raise PixelError(f"the data set cannot be parsed: {error}") from error


def own_copy(header: Dataset) -> Dataset:
    """Return a data set whose elements can be replaced or set without touching `header`'s.

    Sequence items are shared.
    """
    # Setting an attribute writes into the element that is there: elements must not be shared.
    return Dataset(
        {
            tag: _own_element(item) if isinstance(item, DataElement) else item
            for tag, item in header.items()
        }
    )


def _own_element(element: DataElement) -> DataElement:
    """Return a shallow copy; `copy.copy` does the same by way of pickling, ten times slower."""
    own = DataElement.__new__(type(element))
    own.__dict__.update(element.__dict__)
    return own


def open_data_file(path: Path, *, inflate_limit: int = 1 << 32) -> DataFile:
    """Scan a DICOM file, with or without preamble and meta header.

    Parameters
    ----------
    inflate_limit
        Bytes a deflated data set may inflate to.

    Raises
    ------
    PixelError
        If it is no DICOM data set, is cut short, or is encoded otherwise than its meta header says.
    """
    raw = open_source(path)
    try:
        return _scan(path, raw, inflate_limit)
    except PixelError:
        raw.close()
        raise


def _scan(path: Path, raw: ByteSource, inflate_limit: int) -> DataFile:
    meta, offset = _read_meta(raw)
    announced = str(meta.get("TransferSyntaxUID", "") or "")
    source = raw
    if announced == DEFLATED_LE:
        source, offset = inflate(raw, offset, inflate_limit), 0
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


def _read_meta(raw: ByteSource) -> tuple[FileMetaDataset, int]:
    """Return the meta header and where the data set starts."""
    offset = 132 if raw.read(128, 4) == b"DICM" else 0
    start = offset
    scanner = Scanner(raw, implicit=False, little=True)
    # Not iterated over: behind the meta header, another encoding may begin.
    while raw.peek(offset, 2) == b"\x02\x00":
        offset = next(scanner.elements(offset)).end
    block = raw.read(start, offset - start)
    meta = FileMetaDataset()
    meta.update(parse_header(block, implicit=False, little=True))
    return meta, offset


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


def _known_vr(tag: int) -> str:
    try:
        return dictionary_VR(tag)
    except KeyError:
        return "UN"


def _runs(places: list[Element]) -> list[tuple[int, int]]:
    """Merge neighbouring elements into as few reads as possible."""
    runs: list[tuple[int, int]] = []
    for element in places:
        if runs and runs[-1][1] == element.start:
            runs[-1] = (runs[-1][0], element.end)
        else:
            runs.append((element.start, element.end))
    return runs
