"""The registrar: reads the spool's outbox, writes the registry and the audit trail.

    outbox ──▶ registry (one transaction) ──▶ audit trail ──▶ rows are forgotten

Images do not wait for it. While the registry or the trail cannot be written the outbox keeps what
happened, bounded by the disk alone; on a full disk the registrar waits, since the room is for
images. Dying between two of these steps tells the same rows again; both ends know a row by its
reference.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Literal

import structlog

from dicom_node.audit.events import Event, Forwarded, Marked, Refused
from dicom_node.audit.log import AuditLog
from dicom_node.audit.recording import sending
from dicom_node.config import Config, DestinationConfig
from dicom_node.errors import AuditError, KeyRingError, RegistryError, SpoolError, SpoolFull
from dicom_node.keys import KeyRing
from dicom_node.registry import DeliveryEntry, MarkedInstance, Registry
from dicom_node.spool import OutboxRow, Spool
from dicom_node.supervisor import StopEvent

_log = structlog.get_logger(__name__)

BATCH = 2000
IDLE_S = 1.0
# Rows of so much time share a transaction, which costs three waits for the disk.
GATHER_S = 0.3
RETRY_INITIAL_S = 1.0
RETRY_MAX_S = 30.0
_STOP_CHECK_S = 0.25
_ACTIONS: dict[str, Literal["marked", "sealed", "untouched"]] = {
    "marked": "marked", "sealed": "sealed", "untouched": "untouched",
}  # fmt: skip


class Registrar:
    """Takes rows out of the outbox, in order.

    Parameters
    ----------
    open_registry
        Called until it succeeds: the database may be away when the node starts.
    destinations
        By name, for the audit trail; those that were removed since are told by name alone.
    """

    def __init__(
        self,
        spool: Spool,
        open_registry: Callable[[], Registry],
        trail: AuditLog,
        destinations: Mapping[str, DestinationConfig],
    ) -> None:
        self._spool = spool
        self._open_registry = open_registry
        self._registry: Registry | None = None
        self._trail = trail
        self._destinations = destinations
        self._failures = 0
        self._unindexed = True

    def run(self, stop: StopEvent) -> None:
        """Register until told to stop."""
        while not stop.is_set():
            try:
                if self.step():
                    continue
                self._index()
            except (RegistryError, AuditError, SpoolError) as error:
                _pause(stop, self._failed(error))
                continue
            if self._spool.wait_for_news(IDLE_S):
                _pause(stop, GATHER_S)

    def step(self) -> int:
        """Register the oldest rows; return how many there were.

        Raises
        ------
        RegistryError, AuditError, SpoolError
            When one of the three cannot be written; nothing is lost.
        """
        rows = self._spool.outbox(BATCH)
        if rows and self._spool.disk_is_full:
            raise SpoolFull("the spool's disk is full; what happened waits in the outbox")
        if rows:
            self._opened().add_all(map(record_of, _with_records(rows)))
            self._trail.append_many((self._event(row), row.reference) for row in rows)
            self._spool.forget(rows[-1])
            self._unindexed = True
            self._went_on(len(rows))
        return len(rows)

    def close(self) -> None:
        """Sign the end of the trail and close the registry."""
        try:
            self._trail.close()
        except AuditError as error:
            _log.error("trail_not_signed", reason=str(error))
        if self._registry is not None:
            self._registry.close()

    def _opened(self) -> Registry:
        if self._registry is None:
            self._registry = self._open_registry()
        return self._registry

    def _index(self) -> None:
        """Take new hashes into the file that `trace` searches, while there is nothing else."""
        if self._unindexed:
            self._opened().refresh_index()
            self._unindexed = False

    def _failed(self, error: Exception) -> float:
        """Say it once; return after how many seconds to try again."""
        self._failures += 1
        if self._failures == 1:
            _log.error("registrar_waits", reason=str(error), **self._behind())
        delay_s = min(RETRY_MAX_S, RETRY_INITIAL_S * 2.0 ** min(self._failures - 1, 10))
        return delay_s * random.uniform(0.75, 1.25)

    def _went_on(self, count: int) -> None:
        if self._failures:
            _log.info("registrar_goes_on", after_failures=self._failures, **self._behind())
        elif count == BATCH and (behind := self._behind()).get("rows"):
            _log.info("registrar_behind", **behind)
        self._failures = 0

    def _behind(self) -> dict[str, float]:
        try:
            rows, oldest = self._spool.outbox_depth()
        except SpoolError:
            return {}
        return {"rows": rows, "oldest_s": round(time.time() - oldest, 1) if oldest else 0.0}

    def _event(self, row: OutboxRow) -> Event:
        """Return what the audit trail says of a row."""
        at = datetime.fromtimestamp(row.at, UTC)
        known = self._destinations.get(row.destination)
        ae_title = known.ae_title if known else ""
        address = f"{known.host}:{known.port}" if known else ""
        if row.kind == "marked":
            return Marked(
                at=at, sop_instance_uid=row.sop_instance_uid, sop_class_uid=row.sop_class_uid,
                study_instance_uid=row.study_instance_uid,
                series_instance_uid=row.series_instance_uid,
                action=_ACTIONS.get(row.action, "untouched"), frames=row.facts.frame_count,
                key_id=row.key_id.hex(), digest=row.delivered_digest.hex(),
                source_ae=row.calling_ae,
            )  # fmt: skip
        if row.kind == "delivered":
            return Forwarded(
                at=at, sop_instance_uid=row.sop_instance_uid, sop_class_uid=row.sop_class_uid,
                study_instance_uid=row.study_instance_uid, destination=row.destination,
                ae_title=ae_title, address=address, status=row.status or 0,
                digest=row.delivered_digest.hex(),
            )  # fmt: skip
        return Refused(
            at=at, stage="forward" if row.destination or row.action else "mark",
            outcome="held" if row.kind == "held" else "rejected", reason=_reason_of(row),
            sop_instance_uid=row.sop_instance_uid, sop_class_uid=row.sop_class_uid,
            study_instance_uid=row.study_instance_uid,
            peer_ae=ae_title or row.destination or row.calling_ae, peer_address=address,
            status=row.status,
        )  # fmt: skip


def _reason_of(row: OutboxRow) -> str:
    """Return why; not in a destination's own words, in which some archives name the patient."""
    if row.status is None:
        return row.reason
    return f"{row.destination} refused it with status 0x{row.status:04X}"


