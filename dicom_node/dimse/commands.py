"""The C-STORE command sets as plain structs: the only ones that pass in bulk.

A command set is always Implicit VR Little Endian with group 0000 only (PS3.7 6.3.1), so a general
data set codec would cost more time than moving the image itself.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

C_STORE_RQ = 0x0001
C_STORE_RSP = 0x8001
NO_DATA_SET = 0x0101

# Element numbers of group 0000, PS3.7 Table E.1-1.
AFFECTED_SOP_CLASS_UID = 0x0002
COMMAND_FIELD = 0x0100
MESSAGE_ID = 0x0110
MESSAGE_ID_BEING_RESPONDED_TO = 0x0120
PRIORITY = 0x0700
COMMAND_DATA_SET_TYPE = 0x0800
STATUS = 0x0900
ERROR_COMMENT = 0x0902
AFFECTED_SOP_INSTANCE_UID = 0x1000
MOVE_ORIGINATOR_AE_TITLE, MOVE_ORIGINATOR_MESSAGE_ID = 0x1030, 0x1031

_ELEMENT = struct.Struct("<HHL")
_US = struct.Struct("<H")
_UID_LENGTH = 64
_COMMENT_LENGTH = 64


def decode_command(encoded: bytes | bytearray) -> dict[int, bytes]:
    """Return the values of a command set by element number.

    Raises
    ------
    ValueError
        If it is cut short or holds another group than 0000.
    """
    elements: dict[int, bytes] = {}
    position = 0
    while position < len(encoded):
        if position + 8 > len(encoded):
            raise ValueError("command set ends inside an element header")
        group, element, length = _ELEMENT.unpack_from(encoded, position)
        position += 8
        if group != 0 or length > len(encoded) - position:
            raise ValueError(f"command set holds an impossible element ({group:04X},{element:04X})")
        elements[element] = bytes(encoded[position : position + length])
        position += length
    return elements


def encode_command(elements: Mapping[int, bytes]) -> bytes:
    """Return the command set with its group length; values are padded by the caller."""
    body = b"".join(
        _ELEMENT.pack(0, element, len(value)) + value for element, value in sorted(elements.items())
    )
    return _ELEMENT.pack(0, 0, 4) + struct.pack("<L", len(body)) + body


def us(elements: Mapping[int, bytes], element: int) -> int | None:
    """Return an unsigned short, ``None`` where it is missing or of another length."""
    value = elements.get(element, b"")
    return int(_US.unpack(value)[0]) if len(value) == 2 else None


def uid(elements: Mapping[int, bytes], element: int) -> str:
    """Return a UID as sent, without padding; ``""`` where it is missing or not 1 to 64 ASCII."""
    value = elements.get(element, b"").rstrip(b"\0 ")
    if len(value) > _UID_LENGTH or not value.isascii():
        return ""
    text = value.decode("ascii").strip()
    return text if text.isprintable() else ""


def _encoded_uid(value: str) -> bytes:
    encoded = value.encode("ascii")
    return encoded + b"\0" if len(encoded) % 2 else encoded


@dataclass(frozen=True, slots=True)
class MoveOriginator:
    """Whose C-MOVE a C-STORE sub-operation belongs to (PS3.7 9.1.1.1)."""

    ae_title: str
    message_id: int


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """C-STORE-RQ without its data set (PS3.7 9.3.1.1).

    Attributes
    ----------
    originator
        Of a sub-operation of C-MOVE; never read, since it means nothing to a Storage SCP.
    """

    message_id: int
    sop_class_uid: str
    sop_instance_uid: str
    originator: MoveOriginator | None = None

    @classmethod
    def decode(cls, elements: Mapping[int, bytes]) -> StoreRequest:
        """Return the request; missing or impossible UIDs are ``""``.

        Raises
        ------
        ValueError
            If there is no Message ID, so that no answer could name the request.
        """
        message_id = us(elements, MESSAGE_ID)
        if message_id is None:
            raise ValueError("C-STORE-RQ without a Message ID")
        return cls(
            message_id,
            uid(elements, AFFECTED_SOP_CLASS_UID),
            uid(elements, AFFECTED_SOP_INSTANCE_UID),
        )

    def encode(self) -> bytes:
        """Return the command set, medium priority, data set follows."""
        elements = {
            AFFECTED_SOP_CLASS_UID: _encoded_uid(self.sop_class_uid),
            COMMAND_FIELD: _US.pack(C_STORE_RQ),
            MESSAGE_ID: _US.pack(self.message_id),
            PRIORITY: _US.pack(0),
            COMMAND_DATA_SET_TYPE: _US.pack(1),
            AFFECTED_SOP_INSTANCE_UID: _encoded_uid(self.sop_instance_uid),
        }
        if self.originator is not None:
            title = self.originator.ae_title.encode("ascii", "replace")
            elements[MOVE_ORIGINATOR_AE_TITLE] = title + b" " if len(title) % 2 else title
            elements[MOVE_ORIGINATOR_MESSAGE_ID] = _US.pack(self.originator.message_id)
        return encode_command(elements)


@dataclass(frozen=True, slots=True)
class StoreResponse:
    """C-STORE-RSP (PS3.7 9.3.1.2)."""

    message_id: int
    status: int
    comment: str = ""
    sop_class_uid: str = ""
    sop_instance_uid: str = ""

    @classmethod
    def decode(cls, elements: Mapping[int, bytes]) -> StoreResponse:
        """Return the response (ValueError without Message ID or Status)."""
        message_id = us(elements, MESSAGE_ID_BEING_RESPONDED_TO)
        status = us(elements, STATUS)
        if message_id is None or status is None:
            raise ValueError("C-STORE-RSP without Message ID Being Responded To or Status")
        comment = elements.get(ERROR_COMMENT, b"").decode("ascii", "replace").strip("\0 ")
        return cls(
            message_id,
            status,
            "".join(c if c.isprintable() else "?" for c in comment[:_COMMENT_LENGTH]),
            uid(elements, AFFECTED_SOP_CLASS_UID),
            uid(elements, AFFECTED_SOP_INSTANCE_UID),
        )

    def encode(self) -> bytes:
        """Return the command set; the comment is cut to 64 characters (VR LO)."""
        elements = {
            COMMAND_FIELD: _US.pack(C_STORE_RSP),
            MESSAGE_ID_BEING_RESPONDED_TO: _US.pack(self.message_id),
            COMMAND_DATA_SET_TYPE: _US.pack(NO_DATA_SET),
            STATUS: _US.pack(self.status),
        }
        if self.sop_class_uid:
            elements[AFFECTED_SOP_CLASS_UID] = _encoded_uid(self.sop_class_uid)
        if self.sop_instance_uid:
            elements[AFFECTED_SOP_INSTANCE_UID] = _encoded_uid(self.sop_instance_uid)
        if self.comment:
            text = self.comment.encode("ascii", "replace")[:_COMMENT_LENGTH]
            elements[ERROR_COMMENT] = text + b" " if len(text) % 2 else text
        return encode_command(elements)
