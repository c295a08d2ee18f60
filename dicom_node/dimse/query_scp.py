"""A query/retrieve SCP: the listener of `storage_scp`, with C-FIND, C-MOVE and C-GET handed on.

A handler is given a `Call` and answers through it. Between two steps it asks ``call.cancelled``,
which reads what the client has sent meanwhile: a C-CANCEL takes effect at the next step, and a
client that is gone ends the handler with `PeerGone`.

References
----------
DICOM PS3.4 Annex C; PS3.7 9.3.2 to 9.3.5; PS3.7 D.3.3.4 (role selection, for C-GET).
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, BinaryIO, ClassVar, Protocol

import structlog
from pynetdicom.ae import ApplicationEntity
from pynetdicom.presentation import PresentationContext, build_context

from dicom_node.dimse import commands, query_commands
from dicom_node.dimse.commands import MoveOriginator, StoreRequest, StoreResponse
from dicom_node.dimse.contexts import verification_contexts
from dicom_node.dimse.messages import Incoming
from dicom_node.dimse.part10 import FileMeta
from dicom_node.dimse.query_commands import (
    CANCELLED,
    PENDING,
    Kind,
    QueryRequest,
    QueryResponse,
    SubOperations,
)
from dicom_node.dimse.query_messages import Message, QueryMessages
from dicom_node.dimse.storage_scp import AcceptorAssociation, StorageSCP
from dicom_node.errors import ContextRefused, NodeError

log = structlog.get_logger(__name__)

PATIENT_ROOT = "1.2.840.10008.5.1.4.1.2.1."
STUDY_ROOT = "1.2.840.10008.5.1.4.1.2.2."
SUFFIX: dict[Kind, str] = {"find": "1", "move": "2", "get": "3"}
_NOT_SUPPORTED = 0x0122
_STEP_S = 0.1
# What a sub-operation that is under way may still take after a C-CANCEL.
_CANCEL_S = 0.3


class PeerGone(NodeError):
    """The client released, aborted or lost the association; nobody is left to be answered."""


class Cancelled(NodeError):
    """The client has called its request off."""

    status = CANCELLED


class QueryHandler(Protocol):
    """Answers one request; what it leaves unanswered is answered as 0x0110."""

    def __call__(self, call: Call, /) -> None:
        """Answer through ``call``; a `NodeError` is answered with its status and text."""


class Call:
    """One C-FIND, C-MOVE or C-GET request, and the way to answer it.

    Attributes
    ----------
    request
        The command.
    identifier
        The data set as it came, encoded in `transfer_syntax_uid`.
    originator
        How sub-operations of a C-MOVE name this request.
    """

    def __init__(
        self, assoc: QueryAcceptor, message: Message, request: QueryRequest, syntax: str
    ) -> None:
        self._assoc = assoc
        self._context_id = message.context_id
        self.request = request
        self.identifier = message.data_set or b""
        self.transfer_syntax_uid = syntax
        self.calling_ae = assoc.requestor.ae_title.strip()
        self.called_ae = assoc.acceptor.ae_title.strip()
        self.peer = assoc.peer
        self.originator = MoveOriginator(self.calling_ae, request.message_id)
        self.answered = False
        self._cancelled_at = 0.0

    @property
    def patient_root(self) -> bool:
        """Whether the Patient Root model is used (else Study Root)."""
        return self.request.sop_class_uid.startswith(PATIENT_ROOT)

    @property
    def cancelled(self) -> bool:
        """Whether the client has called the request off (PeerGone if it is not there any more)."""
        self._assoc.listen()
        return self.request.message_id in self._assoc.queries.cancelled

    def pending(
        self,
        identifier: bytes | None = None,
        *,
        counts: SubOperations | None = None,
        status: int = PENDING,
    ) -> None:
        """Send a response that others follow (PeerGone)."""
        self._respond(status, identifier, counts, "")

    def finish(
        self,
        status: int,
        *,
        counts: SubOperations | None = None,
        comment: str = "",
        identifier: bytes | None = None,
    ) -> None:
        """Send the last response (PeerGone)."""
        self.answered = True
        self._respond(status, identifier, counts, comment)

    def _respond(
        self, status: int, identifier: bytes | None, counts: SubOperations | None, comment: str
    ) -> None:
        request = self.request
        response = QueryResponse(
            request.kind, request.message_id, status, request.sop_class_uid, comment, counts,
            identifier is not None,
        )  # fmt: skip
        self._assoc.listen()
        try:
            self._assoc.queries.send(self._context_id, response.encode(), identifier)
        except OSError as error:
            raise PeerGone(f"the client takes no answer: {error.strerror or error}") from error

    # Sub-operations of C-GET: the client is the Storage SCP.

    def accepted_syntaxes(self, sop_class_uid: str) -> tuple[str, ...]:
        """Return the transfer syntaxes in which the client takes instances of a class back."""
        return tuple(syntax for cls, syntax in self._assoc.store_contexts if cls == sop_class_uid)

    def store(self, file: BinaryIO, meta: FileMeta, *, timeout_s: float) -> StoreResponse:
        """Send the data set of an open file to the client and return its answer.

        Raises
        ------
        ContextRefused
            If the client takes the class in another transfer syntax only, or not at all.
        Cancelled
            If it has called the request off and does not answer for this instance.
        PeerGone
            If it does not answer; also if it calls the request off inside a data set that then
            takes longer: no message may come between, so that its association is cut.
        """
        pair = meta.sop_class_uid, meta.transfer_syntax_uid
        context_id = self._assoc.store_contexts.get(pair)
        if context_id is None:
            raise ContextRefused(self.calling_ae, *pair)
        self._assoc.listen()
        message_id = self._assoc.next_message_id()
        request = StoreRequest(message_id, meta.sop_class_uid, meta.sop_instance_uid)
        size = file.seek(0, 2) - meta.data_set_offset
        file.seek(meta.data_set_offset)
        queries, transport = self._assoc.queries, self._assoc.transport
        transport.watch_inside = self._patience
        try:
            queries.send_store(context_id, request, file, size, lambda: None)
        except OSError as error:
            raise PeerGone(f"the client takes no data: {error.strerror or error}") from error
        except Cancelled:
            self._assoc.cut()
            raise PeerGone("the client called its request off inside an instance") from None
        finally:
            transport.watch_inside = None
        return self._answer_of(message_id, timeout_s)

    def _answer_of(self, message_id: int, timeout_s: float) -> StoreResponse:
        """Return the client's answer for one instance (Cancelled, PeerGone)."""
        queries = self._assoc.queries
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and not queries.over:
            answer = queries.await_answer(_STEP_S)
            if answer is None:
                try:
                    self._patience()
                except Cancelled:
                    queries.abandoned.add(message_id)
                    raise
            elif answer.message_id == message_id:
                return answer
            else:
                break
        raise PeerGone("the client did not answer a C-STORE sub-operation")

    def _patience(self) -> None:
        """Let what is under way end for a moment after a C-CANCEL; Cancelled after that."""
        if not self.cancelled:
            return
        now = time.monotonic()
        self._cancelled_at = self._cancelled_at or now
        if now - self._cancelled_at > _CANCEL_S:
            raise Cancelled("called off by the client")


