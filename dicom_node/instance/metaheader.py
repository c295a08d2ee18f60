"""File Meta Information: read without conversion, written with what we say of a file.

References
----------
DICOM PS3.10 7.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID

from dicom_node.errors import PixelError
from dicom_node.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.instance.elements import Element, Scanner
from dicom_node.instance.encoding import element_bytes
from dicom_node.instance.parsing import parse_header, text_in
from dicom_node.instance.source import ByteSource
from dicom_node.instance.values import encoded_text, plain_text

_GROUP_LENGTH, _VERSION = 0x00020000, 0x00020001
_TRANSFER_SYNTAX, _IMPLEMENTATION, _VERSION_NAME = 0x00020010, 0x00020012, 0x00020013
_VERSION_BYTES = b"\x00\x01"
# Media Storage SOP Class and Instance UID, and where the data set has them.
_STORED_AS = {0x00020002: 0x00080016, 0x00020003: 0x00080018}


@dataclass(frozen=True)
class MetaHeader:
    """The meta header of a file.

    Attributes
    ----------
    block
        As it is encoded; empty where the file has none.
    elements
        Their places; offsets count from `start`.
    start
        Offset of `block` in the file.
    """

    block: bytes
    elements: tuple[Element, ...]
    start: int

    @property
    def end(self) -> int:
        """Offset of the data set."""
        return self.start + len(self.block)

    @cached_property
    def parsed(self) -> FileMetaDataset:
        """All of it, read by pydicom (PixelError where it cannot)."""
        meta = FileMetaDataset()
        meta.update(parse_header(self.block, implicit=False, little=True))
        return meta

    @cached_property
    def texts(self) -> dict[int, tuple[str, str | None]]:
        """VR and text by tag, without padding; None for what is no plain text."""
        found: dict[int, tuple[str, str | None]] = {}
        for element in self.elements:
            value = self.block[element.value - self.start : element.end - self.start]
            vr = element.vr or ""
            # pydicom drops leading spaces of some VRs, so they are not plain here.
            text = None if value[:1] == b" " else plain_text(value, vr)
            found[element.tag] = (vr, text)
        return found

    def uid(self, tag: int) -> str:
        """Return a UID, "" where it is absent (PixelError where pydicom cannot read it)."""
        vr, text = self.texts.get(tag, ("UI", ""))
        if text is None or vr != "UI":
            element = self.parsed.get(tag)
            text = "" if element is None else str(element.value or "")
        return text

    @property
    def announced(self) -> str:
        """Transfer syntax UID, "" where none is announced (PixelError)."""
        return self.uid(_TRANSFER_SYNTAX)


def read_meta(raw: ByteSource) -> MetaHeader:
    """Return the meta header of a file, an empty one where there is none (PixelError)."""
    start = offset = 132 if raw.read(128, 4) == b"DICM" else 0
    scanner, places = Scanner(raw, implicit=False, little=True).elements(offset), []
    # Asked for one by one: behind the meta header, another encoding may begin.
    while raw.peek(offset, 2) == b"\x02\x00":
        places.append(next(scanner))
        offset = places[-1].end
    return MetaHeader(raw.read(start, offset - start), tuple(places), start)


def meta_bytes(meta: MetaHeader, header: Dataset, transfer_syntax_uid: str) -> bytes:
    """Return the meta header of a file of `header`: the source's, and ours where we know better.

    Raises
    ------
    PixelError
        If an element cannot be encoded.
    """
    texts = dict(meta.texts)
    length = texts.pop(_GROUP_LENGTH, None)
    for tag, in_header in _STORED_AS.items():
        texts[tag] = ("UI", text_in(header, in_header) or meta.uid(tag))
    texts[_TRANSFER_SYNTAX] = ("UI", transfer_syntax_uid)
    texts[_IMPLEMENTATION] = ("UI", IMPLEMENTATION_CLASS_UID)
    texts[_VERSION_NAME] = ("SH", IMPLEMENTATION_VERSION_NAME)
    texts[_VERSION] = ("OB", "")
    parts = []
    for tag in sorted(texts):
        vr, text = texts[tag]
        value = None if text is None else encoded_text(text, vr)
        if tag == _VERSION:
            value = _VERSION_BYTES
        part = None
        if value is not None:
            part = element_bytes(tag, vr, value, implicit=False, little=True)
        if part is None:
            return _by_pydicom(meta.parsed, header, transfer_syntax_uid)
        parts.append(part)
    body = b"".join(parts)
    if length is None:
        return body
    size = element_bytes(_GROUP_LENGTH, "UL", len(body).to_bytes(4, "little"), implicit=False,
                         little=True)  # fmt: skip
    return (size or b"") + body


def _by_pydicom(said: FileMetaDataset, header: Dataset, transfer_syntax_uid: str) -> bytes:
    meta = FileMetaDataset()
    meta.update(said)
    meta.FileMetaInformationVersion = _VERSION_BYTES
    for of_file, of_data_set in (
        ("MediaStorageSOPClassUID", "SOPClassUID"),
        ("MediaStorageSOPInstanceUID", "SOPInstanceUID"),
    ):
        setattr(meta, of_file, header.get(of_data_set) or said.get(of_file) or "")
    meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    stream = DicomBytesIO()
    try:
        write_file_meta_info(stream, meta, enforce_standard=False)
    except MemoryError:
        raise
    except Exception as error:  # pydicom raises nearly anything on values it cannot encode
        raise PixelError(f"the meta header cannot be written: {error}") from error
    return stream.getvalue()
