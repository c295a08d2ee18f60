"""Ask a PACS: C-FIND, C-MOVE and C-GET, one association per thread, every wait in small steps.

While an answer is awaited the caller's `Watch` is asked again and again: it may raise, to call the
request off, and it says whether something came in otherwise, which counts as a sign of life.

References
----------
DICOM PS3.4 Annex C; PS3.7 9.1.2 to 9.1.4; PS3.7 D.3.3.4 (role selection).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from pynetdicom._globals import MODE_REQUESTOR
from pynetdicom.ae import ApplicationEntity
from pynetdicom.pdu_primitives import A_ASSOCIATE, SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import build_context
from pynetdicom.transport import AddressInformation

from dicom_node.dimse import query_commands, settings
from dicom_node.dimse.association import BlockingAssociation, application_entity
from dicom_node.dimse.messages import InstanceCut, StoreHandler
from dicom_node.dimse.query_commands import Kind, QueryRequest, QueryResponse, encode_cancel
from dicom_node.dimse.query_messages import Message, QueryMessages
from dicom_node.dimse.transport import QuickSocket
from dicom_node.errors import AssociationRejected, ContextRefused, ForwardError

_CONNECT_S = 10.0
_ACSE_S = 30.0
_MAX_PDU = 131072
_STEP_S = 0.1
# Beside what closing takes: our client's own C-CANCEL is honoured within a second.
_CANCEL_S = 0.3
_RELEASE_S = 2.0

Watch = Callable[[], bool]
"""Asked some ten times a second while an answer is awaited: True if there is life elsewhere."""


class PacsLost(ForwardError):
    """The association with the PACS ended, or it fell silent, before its last answer."""

    status = 0xC001

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} ended the query: {reason}")


@dataclass(frozen=True, slots=True)
class Answer:
    """One response and its identifier, encoded as the request's was."""

    response: QueryResponse
    identifier: bytes | None


class _Requestor(BlockingAssociation):
    """An association that may be Storage SCP for its own C-GET."""

    def __init__(self, ae: ApplicationEntity, mode: str) -> None:
        super().__init__(ae, mode)
        self.queries = QueryMessages(self)
        self.messages = self.dimse = self.queries


