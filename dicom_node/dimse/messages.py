"""DIMSE messages from and to P-DATA; a C-STORE data set is handed on as it arrives.

Only one fragment of an instance is in memory at a time, and nothing is written to a temporary file
of pynetdicom's: the receiver's own file is the first and only copy.

References
----------
DICOM PS3.7 6.3, 9.3.1 and PS3.8 Annex E.
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO, Protocol

from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.pdu_primitives import P_DATA

from dicom_node.dimse import commands
from dicom_node.dimse.commands import StoreRequest, StoreResponse
from dicom_node.dimse.transport import Buffer
from dicom_node.dimse.upper_layer import presentation_data_values
from dicom_node.errors import NodeError, PixelError

if TYPE_CHECKING:
    from dicom_node.dimse.association import BlockingAssociation

_LAST, _COMMAND = 0x02, 0x01
_COMMAND_LIMIT = 64 * 1024
_DATA_SET_LIMIT = 16 * 1024 * 1024
_READ_AHEAD = 512 * 1024
# A peer may announce no maximum, one too small to carry anything, or one larger than memory.
_SMALLEST_PDU, _LARGEST_PDU = 128, 131072


@dataclass(frozen=True, slots=True)
class Incoming:
    """One C-STORE request as its handler sees it: who sends what, in which encoding.

    Attributes
    ----------
    cut
        Ends the association under the handler, whose data set then raises `InstanceCut`.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae: str
    called_ae: str
    peer: str
    cut: Callable[[], None] = field(default=lambda: None, compare=False, repr=False)


class InstanceCut(NodeError):
    """The association ended inside a data set; nobody is left to be answered."""


class StoreHandler(Protocol):
    """Makes one instance durable.

    It is called when the command set has arrived; the fragments follow while it iterates.
    Each fragment is valid until the next one. The iterator raises `InstanceCut`.

    Returns the status for the C-STORE response; a `NodeError` is answered with its own.
    """

    def __call__(self, incoming: Incoming, data_set: Iterator[memoryview], /) -> int:
        """Take the data set; return the status to answer."""


class ReceivedStore:
    """A C-STORE request whose data set is still coming in."""

    def __init__(self, context_id: int, request: StoreRequest, incoming: Incoming) -> None:
        self.context_id = context_id
        self.request = request
        self.incoming = incoming
        self.fragments: deque[memoryview] = deque()
        self.complete = False
        self.has_data_set = True
        self.size = 0

    def response(self, status: int, comment: str = "") -> StoreResponse:
        """Return the answer to this request."""
        request = self.request
        return StoreResponse(
            request.message_id, status, comment, request.sop_class_uid, request.sop_instance_uid
        )


