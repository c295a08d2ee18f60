"""The listener and its associations: a Storage and Verification SCP that peers cannot block.

Connections without an association are bounded in number and time and never hold up the accept
loop; the association limit counts associations only, so that port scanners cannot exhaust it.
"""

from __future__ import annotations

import os
import resource
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, ClassVar

import structlog
from pynetdicom import evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.transport import AddressInformation, AssociationServer

from dicom_node.dimse import settings
from dicom_node.dimse.association import BlockingAssociation, application_entity
from dicom_node.dimse.commands import StoreResponse
from dicom_node.dimse.contexts import verification_contexts
from dicom_node.dimse.messages import InstanceCut, ReceivedStore, StoreHandler
from dicom_node.dimse.stopping import StopEvent
from dicom_node.dimse.transport import QuickSocket
from dicom_node.errors import ConfigError

log = structlog.get_logger(__name__)

BACKLOG = 128
MAX_UNASSOCIATED = 128
ARTIM_S = 10.0
"""Seconds a connection may take to its whole A-ASSOCIATE-RQ (PS3.8 9.1.5)."""
_DRAIN_IDLE_S = 1.0
_ACCEPT_POLL_S = 0.2

Refusal = tuple[int, int, int]
"""Result, source and reason of an A-ASSOCIATE-RJ (PS3.8 Table 9-21)."""
Admits = Callable[[str, str], Refusal | None]
TEMPORARY_CONGESTION: Refusal = (2, 3, 1)
LOCAL_LIMIT_EXCEEDED: Refusal = (2, 3, 2)
CALLING_AE_NOT_RECOGNIZED: Refusal = (1, 1, 3)


class AcceptorAssociation(BlockingAssociation):
    """One connection to the listener, in one thread."""

    _server: StorageSCP

    def run_reactor(self) -> None:
        """Serve the association to its end, and say how it ended."""
        self.served = self.refused = self.received_bytes = 0
        self._outcome = "no association"
        try:
            self._serve()
        except InstanceCut as error:
            self._outcome = str(error)
            self.abort()
        except OSError as error:
            self._outcome = f"connection lost: {error.strerror or error}"
        except Exception as error:  # noqa: BLE001 - one association's fault ends that one only
            place = traceback.extract_tb(error.__traceback__)[-1]
            self._outcome = f"failed: {type(error).__name__} in {place.name}, line {place.lineno}"
            # The place and not the text, which may name a patient.
            log.error("association failed", peer=self.peer, outcome=self._outcome)  # noqa: TRY400
            self.abort()
        finally:
            self.kill()
            self._server.forget(self)
            log.info(
                "association ended", peer=self.peer, calling_ae=self.requestor.ae_title.strip(),
                outcome=self._outcome, stored=self.served, refused=self.refused,
                mib=round(self.received_bytes / 2**20, 1),
            )  # fmt: skip

    def _serve(self) -> None:
        if self._server.ssl_context is not None:
            self._handshake(self._server.ssl_context)
        self.upper_layer.start()
        request: object = self.dul.receive_pdu(wait=True, timeout=self.acse_timeout)
        if not isinstance(request, A_ASSOCIATE):
            return
        self.requestor.primitive = request
        self.requestor.ae_title = request.calling_ae_title
        refusal = self._server.admit(self)
        if refusal is not None:
            self.acse.send_reject(*refusal)
            self._outcome = "rejected, reason {}/{}/{}".format(*refusal)
            return
        self.transport.attach(self.network_timeout)
        self.acse.negotiate_association()
        self._outcome = "rejected"
        while self.is_established and self._next_message():
            self._answer()

    def _handshake(self, context: ssl.SSLContext) -> None:
        # In this thread: a peer that never finishes its handshake delays nobody else.
        plain = self.transport._connected()
        plain.settimeout(self.acse_timeout)
        self.transport.socket = context.wrap_socket(plain, server_side=True)

    def _next_message(self) -> bool:
        """Read until a message is whole; `False` when the association is over."""
        while not self.messages.pending:
            if self.acse.is_release_requested():
                self.acse.send_release(is_response=True)
                self.is_released, self.is_established = True, False
                evt.trigger(self, evt.EVT_RELEASED, {})
                self._outcome = "released"
                return False
            if self.acse.is_aborted() or not self.dul.is_alive():
                self.is_aborted, self.is_established = True, False
                evt.trigger(self, evt.EVT_ABORTED, {})
                self._outcome = self.upper_layer.ended or "aborted"
                return False
            draining = self._server.draining
            patience = _DRAIN_IDLE_S if draining else self.network_timeout
            wake_fd = None if draining else self._server.wake_fd
            if not self.upper_layer.read(patience, wake_fd=wake_fd):
                if self._server.draining and not draining:
                    continue
                self._outcome = "aborted: shutting down" if draining else "aborted: peer was silent"
                self.abort()
                return False
        return True

    def _answer(self) -> None:
        store = self.messages.store
        if store is not None and self.store_handler is not None:
            response = self.messages.serve_store(store, self.store_handler)
            self._count(store, response)
            self.messages.send_command(store.context_id, response.encode())
            return
        context_id, message = self.dimse.get_msg()
        if message is not None and context_id is not None:
            self._serve_request(message, context_id)
            self._is_paused = True

    def _count(self, store: ReceivedStore, response: StoreResponse) -> None:
        if response.status == 0x0000:
            self.served += 1
            self.received_bytes += store.size
            return
        self.refused += 1
        log.warning(
            "C-STORE refused", peer=self.peer, calling_ae=self.requestor.ae_title.strip(),
            status=f"0x{response.status:04X}", reason=response.comment,
        )  # fmt: skip