class QueryAssociation:
    """An association with a query/retrieve SCP, used for one request after another."""

    def __init__(self, name: str, assoc: _Requestor, timeout_s: float) -> None:
        self._name = name
        self._assoc = assoc
        self._timeout_s = timeout_s
        self._message_id = 0
        self._contexts = {
            (str(each.abstract_syntax), str(each.transfer_syntax[0])): each.context_id or 0
            for each in reversed(assoc.accepted_contexts)
        }

    @classmethod
    def open(
        cls,
        name: str,
        address: tuple[str, int],
        *,
        called_ae: str,
        calling_ae: str,
        sop_classes: Sequence[str],
        storage: Sequence[tuple[str, str]] = (),
        store_handler: StoreHandler | None = None,
        timeout_s: float = 60.0,
        watch: Watch = lambda: False,
    ) -> QueryAssociation:
        """Associate with a PACS.

        Parameters
        ----------
        sop_classes
            Of query and retrieve.
        storage
            ``(SOP class, transfer syntax)`` of what C-GET may bring; one context each, in which we
            are the Storage SCP.
        store_handler
            Takes what C-GET brings.
        watch
            Asked while the PACS does not answer; may raise.

        Raises
        ------
        AssociationRejected
            If the PACS cannot be reached or rejects the association.
        ContextRefused
            If it supports none of `sop_classes`.
        """
        settings.apply()
        ae = application_entity(calling_ae, _MAX_PDU, timeout_s)
        ae.acse_timeout = min(_ACSE_S, timeout_s)
        ae.connection_timeout = min(_CONNECT_S, timeout_s)
        assoc = _Requestor(ae, MODE_REQUESTOR)
        assoc.store_handler = store_handler
        try:
            _prepare(assoc, address, called_ae, sop_classes, storage)
            assoc.transport.watch = watch
            assoc.request()
        except OSError as error:
            assoc.kill()
            raise AssociationRejected(name, f"{address[0]}: {error.strerror or error}") from error
        except BaseException:
            assoc.kill()  # called off
            raise
        assoc.transport.watch = None  # `_next` asks by itself
        assoc.acse_timeout = _RELEASE_S
        if not assoc.is_established:
            reason = _why_not(assoc, address)
            assoc.kill()
            if not reason:
                raise ContextRefused(name, sop_classes[0], "any")
            raise AssociationRejected(name, reason)
        opened = cls(name, assoc, timeout_s)
        if not any(opened.supports(each) for each in sop_classes):
            opened.release()
            raise ContextRefused(name, sop_classes[0], "any")
        return opened

    def supports(self, sop_class_uid: str) -> bool:
        """Whether the PACS accepted this SOP class."""
        return any((sop_class_uid, syntax) in self._contexts for syntax in query_commands.SYNTAXES)

    def syntax(self, sop_class_uid: str, preferred: str = "") -> str:
        """Return how an identifier for a supported class is to be encoded; `preferred` if it may.

        Raises
        ------
        ContextRefused
            If the PACS does not support the class.
        """
        for syntax in (preferred, *query_commands.SYNTAXES):
            if (sop_class_uid, syntax) in self._contexts:
                return syntax
        raise ContextRefused(self._name, sop_class_uid, "any")

    def request(
        self,
        kind: Kind,
        sop_class_uid: str,
        identifier: bytes,
        syntax: str,
        *,
        move_destination: str = "",
        watch: Watch = lambda: False,
    ) -> Generator[Answer, None, None]:
        """Send one request and yield its answers, the last one included.

        `identifier` is encoded in `syntax`, which `self.syntax` gave, and so are the answers'.
        `watch` is asked inside messages, too. Left early, the iterator calls the request off
        (C-CANCEL). Where that ends it at once the
        association can be used again; else it is aborted, which every peer understands.

        Raises
        ------
        PacsLost
            If the last answer does not come: the association is gone.
        """
        context_id = self._contexts[sop_class_uid, syntax]
        self._message_id = self._message_id % 0xFFFF + 1
        request = QueryRequest(kind, self._message_id, sop_class_uid, move_destination)
        self._assoc.transport.watch_inside = watch
        self._send(context_id, request.encode(), identifier)
        finished = False
        try:
            while not finished:
                answer = self._next(kind, watch)
                finished = not answer.response.pending
                yield answer
        finally:
            if not finished and self._assoc.is_established:
                self._call_off(kind, context_id)

    def _next(self, kind: Kind, watch: Watch) -> Answer:
        silent_since = time.monotonic()
        queries = self._assoc.queries
        while True:
            while queries.store is None and queries.inbox:
                answer = self._answer_in(queries.inbox.popleft(), kind)
                if answer is not None:
                    return answer
            if queries.store is not None:
                self._serve_store()
                silent_since = time.monotonic()
            if queries.over:
                raise self._lost(self._assoc.upper_layer.ended or "it closed the association")
            if watch():
                silent_since = time.monotonic()
            if time.monotonic() - silent_since > self._timeout_s:
                raise self._lost(f"silent for {self._timeout_s:g} s")
            if not queries.pending:
                queries.read(_STEP_S)

    def _answer_in(self, message: Message, kind: Kind) -> Answer | None:
        if query_commands.RESPONSES.get(message.field) != kind:
            raise self._lost("it answered with another message")
        try:
            response = QueryResponse.decode(kind, message.elements)
        except ValueError as error:
            raise self._lost(str(error)) from error
        if response.message_id != self._message_id:
            return None  # of a request that was called off
        return Answer(response, message.data_set)

    def _serve_store(self) -> None:
        """Take one instance that C-GET brings and answer for it."""
        assoc, queries = self._assoc, self._assoc.queries
        store = queries.store
        if store is None or assoc.store_handler is None:
            raise self._lost("it sent an instance nobody asked for")
        try:
            response = queries.serve_store(store, assoc.store_handler)
            queries.send_command(store.context_id, response.encode())
        except InstanceCut as error:
            raise self._lost(str(error)) from error
        except OSError as error:
            raise self._lost(f"connection lost: {error.strerror or error}") from error
        except BaseException:
            # The handler called it off inside a message: the association is of no more use.
            self.abort()
            raise

    def _call_off(self, kind: Kind, context_id: int) -> None:
        """Send C-CANCEL and read to the end of the request; abort if that takes too long."""
        deadline = time.monotonic() + _CANCEL_S

        def patience() -> bool:
            if time.monotonic() > deadline:
                raise self._lost("it goes on after C-CANCEL")
            return False

        self._assoc.transport.watch_inside = patience
        try:
            self._send(context_id, encode_cancel(self._message_id), None)
            while self._next(kind, patience).response.pending:
                patience()
        except ForwardError:
            self.abort()

    def _send(self, context_id: int, command: bytes, data_set: bytes | None) -> None:
        try:
            self._assoc.queries.send(context_id, command, data_set)
        except OSError as error:
            raise self._lost(f"connection lost: {error.strerror or error}") from error
        except BaseException:
            self.cut()  # called off inside a message
            self.abort()
            raise

    def _lost(self, reason: str) -> PacsLost:
        self.abort()
        return PacsLost(self._name, reason)

    def release(self) -> None:
        """Release the association if it is still there, and close the connection.

        A peer that does not answer is not waited for longer than 2 s.
        """
        assoc = self._assoc
        assoc.transport.watch_inside = None
        if assoc.is_established and not assoc.queries.over:
            with contextlib.suppress(OSError):  # the peer may close first, which ends it as well
                assoc.release()
        assoc.kill()

    def abort(self) -> None:
        """Abort the association and close the connection."""
        self._assoc.transport.watch_inside = None  # nobody calls the abort itself off
        self._assoc.abort()
        self._assoc.kill()

    def cut(self) -> None:
        """End the connection under a waiting thread, which gets `PacsLost`."""
        self._assoc.cut()

    def __enter__(self) -> QueryAssociation:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, GeneratorExit):
            self.release()
        else:
            self.abort()  # a release might be waited for


