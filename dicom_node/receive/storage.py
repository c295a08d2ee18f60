"""The receiver process: a Storage and Verification SCP in front of the spool."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import structlog

from dicom_node.config import Config
from dicom_node.dimse import (
    TEMPORARY_CONGESTION,
    Incoming,
    Refusal,
    StopEvent,
    StorageSCP,
    encode_file_meta,
    stopped_by,
)
from dicom_node.errors import SpoolError
from dicom_node.spool import Spool

log = structlog.get_logger(__name__)


def handle_store(
    incoming: Incoming,
    data_set: Iterable[memoryview],
    spool: Spool,
    deliver_to: Sequence[str] | None = None,
) -> int:
    """Spool one SOP instance as received and answer the C-STORE request.

    The data set is not decoded: a slow or malformed image cannot hold the association open. Its
    bytes go to the spool's file as they arrive, never whole into memory.

    Parameters
    ----------
    incoming
        The request and its presentation context.
    data_set
        The encoded data set, in fragments.
    spool
        Makes the instance durable.
    deliver_to
        Destinations that get it unmarked; None: it waits for a mark worker.

    Returns
    -------
    int
        ``0x0000`` once the instance is durable and queued. If it is not, the `SpoolError` raised
        here is answered as ``0xA700`` (out of resources), so that the sender keeps its copy.

    References
    ----------
    DICOM PS3.4 B.2.3, Storage Service status values.
    """
    receipt = spool.receive(
        encode_file_meta(
            incoming.sop_class_uid,
            incoming.sop_instance_uid,
            incoming.transfer_syntax_uid,
            incoming.calling_ae,
        ),
        data_set,
        sop_class_uid=incoming.sop_class_uid,
        sop_instance_uid=incoming.sop_instance_uid,
        transfer_syntax_uid=incoming.transfer_syntax_uid,
        calling_ae=incoming.calling_ae,
        called_ae=incoming.called_ae,
        deliver_to=deliver_to,
    )
    if receipt.restored:
        log.warning("lost file replaced by the one sent again", job=receipt.job_id)
    if receipt.conflicts_with is not None:
        log.warning(
            "other content under a known SOP Instance UID", job=receipt.job_id,
            conflicts_with=receipt.conflicts_with, calling_ae=incoming.calling_ae,
        )  # fmt: skip
    return 0x0000


def run_receiver(
    config: Config,
    index: int = 0,
    stop_event: StopEvent | None = None,
    on_ready: Callable[[int], None] | None = None,
) -> None:
    """Receive until `stop_event` is set, then drain and return.

    Parameters
    ----------
    config
        ``[node]`` and ``[spool]`` are used; with ``[watermark] enabled = false`` instances go
        straight to the destinations.
    index
        Which of ``[node] receivers`` this is; they share the port.
    stop_event
        None: SIGTERM or SIGINT end this process instead.
    on_ready
        Called with the TCP port once it accepts connections.

    Raises
    ------
    ConfigError
        If the port cannot be used.
    SpoolError
        If the spool cannot be opened.
    """
    deliver_to = None
    if not config.watermark.enabled and config.destination:
        deliver_to = [destination.name for destination in config.destination]
    node = config.node
    with Spool(config.spool) as spool, stopped_by(stop_event) as stop:

        def handler(incoming: Incoming, data_set: Iterator[memoryview]) -> int:
            return handle_store(incoming, data_set, spool, deliver_to)

        server = StorageSCP(
            (node.bind, node.port), node.ae_title, handler,
            max_associations=node.max_associations, max_pdu=node.max_pdu,
            silence_s=node.association_timeout_s, refuse=lambda: _refusal(spool),
            reuse_port=node.receivers > 1,
        )  # fmt: skip
        log.info("receiving", index=index, ae_title=node.ae_title, port=server.port)
        if on_ready is not None:
            on_ready(server.port)
        server.serve(stop)
        clean = server.drain(node.shutdown_timeout_s)
        log.info("receiver ended", index=index, cut_associations=not clean)


def _refusal(spool: Spool) -> Refusal | None:
    """Return why no new association is taken: below min_free_mib, or above max_backlog."""
    try:
        spool.check_room()
    except SpoolError as error:
        log.warning("association rejected", reason=str(error))
        return TEMPORARY_CONGESTION
    return None
