"""The upper layer protocol in the caller's thread.

pynetdicom gives every association two threads that poll each other each millisecond. The one that
serves requests can take a C-STORE response away from ``send_c_store``, which then waits until its
time-out and aborts. Here one thread owns the association: whoever needs the next message reads the
socket until it is there. There is nobody to race with, nothing to poll, and an idle association
costs no CPU. The state machine and the association PDUs are pynetdicom's own.

References
----------
DICOM PS3.8 9.2 (state machine), 9.3 (PDU structure).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pynetdicom.dul import DULServiceProvider

from dicom_node.dimse.transport import QuickSocket

if TYPE_CHECKING:
    from pynetdicom import pdu_primitives as primitives

    from dicom_node.dimse.association import BlockingAssociation

P_DATA_TF, A_RELEASE_RQ, A_ABORT = 0x04, 0x05, 0x07
_ASSOCIATION_PDUS = (0x01, 0x02)
_SHORT_PDUS = (0x03, 0x05, 0x06, 0x07)

# 128 contexts with a few transfer syntaxes each are 30 KiB; user identity adds at most 128 KiB.
ASSOCIATION_PDU_LIMIT = 256 * 1024
_SHORT_PDU_LIMIT = 64
# Some peers count their own PDU header against our maximum.
_P_DATA_TOLERANCE = 64


class BlockingDUL(DULServiceProvider):
    """An upper layer provider without a thread of its own."""

    def __init__(self, assoc: BlockingAssociation) -> None:
        super().__init__(assoc)
        self._blocking = assoc
        self._buffer = bytearray()
        self._deadline: float | None = None
        self.ended = ""
        """How the peer ended the association, in words; empty while it did not."""

    def start(self) -> None:
        """Begin with the transport connection's own event; no thread is started."""
        self.assoc._dul_ready.set()
        self.settle()

    def is_alive(self) -> bool:
        """Return whether the association can still move."""
        return not self._kill_thread

    def stop_dul(self) -> bool:
        """Close the transport connection; the association ends here."""
        self._kill_thread = True
        if self.socket is not None:
            self.transport.linger_close()
        return True

    @property
    def transport(self) -> QuickSocket:
        """The association's socket."""
        if not isinstance(self.socket, QuickSocket):
            raise TypeError("a BlockingDUL works on a QuickSocket")
        return self.socket

    def send_pdu(self, primitive: primitives._PDUPrimitiveType) -> None:
        """Send the PDU of `primitive` before returning."""
        super().send_pdu(primitive)
        self.settle()

    def receive_pdu(
        self, wait: bool = False, timeout: float | None = None
    ) -> (
        primitives.A_ASSOCIATE
        | primitives.A_RELEASE
        | primitives.A_ABORT
        | primitives.A_P_ABORT
        | None
    ):
        """Return the next association primitive, reading until it is there or `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while wait and self.to_user_queue.empty() and self.is_alive():
            left = None if deadline is None else deadline - time.monotonic()
            if not self.read(left, whole_pdu_by=deadline):
                break
        return super().receive_pdu(wait=False)

    def read(
        self,
        timeout_s: float | None,
        *,
        wake_fd: int | None = None,
        whole_pdu_by: float | None = None,
    ) -> bool:
        """Read one PDU and act on it; `False` if none began within `timeout_s`.

        `whole_pdu_by` (monotonic seconds) also bounds its end, against a peer that drips bytes.
        """
        if self.transport.socket is None:
            self.event_queue.put("Evt17")
        elif self.transport.wait_readable(timeout_s, wake_fd):
            self._deadline = whole_pdu_by
            self._read_pdu_data()
        else:
            return False
        self.settle()
        return True

    def settle(self) -> None:
        """Run the state machine until nothing is pending.

        Sta13 awaits the end of the connection: nothing is read there any more, we close.
        """
        while not self._kill_thread:
            if self.state_machine.current_state == "Sta13":
                self.stop_dul()
            elif not self.event_queue.empty():
                self.state_machine.do_action(self.event_queue.get(False))
            elif not self._process_recv_primitive():
                return

    def _read_pdu_data(self) -> None:
        """Read one PDU: an event for the state machine, or P-DATA straight to the message.

        The length is checked against what this kind of PDU may have before any memory is taken.
        """
        header = bytearray(6)
        try:
            self._fill(memoryview(header))
            kind, length = struct.unpack(">BxL", header)
            if length > self._limit(kind):
                self._invalid()
                return
            body = self._body(length)
        except OSError:
            # Evt17: transport connection closed (or silent for too long, which ends it)
            self.ended = "connection lost"
            self.event_queue.put("Evt17")
            return
        except BaseException:
            # Called off inside a PDU: where the next one begins is not known any more.
            self.transport.cut()
            self.event_queue.put("Evt17")
            self.settle()
            raise
        if kind == P_DATA_TF and self.state_machine.current_state in ("Sta6", "Sta7"):
            try:
                self._blocking.messages.receive_p_data(body)
            except ValueError:
                self._invalid()
            return
        try:
            pdu, event = self._decode_pdu(header + body)
        except Exception:  # noqa: BLE001 - any failure of the peer's bytes is the same event
            self._invalid()
            return
        self.ended = {A_ABORT: "aborted by the peer", A_RELEASE_RQ: "release asked for"}.get(
            kind, ""
        )
        self._recv_pdu.put(pdu)
        self.event_queue.put(event)

    def _invalid(self) -> None:
        # Evt19: unrecognised or invalid PDU received
        self.ended = "protocol error of the peer"
        self.event_queue.put("Evt19")

    def _limit(self, kind: int) -> int:
        if kind == P_DATA_TF:
            return self._blocking.maximum_pdu + _P_DATA_TOLERANCE
        if kind in _ASSOCIATION_PDUS:
            return ASSOCIATION_PDU_LIMIT
        return _SHORT_PDU_LIMIT if kind in _SHORT_PDUS else -1

    def _body(self, length: int) -> memoryview:
        if length > len(self._buffer):
            self._buffer = bytearray(length)
        view = memoryview(self._buffer)[:length]
        self._fill(view)
        return view

    def _fill(self, view: memoryview) -> None:
        transport = self.transport
        if self._deadline is None:
            transport.read_into(view)
            return
        sock = transport._connected()
        try:
            while len(view):
                left = self._deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError("the PDU did not arrive in time")
                sock.settimeout(left)
                count = sock.recv_into(view)
                if not count:
                    raise ConnectionError("the peer closed the connection")
                view = view[count:]
        finally:
            sock.settimeout(transport.silence_s)


def presentation_data_values(body: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Yield ``(context id, control header, fragment)`` of a P-DATA-TF PDU (PS3.8 9.3.5.1).

    Raises
    ------
    ValueError
        If an item's length does not fit the PDU.
    """
    position = 0
    while position < len(body):
        if position + 6 > len(body):
            raise ValueError("presentation data value cut short")
        length, context_id, control = struct.unpack_from(">LBB", body, position)
        end = position + 4 + length
        if length < 2 or end > len(body):
            raise ValueError("presentation data value longer than its PDU")
        yield context_id, control, body[position + 6 : end]
        position = end