class QueryAcceptor(AcceptorAssociation):
    """One association with a client, in one thread."""

    _server: QueryRetrieveSCP

    def __init__(self, ae: ApplicationEntity, mode: str) -> None:
        super().__init__(ae, mode)
        self.queries = QueryMessages(self)
        self.messages = self.dimse = self.queries
        self._store_contexts: dict[tuple[str, str], int] | None = None
        self._message_id = 0

    def next_message_id(self) -> int:
        """Return the Message ID of our next request."""
        self._message_id = self._message_id % 0xFFFF + 1
        return self._message_id

    @property
    def store_contexts(self) -> dict[tuple[str, str], int]:
        """Presentation contexts in which the client is a Storage SCP, by class and syntax."""
        if self._store_contexts is None:
            self._store_contexts = {
                (str(each.abstract_syntax), str(each.transfer_syntax[0])): each.context_id or 0
                for each in reversed(self.accepted_contexts) if each.as_scu
            }  # fmt: skip
        return self._store_contexts

    def listen(self) -> None:
        """Take in what the client has sent; nothing waits here (PeerGone)."""
        try:
            while self.transport.wait_readable(0):
                self.upper_layer.read(0)
                if self.queries.over:
                    raise PeerGone("the client ended the association")
        except OSError as error:
            raise PeerGone("the connection is gone") from error

    def _answer(self) -> None:
        if self.queries.store is not None or not self.queries.inbox:
            super()._answer()
            return
        message = self.queries.inbox.popleft()
        kind = query_commands.REQUESTS.get(message.field)
        context = self._accepted_cx[message.context_id]
        message_id = commands.us(message.elements, commands.MESSAGE_ID)
        if message_id is None:
            raise ValueError("a request without a Message ID")
        if message.field == query_commands.C_ECHO_RQ:
            self.queries.send(message.context_id, query_commands.encode_echo_response(message_id))
        elif kind is None or _class_of(kind, str(context.abstract_syntax)) is None:
            refusal = query_commands.encode_refusal(message.field, message_id)
            self.queries.send(message.context_id, refusal)
        else:
            request = QueryRequest.decode(kind, message.elements)
            self._call(Call(self, message, request, str(context.transfer_syntax[0])))

    def _call(self, call: Call) -> None:
        """Let the handler answer; PeerGone ends the association quietly."""
        with contextlib.suppress(PeerGone):  # _next_message finds the same and says so
            try:
                self._server.query_handler(call)
                if not call.answered:
                    call.finish(NodeError.status, comment="not answered")
            except PeerGone:
                raise
            except NodeError as error:
                log.warning(
                    "request failed", kind=call.request.kind, calling_ae=call.calling_ae,
                    reason=str(error),
                )  # fmt: skip
                if not call.answered:
                    call.finish(_failure(error), comment=str(error))
        with contextlib.suppress(ValueError):  # most requests are never called off
            self.queries.cancelled.remove(call.request.message_id)


