"""Write a file whose header changed in places: what did not change is taken over byte for byte."""

from __future__ import annotations

import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import correct_ambiguous_vr_element, write_data_element

from dicom_node.errors import PixelError
from dicom_node.instance.datafile import DataFile, open_data_file
from dicom_node.instance.elements import PIXEL_DATA, Element
from dicom_node.instance.encoding import raw_bytes
from dicom_node.instance.metaheader import MetaHeader, meta_bytes
from dicom_node.instance.syntaxes import DEFLATED_LE
from dicom_node.instance.values import tag_of

Item = DataElement | RawDataElement
HeaderChanges = Mapping[int, DataElement | None]

EXTENDED_OFFSETS = (0x7FE00001, 0x7FE00002)
_CHUNK = 1 << 20


class Sink(Protocol):
    """What a data set is written to."""

    def write(self, data: bytes, /) -> object:
        """Take the next bytes of the data set."""


def copy_with_header(source: Path, changes: HeaderChanges, out: Path) -> str:
    """Write `source` with some header elements changed and its pixel data byte for byte.

    Parameters
    ----------
    changes
        New element by tag; None removes the tag.

    Returns
    -------
    str
        The transfer syntax UID, which is the source's.

    Raises
    ------
    PixelError
        If the source cannot be parsed or an element cannot be encoded.
    """
    data = open_data_file(source, scratch=out.parent)
    try:
        header = data.read_header()
        for tag, element in changes.items():
            if element is None:
                if tag in header:
                    del header[tag]
            else:
                header[tag] = element
        write_header(data, header, out)
    finally:
        data.close()
    return data.transfer_syntax_uid


def write_header(data: DataFile, header: Dataset, out: Path) -> None:
    """Write `data` with `header` instead of its own, its pixel data byte for byte (PixelError)."""

    def copy_pixels(sink: Sink) -> None:
        if data.pixel is not None:
            _copy(data, data.pixel.start, data.pixel.end, sink)

    write_file(data, header, data.transfer_syntax_uid, copy_pixels, out)


def write_file(
    data: DataFile,
    header: Dataset,
    transfer_syntax_uid: str,
    write_pixels: Callable[[Sink], None],
    out: Path,
) -> None:
    """Write `header` and pixel data as a DICOM file: temporary file, fsync, rename, fsync.

    Parameters
    ----------
    data
        The source: unchanged elements and bulk values are copied from it.
    header
        What the header shall be; bulk values of the source need not be in it.
    transfer_syntax_uid
        Must be in the source's encoding (implicit or explicit VR, byte order).
    write_pixels
        Called once, in tag order, to write the whole Pixel Data element.

    Raises
    ------
    PixelError
        If an element cannot be encoded.
    """

    def write_data_set(sink: Sink) -> None:
        _write_data_set(data, header, write_pixels, sink)

    write_part10(data.meta, header, transfer_syntax_uid, write_data_set, out)