def _with_records(rows: Iterable[OutboxRow]) -> Iterable[OutboxRow]:
    """Return the rows the registry keeps: what left, or is ready to."""
    return (row for row in rows if row.kind in ("marked", "delivered"))


def record_of(row: OutboxRow) -> MarkedInstance:
    """Return a row as the registry keeps it.

    A delivery says all that is known of the instance but its frames: where the row that told of
    its marking was written by a release without an outbox, it stands for itself.
    """
    deliveries: tuple[DeliveryEntry, ...] = ()
    if row.kind == "delivered":
        recoded = row.delivered_syntax_uid != row.transfer_syntax_uid
        deliveries = (
            DeliveryEntry(row.destination, row.status or 0, row.at, row.reference,
                          row.delivered_syntax_uid if recoded else ""),
        )  # fmt: skip
    return MarkedInstance(
        sop_instance_uid=_text(row.sop_instance_uid),
        series_instance_uid=_text(row.series_instance_uid),
        study_instance_uid=_text(row.study_instance_uid),
        sop_class_uid=_text(row.sop_class_uid),
        transfer_syntax_uid=_text(row.transfer_syntax_uid),
        action=row.action,
        received_digest=row.received_digest,
        delivered_digest=row.delivered_digest,
        key_id=row.key_id,
        marked_at=int(row.at) if row.marked_at is None else row.marked_at,
        received_at=row.received_at,
        calling_ae=_text(row.calling_ae),
        modality=_text(row.facts.modality),
        instance_number=row.facts.instance_number,
        frame_count=row.facts.frame_count,
        frames=row.facts.frames,
        deliveries=deliveries,
    )


def _text(received: str) -> str:
    """Return what came from the network as any database takes it: no NUL, no half characters."""
    return received.encode("utf-8", "replace").decode("utf-8").replace("\0", "?")


def _pause(stop: StopEvent, seconds: float) -> None:
    ends_at = time.monotonic() + seconds
    while not stop.is_set() and (left := ends_at - time.monotonic()) > 0:
        time.sleep(min(left, _STOP_CHECK_S))


def _ring(config: Config) -> KeyRing | None:
    """Return who signs the trail; without keys it is chained, and signed later by who has them."""
    try:
        return KeyRing.open(config.keys.directory)
    except KeyRingError as error:
        _log.warning("trail_unsigned", reason=str(error))
        return None


def run_registrar(
    config: Config, stop: StopEvent, on_ready: Callable[[], None] = lambda: None
) -> None:
    """Be the registrar process until `stop`. It is ready at once: the outbox waits for the rest.

    The trail is passed on to ``audit.syslog`` meanwhile, whoever writes it.

    Raises
    ------
    ConfigError
        If ``registry.url`` or ``audit.syslog`` cannot be used.
    SpoolError, AuditError
        If the spool or the folder of the trail cannot be used.
    """
    trail = AuditLog.open(
        config.audit_directory, _ring(config), checkpoint_every=config.audit.checkpoint_every
    )
    with sending(config), Spool(config.spool) as spool:
        registrar = Registrar(
            spool,
            lambda: Registry.open(config.registry_url, cache=config.spool.directory),
            trail,
            {destination.name: destination for destination in config.destination},
        )
        on_ready()
        try:
            registrar.run(stop)
        finally:
            registrar.close()
