"""DIMSE messages of query and retrieve, decoded by nobody but who asked for them.

Identifiers travel as bytes: pydicom never sees what a peer sent unless a handler decodes it, and
none of it can reach a log.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pynetdicom.dimse_messages import DIMSEMessage

from dicom_node.dimse import commands, query_commands
from dicom_node.dimse.commands import StoreResponse
from dicom_node.dimse.messages import BlockingDIMSE, _pdu_header
from dicom_node.dimse.transport import Buffer

if TYPE_CHECKING:
    from dicom_node.dimse.association import BlockingAssociation

_LAST = 0x02
_IN_LINE = 8  # requests or responses a peer may send before the first of them was looked at
_CANCELS = 64
# 10,000 UIDs are 650 kB. A client may have nine in memory, before anybody has looked at them.
_IDENTIFIER_LIMIT = 1024 * 1024
_SMALLEST_PDU, _LARGEST_PDU = 128, 131072


@dataclass(frozen=True, slots=True)
class Message:
    """One message other than C-STORE: its command set by element number, and its data set."""

    context_id: int
    field: int
    elements: dict[int, bytes]
    data_set: bytes | None


class QueryMessages(BlockingDIMSE):
    """Collects messages in `inbox`; C-STORE streams as it does for a Storage SCP."""

    def __init__(self, assoc: BlockingAssociation) -> None:
        super().__init__(assoc)
        self.inbox: deque[Message] = deque()
        self.cancelled: deque[int] = deque(maxlen=_CANCELS)
        """Message IDs of requests that the peer has called off."""
        self.abandoned: set[int] = set()
        """Message IDs of our C-STORE requests whose answer may come and is not waited for."""
        if assoc.is_acceptor:
            self.data_set_limit = _IDENTIFIER_LIMIT
        self._half: tuple[int, int, dict[int, bytes]] | None = None
        self._data = bytearray()

    @property
    def pending(self) -> bool:
        """Whether a message waits to be served."""
        return self.store is not None or bool(self.inbox)

    def _begin(self, context_id: int, command: bytes) -> None:
        elements = commands.decode_command(command)
        field = commands.us(elements, commands.COMMAND_FIELD)
        if field is None or self.message is not None:
            raise ValueError("a command set without a field, or before the last data set ended")
        if context_id not in self._blocking._accepted_cx:
            raise ValueError("a presentation context that was not accepted")
        if field == query_commands.C_CANCEL_RQ:
            message_id = commands.us(elements, commands.MESSAGE_ID_BEING_RESPONDED_TO)
            self.cancelled.append(-1 if message_id is None else message_id)
        elif field == commands.C_STORE_RSP:
            answer = StoreResponse.decode(elements)
            if answer.message_id in self.abandoned:
                self.abandoned.remove(answer.message_id)
            elif self.answers:
                raise ValueError("an answer nobody waits for")
            else:
                self.answers.append(answer)
        elif field == commands.C_STORE_RQ and self._blocking.store_handler is not None:
            self._begin_store(context_id, elements)
        elif len(self.inbox) >= _IN_LINE and not self._blocking.is_requestor:
            raise ValueError("too many requests at once")
        elif commands.us(elements, commands.COMMAND_DATA_SET_TYPE) == commands.NO_DATA_SET:
            self.inbox.append(Message(context_id, field, elements, None))
        else:
            # `message` tells the base class that a data set may follow.
            self.message, self._other_size = DIMSEMessage(), 0
            self._half, self._data = (context_id, field, elements), bytearray()

    def _pass_on(self, context_id: int, control: int, fragment: bytes) -> None:
        if self._half is None or context_id != self._half[0]:
            raise ValueError("a data set in another presentation context")
        self._data += fragment
        if control & _LAST:
            self.inbox.append(Message(*self._half, bytes(self._data)))
            self.message, self._half, self._data = None, None, bytearray()

    def send(self, context_id: int, command: bytes, data_set: bytes | None = None) -> None:
        """Send one message (OSError if the peer is gone or takes nothing)."""
        parts: list[Buffer] = [_pdu_header(context_id, 0x03, len(command)), command]
        if data_set is not None:
            largest = min(max(self.maximum_pdu_size or _LARGEST_PDU, _SMALLEST_PDU), _LARGEST_PDU)
            fragment = largest - 6 & ~1  # even, PS3.8 E.2
            for start in range(0, max(len(data_set), 1), fragment):
                piece = data_set[start : start + fragment]
                last = start + fragment >= len(data_set)
                parts += (_pdu_header(context_id, _LAST if last else 0, len(piece)), piece)
        self._blocking.transport.write_all(parts)

    def read(self, timeout_s: float, *, wake: Callable[[], bool] = lambda: False) -> bool:
        """Read until a message is there or the association is over; False after `timeout_s`.

        `wake` is asked after each PDU: True returns at once.
        """
        dul = self._blocking.upper_layer
        while not self.pending and not self.over:
            if not dul.read(timeout_s):
                return False
            if wake():
                return True
        return True

    @property
    def over(self) -> bool:
        """Whether the peer has released or aborted the association, or is gone."""
        assoc = self._blocking
        return (
            not assoc.upper_layer.is_alive()
            or not assoc.upper_layer.to_user_queue.empty()
        )  # fmt: skip
