"""A study's structured report stored into the PACS (``[verify] store_reports``)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from dicom_node.config import Config, DestinationConfig
from dicom_node.dimse import StoreAssociation, read_file_meta
from dicom_node.errors import ConfigError, PixelError, StoreFailed
from dicom_node.forward.rules import DELIVERED_STATUSES
from dicom_node.instance.datafile import open_data_file
from dicom_node.keys import KeyRing
from dicom_node.registry.records import DeliveryEntry, MarkedInstance
from dicom_node.spool.files import dataset_digest
from dicom_node.verify.report import write_reports
from dicom_node.verify.study import StudyCheck

_SERIES, _STUDY = 0x0020000E, 0x0020000D


@dataclass(frozen=True)
class Destination:
    """Where a report goes, and who sends it."""

    name: str
    address: tuple[str, int]
    called_ae: str
    calling_ae: str
    timeout_s: float = 60.0

    @classmethod
    def of(cls, config: Config) -> Destination:
        """Return the Storage SCP of the PACS that is asked (ConfigError if there is none)."""
        found: list[DestinationConfig] = [
            each for each in config.destination if config.verify.pacs in ("", each.name)
        ]
        if not found:
            raise ConfigError("verify.store_reports: there is no [[destination]] to store into")
        pacs = found[0]
        return cls(
            pacs.name, (pacs.host, pacs.port), pacs.ae_title, config.verify.ae_title, pacs.timeout_s
        )


def store_report(path: Path, to: Destination) -> int:
    """Send a structured report as `write_reports` wrote it; return the status it was taken with.

    Raises
    ------
    ForwardError
        The PACS cannot be reached, does not answer, takes no structured reports, or refuses it.
    """
    with path.open("rb") as file:
        meta = read_file_meta(file)
        assoc = StoreAssociation.open(
            to.name, to.address, called_ae=to.called_ae, calling_ae=to.calling_ae,
            pairs=[(meta.sop_class_uid, meta.transfer_syntax_uid)], timeout_s=to.timeout_s,
        )  # fmt: skip
        try:
            answer = assoc.store(file, meta)
        finally:
            assoc.release()
    if answer.status not in DELIVERED_STATUSES:
        raise StoreFailed(to.name, meta.sop_instance_uid, answer.status, answer.comment)
    return answer.status


def store_study_report(
    check: StudyCheck, to: Destination, ring: KeyRing, *, checked_by: str
) -> MarkedInstance:
    """Write the structured report on a study and store it.

    Returns
    -------
    MarkedInstance
        For the registry: the next check of the study finds the report there, sealed by us, and
        must not call it one that nobody delivered.

    Raises
    ------
    ForwardError
        See `store_report`.
    ReportError
        No report can be written.
    PixelError
        The study's files are gone, or none of them says which study it is.
    """
    with TemporaryDirectory(prefix="dicom-node-") as folder:
        begun = time.time()
        written = write_reports(
            check, Path(folder), formats=["sr"], ring=ring, checked_by=checked_by
        )
        if not written:
            raise PixelError("no instance of the study is at hand to base a report on")
        status = store_report(written[0], to)
        return _record(written[0], check, ring, to, begun, status)


def _record(
    path: Path, check: StudyCheck, ring: KeyRing, to: Destination, begun: float, status: int
) -> MarkedInstance:
    with path.open("rb") as file:
        meta = read_file_meta(file)
        _, digest = dataset_digest(file.fileno())
    data = open_data_file(path)
    try:
        series, study = data.text(_SERIES), data.text(_STUDY)
    finally:
        data.close()
    return MarkedInstance(
        meta.sop_instance_uid, series, study, meta.sop_class_uid, meta.transfer_syntax_uid,
        "sealed", digest, digest, ring.current.key_id, int(check.checked_at.timestamp()), begun,
        to.calling_ae, "SR", 1, deliveries=(DeliveryEntry(to.name, status, time.time()),),
    )  # fmt: skip
