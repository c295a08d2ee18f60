"""File Meta Information (group 0002) around data set bytes that are never decoded.

References
----------
DICOM PS3.10 7.1, DICOM File Meta Information.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import BinaryIO

from dicom_node.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

__all__ = [
    "IMPLEMENTATION_CLASS_UID", "IMPLEMENTATION_VERSION_NAME", "FileMeta", "encode_file_meta",
    "read_file_meta",
]  # fmt: skip

_PREAMBLE = bytes(128) + b"DICM"
_LONG_VRS = frozenset((b"OB", b"OW", b"UN", b"SQ", b"UT", b"OF", b"OD", b"OL", b"OV", b"UC", b"UR"))
_META_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class FileMeta:
    """What C-STORE needs to know of a file, and where its data set starts (bytes)."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data_set_offset: int

    def of_copy(self, copied: FileMeta) -> FileMeta:
        """Return what a transcoded copy is sent as: under our UIDs, in its own coding.

        A data set may name another SOP Instance UID than the one it came under, which its copy's
        File Meta Information repeats.
        """
        return replace(
            self, transfer_syntax_uid=copied.transfer_syntax_uid,
            data_set_offset=copied.data_set_offset,
        )  # fmt: skip


def encode_file_meta(
    sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, source_ae: str
) -> bytes:
    """Return preamble, prefix and File Meta Information; the data set bytes follow unchanged."""
    body = b"".join(
        (
            _element(0x0001, b"OB", b"\x00\x01"),
            _element(0x0002, b"UI", _padded(sop_class_uid, b"\0")),
            _element(0x0003, b"UI", _padded(sop_instance_uid, b"\0")),
            _element(0x0010, b"UI", _padded(transfer_syntax_uid, b"\0")),
            _element(0x0012, b"UI", _padded(IMPLEMENTATION_CLASS_UID, b"\0")),
            _element(0x0013, b"SH", _padded(IMPLEMENTATION_VERSION_NAME, b" ")),
            _element(0x0016, b"AE", _padded(source_ae, b" ")) if source_ae else b"",
        )
    )
    return _PREAMBLE + _element(0x0000, b"UL", struct.pack("<L", len(body))) + body


def read_file_meta(file: BinaryIO) -> FileMeta:
    """Return the File Meta Information of an open file.

    Raises
    ------
    ValueError
        If it is not a DICOM file, or lacks one of the three UIDs.
    """
    file.seek(0)
    if file.read(132)[128:] != b"DICM":
        raise ValueError("not a DICOM file: no DICM prefix")
    values: dict[int, bytes] = {}
    while True:
        start = file.tell()
        header = file.read(8)
        if len(header) < 8 or header[:2] != b"\x02\x00" or start > _META_LIMIT:
            break
        element, vr, length = struct.unpack("<2xH2sH", header)
        if vr in _LONG_VRS:
            (length,) = struct.unpack("<L", file.read(4).ljust(4, b"\0"))
        if length > _META_LIMIT:
            raise ValueError(f"File Meta Information element (0002,{element:04X}) is too long")
        values[element] = file.read(length)
    uids = [values.get(e, b"").decode("ascii", "replace").strip("\0 ") for e in (2, 3, 0x10)]
    if not all(uids):
        raise ValueError("no SOP Class, SOP Instance or Transfer Syntax UID in group 0002")
    return FileMeta(uids[0], uids[1], uids[2], start)


def _element(element: int, vr: bytes, value: bytes) -> bytes:
    if vr == b"OB":
        return struct.pack("<HH2s2xL", 2, element, vr, len(value)) + value
    return struct.pack("<HH2sH", 2, element, vr, len(value)) + value


def _padded(value: str, pad: bytes) -> bytes:
    encoded = value.encode("ascii", "replace")
    return encoded + pad if len(encoded) % 2 else encoded
