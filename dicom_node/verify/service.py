"""The verification process: the auditors' query/retrieve SCP, and the nightly re-check."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from dicom_node.config import Config
from dicom_node.dimse import StopEvent, stopped_by
from dicom_node.dimse.query_scp import Call, QueryRetrieveSCP
from dicom_node.verify.admission import Admission
from dicom_node.verify.inspector import Inspector
from dicom_node.verify.nightly import Nightly
from dicom_node.verify.query import FindHandler
from dicom_node.verify.retrieve import RetrieveHandler

log = structlog.get_logger(__name__)


def run_verifier(
    config: Config,
    stop_event: StopEvent | None = None,
    on_ready: Callable[[], None] | None = None,
) -> None:
    """Answer C-ECHO, C-FIND, C-MOVE and C-GET until `stop_event` is set, then drain and return.

    Parameters
    ----------
    config
        ``[verify]`` and what it names.
    stop_event
        None: SIGTERM or SIGINT end this process instead.
    on_ready
        Called once the port accepts associations.

    Raises
    ------
    ConfigError
        If there is no PACS to ask, or a port cannot be used.
    KeyRingError, EngineError, SpoolError, AuditError
        If keys, networks, scratch folder or audit trail cannot be used.
    """
    verify, node = config.verify, config.node
    with stopped_by(stop_event) as stop, Inspector(config, listen=True) as inspector:
        admission = Admission(verify, inspector.recorder.record)
        find, retrieve = FindHandler(inspector), RetrieveHandler(inspector, admission.policy)

        def handler(call: Call) -> None:
            (find if call.request.kind == "find" else retrieve)(call)

        server = QueryRetrieveSCP(
            (verify.bind, verify.port), verify.ae_title, handler,
            admits=admission, max_associations=node.max_associations, max_pdu=node.max_pdu,
            silence_s=node.association_timeout_s,
        )  # fmt: skip
        night = threading.Event()
        nightly = Nightly(inspector, night)
        nightly.start()
        log.info("verifying", ae_title=verify.ae_title, port=server.port, pacs=inspector.pacs.name)
        try:
            if on_ready is not None:
                on_ready()
            server.serve(stop)
        finally:
            night.set()
            clean = server.drain(node.shutdown_timeout_s)
            nightly.join()
        log.info("verifier ended", cut_associations=not clean)