def _prepare(
    assoc: _Requestor,
    address: tuple[str, int],
    called_ae: str,
    sop_classes: Sequence[str],
    storage: Sequence[tuple[str, str]],
) -> None:
    remote = AddressInformation.from_addr_port(*address)
    any_interface = "0.0.0.0" if remote.is_ipv4 else "::"  # noqa: S104 - our end of a connection
    local = AddressInformation.from_tuple((any_interface, 0))
    transport = QuickSocket(assoc, address=local)
    transport.silence_s = assoc.network_timeout
    assoc.set_socket(transport)
    assoc.acceptor.ae_title, assoc.acceptor.address_info = called_ae, remote
    requestor, ae = assoc.requestor, assoc.ae
    requestor.address_info, requestor.ae_title = local, ae.ae_title
    requestor.maximum_length = ae.maximum_pdu_size
    requestor.implementation_class_uid = ae.implementation_class_uid
    requestor.implementation_version_name = ae.implementation_version_name
    contexts = [
        build_context(each, syntax) for each in sop_classes for syntax in query_commands.SYNTAXES
    ]
    contexts += [build_context(sop_class, syntax) for sop_class, syntax in storage]
    for index, context in enumerate(contexts):
        context.context_id = 2 * index + 1
    requestor.requested_contexts = contexts
    for sop_class in dict.fromkeys(sop_class for sop_class, _ in storage):
        role = SCP_SCU_RoleSelectionNegotiation()
        role.sop_class_uid = sop_class
        role.scu_role, role.scp_role = False, True
        requestor.add_negotiation_item(role)


def _why_not(assoc: _Requestor, address: tuple[str, int]) -> str:
    """Return why there is no association; "" if the peer took it but none of its contexts."""
    answer = assoc.acceptor.primitive
    if isinstance(answer, A_ASSOCIATE):
        if answer.result == 0x00:
            return ""
        return f"rejected: {answer.result_str}, {answer.source_str}, {answer.reason_str}"
    local = assoc.requestor.address_info
    if not assoc.transport._ready.is_set() or local is None or local.port == 0:
        return f"no connection to {address[0]} port {address[1]}"
    return assoc.upper_layer.ended or "no answer to the association request"
