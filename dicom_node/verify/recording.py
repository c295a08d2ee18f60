"""What a check asks of the registry, and leaves behind there and in the audit trail.

A question that the registry cannot be asked is an error: no answer would look like an empty one. A
fault of writing is logged and stops nothing: what could not be remembered can be checked again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime

import structlog

from dicom_node.audit.events import Event
from dicom_node.audit.log import AuditLog
from dicom_node.config import Config
from dicom_node.errors import AuditError, RegistryError
from dicom_node.keys import KeyRing
from dicom_node.registry.access import RegistryAccess
from dicom_node.registry.database import STATEMENT_TIMEOUT_S
from dicom_node.registry.records import MarkedInstance, VerdictEntry
from dicom_node.registry.registry import Registry
from dicom_node.verify.pacs import Wanted
from dicom_node.verify.study import CheckedInstance, superseded
from dicom_node.verify.telling import MISSING, SUPERSEDED, verified

log = structlog.get_logger(__name__)

REGISTRY_AWAY = "the registry is away"
"""What clients are told; why, and where it is, is in the log."""

Watch = Callable[[], object]
"""Called while the registry is waited for; may raise to give the wait up."""


def _unwatched() -> None:
    """Wait to the end."""


class Recorder:
    """The registry and the audit trail as the verification service uses them; for all threads.

    Parameters
    ----------
    ring
        Signs checkpoints of the trail.

    Raises
    ------
    ConfigError
        If the registry's URL cannot be used.
    AuditError
        If the trail's folder cannot be made.
    """

    def __init__(self, config: Config, ring: KeyRing) -> None:
        self._access = RegistryAccess(config.registry_url)
        self._trail = AuditLog.open(
            config.audit_directory, ring, checkpoint_every=config.audit.checkpoint_every
        )
        with suppress(RegistryError):  # the log has it; it may come yet
            self._access.ask(lambda registry: None)

    def close(self) -> None:
        """Close both."""
        self._trail.close()
        self._access.close()

    # The registry

    def entries(self, wanted: Wanted, watch: Watch = _unwatched) -> tuple[MarkedInstance, ...]:
        """Return what is registered of what was asked for (RegistryError, what `watch` raises)."""
        study = wanted.study_instance_uid
        found = self._access.ask(
            lambda registry: registry.instances(study_instance_uid=study, frames=False),
            watch=watch,
        )
        return tuple(
            each for each in found
            if wanted.includes(each.study_instance_uid, each.series_instance_uid,
                               each.sop_instance_uid)
        )  # fmt: skip

    def last_verdicts(
        self, *, study: str = "", series: str = "", instance: str = "", watch: Watch = _unwatched
    ) -> tuple[VerdictEntry, ...]:
        """Return the last verdict on each instance (RegistryError, what `watch` raises)."""
        return self._access.ask(
            lambda registry: registry.verdicts(
                study_instance_uid=study, series_instance_uid=series, sop_instance_uid=instance
            ),
            watch=watch,
        )

    def studies(
        self, since: float | None = None, until: float | None = None, modality: str = ""
    ) -> tuple[str, ...]:
        """Return Study Instance UIDs of what was marked (RegistryError)."""
        return self._access.ask(
            lambda registry: registry.studies(since=since, until=until, modality=modality),
            within_s=STATEMENT_TIMEOUT_S,
        )

    def remember(
        self,
        found: Sequence[CheckedInstance],
        *,
        checked_by: str,
        missing: Iterable[MarkedInstance] = (),
        entries: Iterable[MarkedInstance] = (),
        watch: Watch = _unwatched,
    ) -> None:
        """Keep the verdicts on some instances, and that others did not come back.

        `entries` is what the registry has of them: a verdict on an older version says so. The trail
        is told whatever `watch` raises.
        """
        now = datetime.now(UTC)
        older = set(superseded(found, entries))
        rows = [
            VerdictEntry(
                each.sop_instance_uid, each.series_instance_uid, each.study_instance_uid,
                each.verdict.verdict, now.timestamp(), checked_by,
                _details(each, older=each.sop_instance_uid in older),
            )
            for each in found if each.sop_instance_uid
        ]  # fmt: skip
        rows += [
            VerdictEntry(
                each.sop_instance_uid, each.series_instance_uid, each.study_instance_uid, MISSING,
                now.timestamp(), checked_by,
            )
            for each in missing
        ]  # fmt: skip
        try:
            if rows:
                self._write(lambda registry: registry.add_verdicts(rows), watch)
        finally:
            self.record(*(verified(each, checked_by, now) for each in found))

    def register(self, entry: MarkedInstance) -> None:
        """Register an instance of our own that the PACS has taken."""
        self._write(lambda registry: registry.add(entry))

    def _write(self, change: Callable[[Registry], None], watch: Watch = _unwatched) -> None:
        try:
            self._access.ask(change, watch=watch, within_s=STATEMENT_TIMEOUT_S)
        except RegistryError as error:
            log.error("registry not written", reason=str(error))  # noqa: TRY400

    # The trail

    def record(self, *events: Event) -> None:
        """Tell the audit trail, durably."""
        if not events:
            return
        try:
            self._trail.append_many([(event, "") for event in events])
        except AuditError as error:
            kinds = sorted({event.kind for event in events})
            log.error("audit trail not written", kinds=kinds, reason=str(error))  # noqa: TRY400


def _details(found: CheckedInstance, *, older: bool) -> str:
    line = found.to_json() | ({SUPERSEDED: True} if older else {})
    line.pop("path", None)
    return json.dumps(line, separators=(",", ":"))
