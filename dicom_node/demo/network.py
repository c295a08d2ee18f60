"""Both ends of the demonstration: a modality that stores, an auditor that queries and fetches."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.association import Association

from dicom_node.demo.children import StepFailed
from dicom_node.dimse import (
    Incoming,
    StorageSCP,
    StoreAssociation,
    encode_file_meta,
    read_file_meta,
)
from dicom_node.dimse.settings import apply as apply_dimse_settings

MODALITY_AE = "MODALITY"
# PS3.4 A.4 and C.6.2.3
VERIFICATION = "1.2.840.10008.1.1"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
_T = TypeVar("_T")
_PENDING = (0xFF00, 0xFF01)
_ANSWER_S = 60.0


@dataclass(frozen=True)
class Peer:
    """Where an AE listens."""

    ae_title: str
    port: int
    host: str = "127.0.0.1"


def answers_echo(peer: Peer) -> bool:
    """Say whether `peer` accepts an association and answers C-ECHO with success."""
    return _aside(lambda: _echo(peer))


def _echo(peer: Peer) -> bool:
    apply_dimse_settings()
    ae = AE("AUDITOR")
    ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = 2.0
    ae.add_requested_context(VERIFICATION)
    assoc = ae.associate(peer.host, peer.port, ae_title=peer.ae_title)
    if not assoc.is_established:
        return False
    try:
        return bool(assoc.send_c_echo().get("Status") == 0x0000)
    finally:
        assoc.release()


def store(files: Sequence[Path], peer: Peer) -> int:
    """Send files as they lie on disk, each in its own transfer syntax, over one association.

    Returns
    -------
    int
        Bytes sent.

    Raises
    ------
    StepFailed
        If an instance is not answered ``0x0000``.
    NodeError
        If the association is rejected or lost.
    """
    metas = []
    for path in files:
        with path.open("rb") as file:
            metas.append(read_file_meta(file))
    pairs = dict.fromkeys((meta.sop_class_uid, meta.transfer_syntax_uid) for meta in metas)
    assoc = StoreAssociation.open(
        "the node", (peer.host, peer.port), called_ae=peer.ae_title, calling_ae=MODALITY_AE,
        pairs=pairs, timeout_s=_ANSWER_S,
    )  # fmt: skip
    try:
        for path, meta in zip(files, metas, strict=True):
            with path.open("rb") as file:
                answer = assoc.store(file, meta)
            if answer.status != 0x0000:
                raise StepFailed(f"{path.name} was answered 0x{answer.status:04X} {answer.comment}")
    finally:
        assoc.release()
    return sum(path.stat().st_size for path in files)


class Auditor:
    """Queries a PACS and receives what it sends to the move destination.

    Parameters
    ----------
    folder
        Gets one file per received instance, named by order of arrival.
    """

    def __init__(self, me: Peer, folder: Path) -> None:
        self.me = me
        self._folder = folder
        self._lock = threading.Lock()
        self._received: list[Path] = []

    def find_instances(self, pacs: Peer, study_uid: str, series_uid: str) -> set[str]:
        """Return the SOP Instance UIDs that the PACS lists for a series (C-FIND, IMAGE level)."""
        return _aside(lambda: self._find(pacs, study_uid, series_uid))

    def _find(self, pacs: Peer, study_uid: str, series_uid: str) -> set[str]:
        query = Dataset()
        query.QueryRetrieveLevel = "IMAGE"
        query.StudyInstanceUID, query.SeriesInstanceUID = study_uid, series_uid
        query.SOPInstanceUID = ""
        found = set()
        with self._associate(pacs, STUDY_ROOT_FIND) as assoc:
            answers = assoc.send_c_find(query, STUDY_ROOT_FIND)
            for status, identifier in answers:
                if status.get("Status") in _PENDING and identifier is not None:
                    found.add(str(identifier.SOPInstanceUID))
                elif status.get("Status") != 0x0000:
                    raise StepFailed(f"C-FIND was answered {_status(status)}")
        return found

    def move_study(self, pacs: Peer, study_uid: str) -> list[Path]:
        """Have the PACS send a study here (C-MOVE) and return the files.

        Raises
        ------
        StepFailed
            If it ends otherwise than with success of every sub-operation.
        """
        before = len(self._received)
        _aside(lambda: self._move(pacs, study_uid))
        return self._received[before:]

    def _move(self, pacs: Peer, study_uid: str) -> None:
        query = Dataset()
        query.QueryRetrieveLevel, query.StudyInstanceUID = "STUDY", study_uid
        with self._associate(pacs, STUDY_ROOT_MOVE) as assoc:
            last = Dataset()
            for status, _ in assoc.send_c_move(query, self.me.ae_title, STUDY_ROOT_MOVE):
                last = status
        if last.get("Status") != 0x0000:
            failed = last.get("NumberOfFailedSuboperations", "?")
            raise StepFailed(f"C-MOVE ended with {_status(last)}, {failed} instances failed")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Be a move destination for the time being."""
        self._folder.mkdir(exist_ok=True)
        server = StorageSCP((self.me.host, self.me.port), self.me.ae_title, self._keep)
        stop = threading.Event()
        thread = threading.Thread(target=server.serve, args=(stop,), name="auditor")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            server.drain(5.0)

    def _keep(self, incoming: Incoming, data_set: Iterator[memoryview]) -> int:
        with self._lock:
            path = self._folder / f"{len(self._received) + 1:04}.dcm"
            self._received.append(path)
        with path.open("wb") as file:
            file.write(
                encode_file_meta(
                    incoming.sop_class_uid, incoming.sop_instance_uid,
                    incoming.transfer_syntax_uid, incoming.calling_ae,
                )
            )  # fmt: skip
            for fragment in data_set:
                file.write(fragment)
        return 0x0000

    @contextmanager
    def _associate(self, pacs: Peer, sop_class: str) -> Iterator[Association]:
        apply_dimse_settings()
        ae = AE(self.me.ae_title)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = _ANSWER_S
        ae.add_requested_context(sop_class)
        assoc = ae.associate(pacs.host, pacs.port, ae_title=pacs.ae_title)
        if not assoc.is_established:
            raise StepFailed(f"{pacs.ae_title} accepts no association from {self.me.ae_title}")
        try:
            yield assoc
        finally:
            assoc.release()


def _aside(work: Callable[[], _T]) -> _T:
    """Run `work` in a daemon thread and return what it returns or raise what it raises.

    pynetdicom's threads take after the one that starts them: interrupted half-way, an association
    would otherwise keep this process from ending.
    """
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001 - raised again where it is waited for
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result()


def _status(answer: Dataset) -> str:
    status = answer.get("Status")
    return "nothing" if status is None else f"0x{status:04X}"