class BlockingDIMSE(DIMSEServiceProvider):
    """A DIMSE provider that streams C-STORE and leaves every other message to pynetdicom."""

    data_set_limit = _DATA_SET_LIMIT
    """Longest data set of a message other than C-STORE, bytes."""

    def __init__(self, assoc: BlockingAssociation) -> None:
        super().__init__(assoc)
        self._blocking = assoc
        self._command = bytearray()
        self._other_size = 0
        self.store: ReceivedStore | None = None
        self.answers: list[StoreResponse] = []

    # Receiving

    def receive_p_data(self, body: memoryview) -> None:
        """Take one P-DATA-TF PDU; `body` may be reused when the next one is read.

        Raises
        ------
        ValueError
            If it does not continue a message that PS3.7 allows here: the association is aborted.
        """
        for context_id, control, fragment in presentation_data_values(body):
            if control & _COMMAND:
                if self.store is not None:
                    raise ValueError("a second command set before the first was answered")
                self._command += fragment
                if len(self._command) > _COMMAND_LIMIT:
                    raise ValueError("command set too long")
                if control & _LAST:
                    command, self._command = bytes(self._command), bytearray()
                    self._begin(context_id, command)
            elif self.store is not None:
                if context_id != self.store.context_id or self.store.complete:
                    raise ValueError("a data set in another presentation context")
                self.store.fragments.append(fragment)
                self.store.complete = bool(control & _LAST)
            else:
                self._other_size += len(fragment)
                if self.message is None or self._other_size > self.data_set_limit:
                    raise ValueError("a data set without its command, or too long")
                self._pass_on(context_id, control, bytes(fragment))

    def _begin(self, context_id: int, command: bytes) -> None:
        elements = commands.decode_command(command)
        field = commands.us(elements, commands.COMMAND_FIELD)
        if self._blocking.is_requestor:
            if field != commands.C_STORE_RSP:
                raise ValueError("the peer answered with another message than C-STORE-RSP")
            self.answers.append(StoreResponse.decode(elements))
        elif field == commands.C_STORE_RQ and self._blocking.store_handler is not None:
            self._begin_store(context_id, elements)
        else:
            self._other_size = 0
            self._pass_on(context_id, _COMMAND | _LAST, command)

    def _begin_store(self, context_id: int, elements: dict[int, bytes]) -> None:
        assoc = self._blocking
        context = assoc._accepted_cx.get(context_id)
        if context is None:
            raise ValueError("a presentation context that was not accepted")
        request = StoreRequest.decode(elements)
        incoming = Incoming(
            request.sop_class_uid or str(context.abstract_syntax),
            request.sop_instance_uid,
            str(context.transfer_syntax[0]),
            assoc.requestor.ae_title.strip(),
            assoc.acceptor.ae_title.strip(),
            assoc.peer,
            assoc.cut,
        )
        self.store = ReceivedStore(context_id, request, incoming)
        kind = commands.us(elements, commands.COMMAND_DATA_SET_TYPE)
        self.store.has_data_set = kind != commands.NO_DATA_SET
        self.store.complete = not self.store.has_data_set

    def _pass_on(self, context_id: int, control: int, fragment: bytes) -> None:
        primitive = P_DATA()
        primitive.presentation_data_value_list.append((context_id, bytes([control]) + fragment))
        try:
            self.receive_primitive(primitive)
        except Exception as error:
            raise ValueError("pynetdicom cannot decode the message") from error

    @property
    def pending(self) -> bool:
        """Whether a request waits to be served."""
        return self.store is not None or not self.msg_queue.empty()

    def serve_store(self, store: ReceivedStore, handler: StoreHandler) -> StoreResponse:
        """Let the handler take the data set and return what the sender is answered.

        Raises
        ------
        InstanceCut
            If the association ended first.
        """
        data_set = self._data_set(store)
        try:
            if not store.has_data_set:
                raise PixelError("C-STORE without a data set")
            if not store.request.sop_instance_uid:
                raise PixelError("no usable Affected SOP Instance UID")
            response = store.response(handler(store.incoming, data_set))
        except InstanceCut:
            raise
        except NodeError as error:
            response = store.response(error.status, str(error))
        # What the handler left unread still has to leave the connection before the answer.
        for _ in data_set:
            continue
        self.store = None
        return response

    def _data_set(self, store: ReceivedStore) -> Iterator[memoryview]:
        assoc = self._blocking
        while True:
            while store.fragments:
                fragment = store.fragments.popleft()
                store.size += len(fragment)
                yield fragment
            if store.complete:
                return
            if not assoc.upper_layer.read(assoc.network_timeout):
                raise InstanceCut("the peer fell silent inside a data set")
            if assoc.acse.is_aborted() or not assoc.upper_layer.is_alive():
                raise InstanceCut("the association ended inside a data set")
            if assoc.upper_layer.peek_next_pdu() is not None:
                raise InstanceCut("the peer asked for release inside a data set")

    # Sending

    def send_command(self, context_id: int, command: bytes) -> None:
        """Send a command set without data set (OSError if the peer is gone)."""
        self._blocking.transport.write_all([_pdu_header(context_id, 0x03, len(command)), command])

    def send_store(
        self,
        context_id: int,
        request: StoreRequest,
        file: BinaryIO,
        size: int,
        on_progress: Callable[[], None],
    ) -> None:
        """Send a C-STORE request and the next `size` bytes of `file` as its data set.

        `on_progress` is called after each half mebibyte or so.

        Raises
        ------
        OSError
            If the file is shorter, or the peer is gone or takes nothing.
        """
        command = request.encode()
        pending: list[Buffer] = [_pdu_header(context_id, 0x03, len(command)), command]
        largest = min(max(self.maximum_pdu_size or _LARGEST_PDU, _SMALLEST_PDU), _LARGEST_PDU)
        fragment = largest - 6 & ~1  # even, PS3.8 E.2
        header_of_most = _pdu_header(context_id, 0, fragment)
        buffer = bytearray(min(size, _READ_AHEAD // fragment * fragment))
        view = memoryview(buffer)
        left = size
        while True:
            chunk = view[: min(left, len(view))]
            if file.readinto(chunk) != len(chunk):  # type: ignore[attr-defined]
                raise OSError("the file is shorter than when it was opened")
            left -= len(chunk)
            for start in range(0, len(chunk) - fragment, fragment):
                pending += (header_of_most, chunk[start : start + fragment])
            rest = chunk[max(len(chunk) - 1, 0) // fragment * fragment :]
            pending += (_pdu_header(context_id, 0 if left else _LAST, len(rest)), rest)
            self._blocking.transport.write_all(pending)
            pending = []
            if not left:
                return
            on_progress()

    def await_answer(self, timeout_s: float) -> StoreResponse | None:
        """Return the C-STORE response; ``None`` if it did not come (see `acse.is_aborted`)."""
        deadline = time.monotonic() + timeout_s
        dul = self._blocking.upper_layer
        while not self.answers and dul.is_alive() and dul.to_user_queue.empty():
            if not dul.read(deadline - time.monotonic()):
                break
        return self.answers.pop(0) if self.answers else None


def _pdu_header(context_id: int, control: int, length: int) -> bytes:
    """Return the 12 bytes before a fragment that fills one P-DATA-TF PDU."""
    return struct.pack(">BxLLBB", 0x04, length + 6, length + 2, context_id, control)
