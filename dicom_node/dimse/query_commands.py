"""The command sets of query and retrieve as plain structs, beside those of C-STORE.

References
----------
DICOM PS3.7 9.3.2 (C-FIND), 9.3.3 (C-GET), 9.3.4 (C-MOVE), Table E.1-1 (element numbers).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dicom_node.dimse import commands
from dicom_node.dimse.commands import encode_command, uid, us

Kind = Literal["find", "get", "move"]

C_CANCEL_RQ = 0x0FFF
C_ECHO_RQ, C_ECHO_RSP = 0x0030, 0x8030
REQUESTS: dict[int, Kind] = {0x0020: "find", 0x0010: "get", 0x0021: "move"}
RESPONSES: dict[int, Kind] = {0x8020: "find", 0x8010: "get", 0x8021: "move"}
_FIELD = {kind: field for field, kind in REQUESTS.items()}
_RESPONSE_FIELD = {kind: field for field, kind in RESPONSES.items()}

SYNTAXES = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
"""How identifiers may be encoded: Explicit and Implicit VR Little Endian."""

MOVE_DESTINATION = 0x0600
_REMAINING, _COMPLETED, _FAILED, _WARNING = 0x1020, 0x1021, 0x1022, 0x1023

SUCCESS = 0x0000
PENDING = 0xFF00
PENDING_WITHOUT_KEYS = 0xFF01
"""A match, but optional keys of the identifier were not used (PS3.4 C.4.1.1.4)."""
CANCELLED = 0xFE00

_US = struct.Struct("<H")
_COMMENT_LENGTH = 64
_MOST = 0xFFFF


@dataclass(frozen=True, slots=True)
class SubOperations:
    """How many C-STORE sub-operations are where; 0 to 65535 each as they are sent."""

    remaining: int = 0
    completed: int = 0
    failed: int = 0
    warning: int = 0


@dataclass(frozen=True, slots=True)
class QueryRequest:
    """C-FIND-RQ, C-GET-RQ or C-MOVE-RQ without its identifier."""

    kind: Kind
    message_id: int
    sop_class_uid: str
    move_destination: str = ""

    @classmethod
    def decode(cls, kind: Kind, elements: Mapping[int, bytes]) -> QueryRequest:
        """Return the request (ValueError without a Message ID, which no answer could name)."""
        message_id = us(elements, commands.MESSAGE_ID)
        if message_id is None:
            raise ValueError("a request without a Message ID")
        called = elements.get(MOVE_DESTINATION, b"").decode("ascii", "replace").strip("\0 ")
        return cls(kind, message_id, uid(elements, commands.AFFECTED_SOP_CLASS_UID), called)

    def encode(self) -> bytes:
        """Return the command set, medium priority, identifier follows."""
        elements = {
            commands.AFFECTED_SOP_CLASS_UID: _even(self.sop_class_uid, b"\0"),
            commands.COMMAND_FIELD: _US.pack(_FIELD[self.kind]),
            commands.MESSAGE_ID: _US.pack(self.message_id),
            commands.PRIORITY: _US.pack(0),
            commands.COMMAND_DATA_SET_TYPE: _US.pack(1),
        }
        if self.kind == "move":
            elements[MOVE_DESTINATION] = _even(self.move_destination, b" ")
        return encode_command(elements)


@dataclass(frozen=True, slots=True)
class QueryResponse:
    """C-FIND-RSP, C-GET-RSP or C-MOVE-RSP without its identifier.

    Attributes
    ----------
    counts
        Sub-operations; None where the response has none (always for C-FIND).
    """

    kind: Kind
    message_id: int
    status: int
    sop_class_uid: str = ""
    comment: str = ""
    counts: SubOperations | None = None
    has_identifier: bool = False

    @property
    def pending(self) -> bool:
        """Whether another response follows."""
        return self.status in (PENDING, PENDING_WITHOUT_KEYS)

    @classmethod
    def decode(cls, kind: Kind, elements: Mapping[int, bytes]) -> QueryResponse:
        """Return the response (ValueError without Message ID or Status)."""
        message_id = us(elements, commands.MESSAGE_ID_BEING_RESPONDED_TO)
        status = us(elements, commands.STATUS)
        if message_id is None or status is None:
            raise ValueError("a response without Message ID Being Responded To or Status")
        comment = elements.get(commands.ERROR_COMMENT, b"").decode("ascii", "replace").strip("\0 ")
        counted = [us(elements, each) for each in (_REMAINING, _COMPLETED, _FAILED, _WARNING)]
        counts = None
        if any(number is not None for number in counted):
            counts = SubOperations(*(number or 0 for number in counted))
        return cls(
            kind, message_id, status, uid(elements, commands.AFFECTED_SOP_CLASS_UID),
            "".join(c if c.isprintable() else "?" for c in comment[:_COMMENT_LENGTH]), counts,
            us(elements, commands.COMMAND_DATA_SET_TYPE) != commands.NO_DATA_SET,
        )  # fmt: skip

    def encode(self) -> bytes:
        """Return the command set; the comment is cut to 64 characters (VR LO)."""
        kind = 1 if self.has_identifier else commands.NO_DATA_SET
        elements = {
            commands.COMMAND_FIELD: _US.pack(_RESPONSE_FIELD[self.kind]),
            commands.MESSAGE_ID_BEING_RESPONDED_TO: _US.pack(self.message_id),
            commands.COMMAND_DATA_SET_TYPE: _US.pack(kind),
            commands.STATUS: _US.pack(self.status),
        }
        if self.sop_class_uid:
            elements[commands.AFFECTED_SOP_CLASS_UID] = _even(self.sop_class_uid, b"\0")
        if self.comment:
            elements[commands.ERROR_COMMENT] = _even(self.comment[:_COMMENT_LENGTH], b" ")
        if self.counts is not None:
            counts = self.counts
            # Remaining is not allowed in a final response, except a cancelled one (PS3.7 9.1.4.1).
            if self.pending or self.status == CANCELLED:
                elements[_REMAINING] = _US.pack(min(counts.remaining, _MOST))
            elements[_COMPLETED] = _US.pack(min(counts.completed, _MOST))
            elements[_FAILED] = _US.pack(min(counts.failed, _MOST))
            elements[_WARNING] = _US.pack(min(counts.warning, _MOST))
        return encode_command(elements)


def encode_cancel(message_id: int) -> bytes:
    """Return C-CANCEL-RQ for the request with this Message ID (PS3.7 9.3.2.3)."""
    return encode_command(
        {
            commands.COMMAND_FIELD: _US.pack(C_CANCEL_RQ),
            commands.MESSAGE_ID_BEING_RESPONDED_TO: _US.pack(message_id),
            commands.COMMAND_DATA_SET_TYPE: _US.pack(commands.NO_DATA_SET),
        }
    )


def encode_echo_response(message_id: int) -> bytes:
    """Return C-ECHO-RSP, success (PS3.7 9.3.5.2)."""
    return encode_command(
        {
            commands.AFFECTED_SOP_CLASS_UID: _even("1.2.840.10008.1.1", b"\0"),
            commands.COMMAND_FIELD: _US.pack(C_ECHO_RSP),
            commands.MESSAGE_ID_BEING_RESPONDED_TO: _US.pack(message_id),
            commands.COMMAND_DATA_SET_TYPE: _US.pack(commands.NO_DATA_SET),
            commands.STATUS: _US.pack(SUCCESS),
        }
    )


def encode_refusal(field: int, message_id: int) -> bytes:
    """Return an answer to a request of another service: 0x0211, unrecognized operation."""
    return encode_command(
        {
            commands.COMMAND_FIELD: _US.pack(field | 0x8000),
            commands.MESSAGE_ID_BEING_RESPONDED_TO: _US.pack(message_id),
            commands.COMMAND_DATA_SET_TYPE: _US.pack(commands.NO_DATA_SET),
            commands.STATUS: _US.pack(0x0211),
        }
    )


def _even(value: str, pad: bytes) -> bytes:
    encoded = value.encode("ascii", "replace")
    return encoded + pad if len(encoded) % 2 else encoded
