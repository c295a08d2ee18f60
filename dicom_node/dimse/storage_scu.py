"""Send instances as they lie on disk: C-STORE without decoding, one association per thread."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import BinaryIO

from pynetdicom._globals import MODE_REQUESTOR
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation

from dicom_node.dimse import settings
from dicom_node.dimse.association import BlockingAssociation, application_entity
from dicom_node.dimse.commands import MoveOriginator, StoreRequest, StoreResponse
from dicom_node.dimse.contexts import Pair, proposed_contexts
from dicom_node.dimse.part10 import FileMeta
from dicom_node.dimse.transport import QuickSocket
from dicom_node.errors import (
    AssociationLost,
    AssociationRejected,
    ContextRefused,
    ForwardError,
)

_CONNECT_S = 10.0
_ACSE_S = 30.0
_MAX_PDU = 65536  # what we let the peer send; its answers are a hundred bytes


class NeverHeard(AssociationLost):
    """The peer was gone before one byte of the request reached it: nothing was attempted."""


class StoreAssociation:
    """An association with one destination, used for one C-STORE after another.

    Once anything but an answer came back (a time-out, an abort, a protocol error) the association
    is closed and `alive` is `False`: it is never used again.
    """

    def __init__(self, name: str, assoc: BlockingAssociation, timeout_s: float) -> None:
        self._name = name
        self._assoc = assoc
        self._timeout_s = timeout_s
        self._message_id = 0
        self._acked_before = 0
        self._contexts: dict[Pair, int] = {}
        self._proposed: set[Pair] = set()
        for context in assoc.requestor.requested_contexts:
            self._proposed.add((str(context.abstract_syntax), str(context.transfer_syntax[0])))
        for context in assoc.accepted_contexts:
            pair = str(context.abstract_syntax), str(context.transfer_syntax[0])
            self._contexts.setdefault(pair, context.context_id or 0)

    @classmethod
    def open(
        cls,
        name: str,
        address: tuple[str, int],
        *,
        called_ae: str,
        calling_ae: str,
        pairs: Iterable[Pair],
        fallbacks: Iterable[str] = (),
        timeout_s: float = 60.0,
        watch: Callable[[], object] | None = None,
    ) -> StoreAssociation:
        """Associate with a Storage SCP, proposing one context per pair.

        `watch` is asked whenever the peer is waited for, as long as the association lasts; what it
        raises ends the association.

        Raises
        ------
        AssociationRejected
            If it cannot be reached, rejects or aborts the association, or does not answer.
        """
        settings.apply()
        ae = application_entity(calling_ae, _MAX_PDU, timeout_s)
        ae.acse_timeout = min(_ACSE_S, timeout_s)
        ae.connection_timeout = min(_CONNECT_S, timeout_s)
        assoc = BlockingAssociation(ae, MODE_REQUESTOR)
        try:
            _prepare(assoc, address, called_ae, proposed_contexts(pairs, fallbacks=fallbacks))
            assoc.transport.watch = watch
            assoc.request()
        except OSError as error:
            assoc.kill()
            raise AssociationRejected(name, f"{address[0]}: {error.strerror or error}") from error
        except BaseException:
            assoc.kill()  # called off
            raise
        if not assoc.is_established and not _all_refused(assoc):
            reason = _why_not(assoc, address)
            assoc.kill()
            raise AssociationRejected(name, reason)
        return cls(name, assoc, timeout_s)

    @property
    def alive(self) -> bool:
        """Whether the peer still holds the association; notices an abort or release meanwhile."""
        assoc = self._assoc
        while assoc.is_established and assoc.transport.socket is not None:
            if not assoc.transport.wait_readable(0):
                return True
            assoc.upper_layer.read(0)
            if assoc.acse.is_release_requested():
                assoc.acse.send_release(is_response=True)
                assoc.kill()
            elif assoc.acse.is_aborted() or not assoc.dul.is_alive():
                assoc.kill()
        return False

    def proposed(self, pair: Pair) -> bool:
        """Whether the peer was asked for this context, so that asking again is no use."""
        return pair in self._proposed

    def accepted_syntaxes(self, sop_class_uid: str) -> tuple[str, ...]:
        """Return the transfer syntaxes the peer takes this SOP class in."""
        return tuple(syntax for sop_class, syntax in self._contexts if sop_class == sop_class_uid)

    def store(
        self,
        file: BinaryIO,
        meta: FileMeta,
        on_progress: Callable[[], None] = lambda: None,
        originator: MoveOriginator | None = None,
    ) -> StoreResponse:
        """Send the data set bytes of an open file and return the answer, whatever its status.

        Parameters
        ----------
        file, meta
            The file and what `read_file_meta` said of it.
        on_progress
            Called now and then while a large data set is on its way.
        originator
            For a sub-operation of C-MOVE.

        Raises
        ------
        ContextRefused
            If no accepted context fits (nothing was sent; the association stays usable).
        ForwardError
            If the data set is of odd length: peers abort on it, every time (nothing was sent).
        NeverHeard
            If the association served before and had ended before any byte of this request arrived:
            a new one may be opened and used at once.
        AssociationLost
            If there was no answer: the association is gone, the peer may or may not have stored.
        """
        context_id = self._contexts.get((meta.sop_class_uid, meta.transfer_syntax_uid))
        if context_id is None:
            raise ContextRefused(self._name, meta.sop_class_uid, meta.transfer_syntax_uid)
        size = file.seek(0, 2) - meta.data_set_offset
        if size % 2:
            raise ForwardError(
                f"the data set has an odd number of bytes ({size}), which no message can carry"
                " (PS3.8 E.2)"
            )
        self._message_id = self._message_id % 0xFFFF + 1
        request = StoreRequest(
            self._message_id, meta.sop_class_uid, meta.sop_instance_uid, originator
        )
        messages = self._assoc.messages
        self._acked_before = self._assoc.transport.acknowledged
        try:
            file.seek(meta.data_set_offset)
            messages.send_store(context_id, request, file, size, on_progress)
        except OSError as error:
            raise self._lost(meta, self._peer_said() or f"sending failed: {error}") from error
        except BaseException:
            # `on_progress` called it off inside a message: the association cannot be used again.
            self._end()
            raise
        try:
            answer = messages.await_answer(self._timeout_s)
        except BaseException:
            self._end()  # `watch` called it off
            raise
        if answer is None:
            raise self._lost(meta, self._peer_said() or f"silent for {self._timeout_s:g} s")
        if answer.message_id != self._message_id:
            raise self._lost(meta, "the answer names another message")
        return answer

    def release(self, timeout_s: float | None = None) -> None:
        """Release the association if it is still there, and close the connection.

        `timeout_s` bounds how long the peer may take to answer; None: as long as it may to answer
        an association request.
        """
        try:
            if self.alive:
                if timeout_s is not None:
                    self._assoc.acse_timeout = timeout_s
                with contextlib.suppress(OSError):  # the peer may close first, which ends it, too
                    self._assoc.release()
        finally:
            self._assoc.kill()

    def cut(self) -> None:
        """End the connection under a sending thread, which gets `AssociationLost`."""
        self._assoc.cut()

    def _peer_said(self) -> str:
        """Return how the peer ended the association, ``""`` if it did not."""
        assoc = self._assoc
        try:
            # An A-ABORT may lie unread behind a failed write.
            if assoc.transport.socket is not None and assoc.transport.wait_readable(0):
                assoc.upper_layer.read(0)
        except OSError:
            return "connection lost"
        if assoc.acse.is_release_requested():
            return "the peer asked for release instead"
        return assoc.upper_layer.ended

    def _lost(self, meta: FileMeta, reason: str) -> AssociationLost:
        served = self._message_id > 1
        # What the peer's system has not acknowledged, the peer itself cannot have read.
        unheard = served and 0 < self._assoc.transport.acknowledged == self._acked_before
        self._end()
        kind = NeverHeard if unheard else AssociationLost
        return kind(self._name, meta.sop_instance_uid, reason)

    def _end(self) -> None:
        self._assoc.abort()
        self._assoc.kill()


def _prepare(
    assoc: BlockingAssociation,
    address: tuple[str, int],
    called_ae: str,
    contexts: list[PresentationContext],
) -> None:
    remote = AddressInformation.from_addr_port(*address)
    any_interface = "0.0.0.0" if remote.is_ipv4 else "::"  # noqa: S104 - our end of a connection
    local = AddressInformation.from_tuple((any_interface, 0))
    transport = QuickSocket(assoc, address=local)
    transport.silence_s = assoc.network_timeout
    assoc.set_socket(transport)
    assoc.acceptor.ae_title = called_ae
    assoc.acceptor.address_info = remote
    assoc.requestor.address_info = local
    assoc.requestor.ae_title = assoc.ae.ae_title
    assoc.requestor.maximum_length = assoc.ae.maximum_pdu_size
    assoc.requestor.implementation_class_uid = assoc.ae.implementation_class_uid
    assoc.requestor.implementation_version_name = assoc.ae.implementation_version_name
    for index, context in enumerate(contexts):
        context.context_id = 2 * index + 1
    assoc.requestor.requested_contexts = contexts


def _all_refused(assoc: BlockingAssociation) -> bool:
    """Whether the peer took the association but none of its contexts (pynetdicom aborts then)."""
    answer = assoc.acceptor.primitive
    return isinstance(answer, A_ASSOCIATE) and answer.result == 0x00


def _why_not(assoc: BlockingAssociation, address: tuple[str, int]) -> str:
    answer = assoc.acceptor.primitive
    if isinstance(answer, A_ASSOCIATE):
        return f"rejected: {answer.result_str}, {answer.source_str}, {answer.reason_str}"
    if not assoc.transport._ready.is_set() or _port(assoc) == 0:
        return f"no connection to {address[0]} port {address[1]}"
    return assoc.upper_layer.ended or "no answer to the association request"


def _port(assoc: BlockingAssociation) -> int:
    local = assoc.requestor.address_info
    return 0 if local is None else local.port
