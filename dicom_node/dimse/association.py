"""Associations that one thread owns from the first PDU to the last."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.transport import AddressInformation, AssociationSocket

from dicom_node.dimse import part10
from dicom_node.dimse.messages import BlockingDIMSE, StoreHandler
from dicom_node.dimse.transport import QuickSocket
from dicom_node.dimse.upper_layer import BlockingDUL

if TYPE_CHECKING:
    from pynetdicom.ae import ApplicationEntity


class BlockingAssociation(Association):
    """A pynetdicom association on `BlockingDUL` and `BlockingDIMSE`."""

    store_handler: StoreHandler | None = None

    def __init__(self, ae: ApplicationEntity, mode: str) -> None:
        super().__init__(ae, mode)
        self.upper_layer = BlockingDUL(self)
        self.messages = BlockingDIMSE(self)
        self.dul = self.upper_layer
        self.dimse = self.messages
        # Their setters hand the values on to the upper layer's timers.
        self.acse_timeout = ae.acse_timeout
        self.network_timeout = ae.network_timeout
        # There is no reactor thread that could be in the way of send_*().
        self._is_paused = True

    @property
    def transport(self) -> QuickSocket:
        """The association's socket."""
        return self.upper_layer.transport

    @property
    def peer(self) -> str:
        """Address of the other side."""
        remote = self.requestor if self.is_acceptor else self.acceptor
        address = remote.address_info
        return address.address if isinstance(address, AddressInformation) else "unknown"

    @property
    def maximum_pdu(self) -> int:
        """Largest P-DATA-TF PDU we announced, bytes."""
        local = self.acceptor if self.is_acceptor else self.requestor
        return int(local.maximum_length or 0)

    def set_socket(self, socket: AssociationSocket) -> None:
        """Use `socket`, which must be a `QuickSocket`."""
        if not isinstance(socket, QuickSocket):
            raise TypeError("a BlockingAssociation works on a QuickSocket")
        super().set_socket(socket)

    def kill(self) -> None:
        """Close the transport connection; nothing is left running."""
        self._kill = True
        self.is_established = False
        self.upper_layer.stop_dul()

    def cut(self) -> None:
        """End the connection from another thread; the one that works on it cleans up."""
        self.transport.cut()

    def _abort_blocking(self, block: bool = True) -> None:
        """Send an A-ABORT if the protocol still allows one, and close."""
        if self._sent_abort or self.is_released:
            return
        self._sent_abort = True
        if self.upper_layer.state_machine.current_state not in ("Sta1", "Sta2", "Sta13"):
            self.acse.send_abort(0x00)
        self.is_aborted = True
        self.is_established = False
        evt.trigger(self, evt.EVT_ABORTED, {})
        if block:
            self.kill()


def application_entity(ae_title: str, max_pdu: int, silence_s: float) -> AE:
    """Return pynetdicom's AE with our implementation identity and time-outs (seconds)."""
    ae = AE(ae_title)
    ae.implementation_class_uid = part10.IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = part10.IMPLEMENTATION_VERSION_NAME
    ae.maximum_pdu_size = max_pdu
    ae.network_timeout = ae.dimse_timeout = silence_s
    return ae