class StorageSCP(AssociationServer):
    """A listener for any number of associations, each in its own thread.

    Parameters
    ----------
    address
        ``(host, port)``; port 0 takes a free one (see `port`).
    ae_title
        AE title peers should call; other titles are accepted too unless `require_called_ae`.
    store_handler
        Opens the sink for each C-STORE request.
    refuse
        Asked for each new association; a `Refusal` rejects it for now.
    admits
        Given the calling AE title and address of each association; a `Refusal` rejects it.
    reuse_port
        Let several processes listen on one port (SO_REUSEPORT).
    """

    association_class: ClassVar[type[AcceptorAssociation]] = AcceptorAssociation

    def __init__(
        self,
        address: tuple[str, int],
        ae_title: str,
        store_handler: StoreHandler | None,
        *,
        max_associations: int = 64,
        max_pdu: int = 131072,
        silence_s: float = 30.0,
        refuse: Callable[[], Refusal | None] = lambda: None,
        admits: Admits = lambda calling_ae, address: None,
        reuse_port: bool = False,
        ssl_context: ssl.SSLContext | None = None,
        artim_s: float = ARTIM_S,
        require_called_ae: bool = False,
    ) -> None:
        settings.apply()
        _raise_descriptor_limit(max_associations + MAX_UNASSOCIATED)
        ae = application_entity(ae_title, max_pdu, silence_s)
        ae.acse_timeout = artim_s
        # Our own count, of associations only: pynetdicom's includes half-open connections.
        ae.maximum_associations = 1 << 20
        ae.require_called_aet = require_called_ae
        self._reuse_port = reuse_port
        self._store_handler = store_handler
        self._refuse = refuse
        self._admits = admits
        self._max_associations = max_associations
        self._lock = threading.Lock()
        self._open: dict[AcceptorAssociation, float] = {}
        self._associated: set[AcceptorAssociation] = set()
        self.draining = False
        self.wake_fd, self._wake_write = os.pipe()
        self.request_queue_size = BACKLOG
        try:
            super().__init__(ae, address, ae_title, verification_contexts(), ssl_context)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {address[0]} port {address[1]}: {error.strerror}; "
                "choose another [node] port or stop what uses it"
            ) from error
        ae._servers.append(self)  # type: ignore[arg-type]

    @property
    def port(self) -> int:
        """TCP port in use."""
        return int(self.server_address[1])

    @property
    def associations(self) -> int:
        """Associations open now."""
        return len(self._associated)

    def server_bind(self) -> None:
        """Bind, beside other processes if asked to."""
        if self._reuse_port:
            self._listening().setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()

    def _listening(self) -> socket.socket:
        if self.socket is None:
            raise ConnectionError("the listener is closed")
        return self.socket

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; a TLS handshake is left to its own thread."""
        return self._listening().accept()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection its thread, and drop the oldest stranger if there are too many."""
        assoc = self.association_class(self.ae, MODE_ACCEPTOR)
        assoc._server = self
        assoc.store_handler = self._store_handler
        assoc.name = f"association {client_address[0]}:{client_address[1]}"
        transport = QuickSocket(assoc, client_socket=request)
        transport.attach(self.ae.acse_timeout)
        assoc.set_socket(transport)
        acceptor = assoc.acceptor
        acceptor.maximum_length = self.ae.maximum_pdu_size
        acceptor.ae_title = self.ae_title
        acceptor.address_info = AddressInformation.from_tuple(self.server_address)
        acceptor.implementation_class_uid = self.ae.implementation_class_uid
        acceptor.implementation_version_name = self.ae.implementation_version_name
        acceptor.supported_contexts = self.contexts
        assoc.requestor.address_info = AddressInformation.from_tuple(client_address)
        for event, handler in self._handlers.items():
            if event.is_intervention and handler:
                assoc.bind(event, *handler)
        with self._lock:
            self._open[assoc] = time.monotonic()
            strangers = [a for a in self._open if a not in self._associated]
        if len(strangers) > MAX_UNASSOCIATED:
            strangers[0].cut()
        try:
            assoc.start()
        except RuntimeError:
            self.forget(assoc)  # the system has no thread left
            raise

    def admit(self, assoc: AcceptorAssociation) -> Refusal | None:
        """Count the association in, or return why it is rejected."""
        stranger = self._admits(assoc.requestor.ae_title.strip(), assoc.peer)
        if stranger is not None:
            return stranger
        if self.draining:
            return TEMPORARY_CONGESTION
        refusal = self._refuse()
        if refusal is not None:
            return refusal
        with self._lock:
            if len(self._associated) >= self._max_associations:
                return LOCAL_LIMIT_EXCEEDED
            self._associated.add(assoc)
        return None

    def forget(self, assoc: AcceptorAssociation) -> None:
        """Count the connection out, however it ended."""
        with self._lock:
            self._open.pop(assoc, None)
            self._associated.discard(assoc)

    def serve(self, stop: StopEvent) -> None:
        """Accept connections until `stop` is set; returns within a fraction of a second of it."""
        self._listening().settimeout(_ACCEPT_POLL_S)
        while not stop.is_set():
            try:
                request, address = self.get_request()
            except TimeoutError:
                continue
            except OSError as error:
                # Out of descriptors or a connection reset before we took it: the next may work.
                log.warning("accept failed", error=error.strerror)
                time.sleep(_ACCEPT_POLL_S)
                continue
            try:
                self.process_request(request, address)
            except (OSError, RuntimeError) as error:
                log.warning("connection not served", peer=address[0], error=str(error))
                request.close()

    def drain(self, timeout_s: float) -> bool:
        """Stop listening, let associations end, cut those that do not; `True` if none was cut."""
        self.draining = True
        self.server_close()
        os.write(self._wake_write, b"!")
        deadline = time.monotonic() + timeout_s
        with self._lock:
            strangers = [a for a in self._open if a not in self._associated]
        for assoc in strangers:
            assoc.cut()
        while self._open and time.monotonic() < deadline:
            time.sleep(0.01)
        with self._lock:
            left = list(self._open)
        for assoc in left:
            assoc.cut()
        for assoc in left:
            assoc.join(1.0)
        os.close(self.wake_fd)
        os.close(self._wake_write)
        return not left


def _raise_descriptor_limit(connections: int) -> None:
    """Allow for every connection, its spool file and what the process has open besides."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + 256
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