class QueryRetrieveSCP(StorageSCP):
    """A listener for C-ECHO, C-FIND, C-MOVE and C-GET in both roots; parameters of `StorageSCP`.

    Parameters
    ----------
    handler
        Called in the association's thread with each request.
    """

    association_class: ClassVar[type[AcceptorAssociation]] = QueryAcceptor

    def __init__(
        self, address: tuple[str, int], ae_title: str, handler: QueryHandler, **options: Any
    ) -> None:
        self.query_handler = handler
        super().__init__(address, ae_title, _refuse_store, **options)
        self.contexts = query_contexts()


def query_contexts() -> list[PresentationContext]:
    """Return what the acceptor supports by name; storage is accepted beside it, for C-GET."""
    classes = [root + SUFFIX[kind] for root in (PATIENT_ROOT, STUDY_ROOT) for kind in SUFFIX]
    syntaxes = list(query_commands.SYNTAXES)
    return [*verification_contexts(), *(build_context(each, syntaxes) for each in classes)]


def _class_of(kind: Kind, sop_class_uid: str) -> str | None:
    """Return the SOP class if it is the one for this kind of request, else None."""
    wanted = (PATIENT_ROOT + SUFFIX[kind], STUDY_ROOT + SUFFIX[kind])
    return sop_class_uid if sop_class_uid in wanted else None


def _refuse_store(_incoming: Incoming, _data_set: object) -> int:
    """Refuse C-STORE: nobody sends instances to a query/retrieve SCP."""
    return _NOT_SUPPORTED


def _failure(error: NodeError) -> int:
    """Return an error's status if query/retrieve knows it, else 0xC000 (unable to process)."""
    status = error.status
    return status if status >> 12 in (0xA, 0xC) else 0xC000