def write_part10(
    said: MetaHeader,
    header: Dataset,
    transfer_syntax_uid: str,
    write_data_set: Callable[[Sink], None],
    out: Path,
) -> None:
    """Write a DICOM file: temporary file, fsync, rename, fsync.

    Parameters
    ----------
    said
        The source's meta header; what it says is kept where we do not know better.
    write_data_set
        Called once, to write the data set in the encoding of `transfer_syntax_uid`.

    Raises
    ------
    PixelError
        If an element cannot be encoded.
    """
    meta = meta_bytes(said, header, transfer_syntax_uid)
    handle, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=out.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(bytes(128) + b"DICM" + meta)
            if transfer_syntax_uid == DEFLATED_LE:
                deflater = _Deflater(stream)
                write_data_set(deflater)
                deflater.finish()
            else:
                write_data_set(stream)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(out)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(out.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def encode_element(element: Item, header: Dataset, *, implicit: bool, little: bool) -> bytes:
    """Return one element encoded (PixelError where pydicom cannot)."""
    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = implicit, little
    try:
        if isinstance(element, DataElement) and " or " in element.VR:
            element = correct_ambiguous_vr_element(element, header, little)
        write_data_element(stream, element, header.get("SpecificCharacterSet", "iso8859"))
    except MemoryError:
        raise
    except Exception as error:  # pydicom raises nearly anything on values it cannot encode
        raise PixelError(f"{element.tag} cannot be encoded: {error}") from error
    return stream.getvalue()


def changed_tags(before: Dataset, after: Dataset) -> Iterator[int]:
    """Yield the tags that were added, removed or given another value, in order."""
    old, new = dict(before.items()), dict(after.items())
    # Copies of one header share the elements nobody touched: those need no second look.
    moved = [int(tag) for tag, item in new.items() if old.get(tag) is not item]
    gone = [] if old.keys() == new.keys() else [int(tag) for tag in old if tag not in new]
    for tag in sorted([*moved, *gone]):
        one, other = old.get(tag_of(tag)), new.get(tag_of(tag))
        if one is None or other is None or not _same(one, other, before, after):
            yield tag


def _same(old: Item, new: Item, before: Dataset, after: Dataset) -> bool:
    if old is new:
        return True
    if isinstance(old, RawDataElement) and isinstance(new, RawDataElement):
        return (old.VR, old.value) == (new.VR, new.value)
    if isinstance(old, DataElement) and isinstance(new, DataElement) and old.value is new.value:
        return old.VR == new.VR
    return bool(before[old.tag] == after[new.tag])


def _write_data_set(
    data: DataFile, header: Dataset, write_pixels: Callable[[Sink], None], sink: Sink
) -> None:
    changed = set(changed_tags(Dataset(dict(data.items)), header))
    parts: dict[int, bytes | Element] = {
        tag: place for tag, place in data.elements.items() if tag not in changed
    }
    parts |= {tag: _encoded(data, header, tag) for tag in changed if tag in header}
    if data.pixel is None or data.pixel.length % 2:  # undefined is odd, too
        parts.pop(PIXEL_DATA & 0xFFFF0000, None)
    _renew_group_lengths(parts, changed, little=data.little)
    pending: tuple[int, int] = (0, 0)
    for tag in sorted({*parts, PIXEL_DATA}):
        part = parts.get(tag)
        if tag != PIXEL_DATA and isinstance(part, Element) and part.start == pending[1]:
            pending = (pending[0], part.end)
            continue
        _copy(data, *pending, sink)
        pending = (0, 0)
        if tag == PIXEL_DATA:
            write_pixels(sink)
        elif isinstance(part, Element):
            pending = (part.start, part.end)
        elif part is not None:
            sink.write(part)
    _copy(data, *pending, sink)


def _renew_group_lengths(
    parts: dict[int, bytes | Element], changed: set[int], *, little: bool
) -> None:
    """Correct the group lengths (PS3.5 7.2, retired) of groups with changes."""
    for group in {tag >> 16 for tag in changed}:
        length = parts.get(group << 16)
        if not isinstance(length, Element):
            continue
        members = [part for tag, part in parts.items() if tag >> 16 == group and tag & 0xFFFF]
        size = sum(p.end - p.start if isinstance(p, Element) else len(p) for p in members)
        order = "<" if little else ">"
        head = struct.pack(order + "HH", group, 0)
        if length.vr is None:
            head += struct.pack(order + "I", 4)
        else:
            head += b"UL" + struct.pack(order + "H", 4)
        parts[group << 16] = head + struct.pack(order + "I", size)


def _encoded(data: DataFile, header: Dataset, tag: int) -> bytes:
    item: Item = header.get_item(tag_of(tag))
    if isinstance(item, RawDataElement):
        encoded = raw_bytes(item, implicit=data.implicit, little=data.little)
        if encoded is not None:
            return encoded
        coded = (item.is_implicit_VR, item.is_little_endian)
        if coded != (data.implicit, data.little):
            item = header[tag]
    return encode_element(item, header, implicit=data.implicit, little=data.little)


def _copy(data: DataFile, start: int, end: int, sink: Sink) -> None:
    while start < end:
        block = data.source.read(start, min(_CHUNK, end - start))
        sink.write(block)
        start += len(block)


class _Deflater:
    """Sink of a deflated data set (PS3.5 A.5)."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._engine = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
        self._written = 0

    def write(self, data: bytes, /) -> None:
        self._put(self._engine.compress(data))

    def finish(self) -> None:
        self._put(self._engine.flush())
        if self._written % 2:
            self._put(b"\0")

    def _put(self, packed: bytes) -> None:
        self._stream.write(packed)
        self._written += len(packed)


def item_header(length: int) -> bytes:
    """Return an item tag and its length, as in encapsulated pixel data."""
    return struct.pack("<HHI", 0xFFFE, 0xE000, length)
