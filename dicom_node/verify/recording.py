"""What a check leaves behind: verdicts in the registry, events in the audit trail.

A fault of either is logged and never stops a check: an auditor's question is answered from the
images, and what could not be remembered can be asked again.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

import structlog

from dicom_node.audit.events import Event, VerdictGiven, Verified
from dicom_node.audit.log import AuditLog
from dicom_node.config import Config
from dicom_node.errors import AuditError, ConfigError, RegistryError
from dicom_node.keys import KeyRing
from dicom_node.registry.records import MarkedInstance, VerdictEntry
from dicom_node.registry.registry import Registry
from dicom_node.verify.pacs import Wanted
from dicom_node.verify.study import CheckedInstance, StudyCheck, superseded

log = structlog.get_logger(__name__)

MISSING = "missing"
SUPERSEDED = "superseded"
"""Key in the details of a verdict on an older version than the last that was delivered."""
_Found = TypeVar("_Found")


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
        self._url = config.registry_url
        self._lock = threading.Lock()
        self._registry: Registry | None = None
        self._trail = AuditLog.open(
            config.audit_directory, ring, checkpoint_every=config.audit.checkpoint_every
        )
        try:
            self._opened()
        except RegistryError as error:
            log.error("registry not reached", reason=str(error))  # noqa: TRY400

    def close(self) -> None:
        """Close both."""
        self._trail.close()
        with self._lock:
            if self._registry is not None:
                self._registry.close()

    # The registry

    def entries(self, wanted: Wanted) -> tuple[MarkedInstance, ...]:
        """Return what is registered of what was asked for; () while the registry is away."""
        study = wanted.study_instance_uid
        none: tuple[MarkedInstance, ...] = ()
        found = self._ask(
            lambda registry: registry.instances(study_instance_uid=study, frames=False), none
        )
        return tuple(
            each for each in found
            if wanted.includes(each.study_instance_uid, each.series_instance_uid,
                               each.sop_instance_uid)
        )  # fmt: skip

    def last_verdicts(
        self, *, study: str = "", series: str = "", instance: str = ""
    ) -> tuple[VerdictEntry, ...]:
        """Return the last verdict on each instance; () while the registry is away."""
        return self._ask(
            lambda registry: registry.verdicts(
                study_instance_uid=study, series_instance_uid=series, sop_instance_uid=instance
            ),
            (),
        )

    def studies(
        self, since: float | None = None, until: float | None = None, modality: str = ""
    ) -> tuple[str, ...]:
        """Return Study Instance UIDs of what was marked (RegistryError, ConfigError).

        A plan that leaves out what the PACS lost would look like a whole one.
        """
        return self._opened().studies(since=since, until=until, modality=modality)

    def remember(
        self,
        found: Sequence[CheckedInstance],
        *,
        checked_by: str,
        missing: Iterable[MarkedInstance] = (),
        entries: Iterable[MarkedInstance] = (),
    ) -> None:
        """Keep the verdicts on some instances, and that others did not come back.

        `entries` is what the registry has of them: a verdict on an older version says so.
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
        if rows:
            self._ask(lambda registry: registry.add_verdicts(rows), None)
        self.record(*(verified(each, checked_by, now) for each in found))

    def register(self, entry: MarkedInstance) -> None:
        """Register an instance of our own that the PACS has taken."""
        self._ask(lambda registry: registry.add(entry), None)

    def _ask(self, question: Callable[[Registry], _Found], otherwise: _Found) -> _Found:
        try:
            return question(self._opened())
        except (RegistryError, ConfigError) as error:
            log.error("registry not reached", reason=str(error))  # noqa: TRY400
            return otherwise

    def _opened(self) -> Registry:
        with self._lock:
            if self._registry is None:
                self._registry = Registry.open(self._url)
            return self._registry

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


def verdict_given(
    check: StudyCheck, given_to: str, how: str, *, address: str = "", missing: int = 0
) -> VerdictGiven:
    """Return what the audit trail says of a verdict on a study that somebody was told.

    `missing` is for those who know that all of it was looked for: what a broken transfer did not
    bring may still be there.
    """
    counts = check.counts | ({MISSING: missing} if missing else {})
    return VerdictGiven(
        at=datetime.now(UTC), given_to=given_to, verdict=check.verdict, address=address, how=how,
        study_instance_uid=check.study_instance_uid, counts=counts,
    )


def verified(found: CheckedInstance, checked_by: str, at: datetime) -> Verified:
    """Return what the audit trail says of one check."""
    verdict = found.verdict
    return Verified(
        at=at, sop_instance_uid=found.sop_instance_uid, verdict=verdict.verdict,
        sop_class_uid=found.sop_class_uid, study_instance_uid=found.study_instance_uid,
        series_instance_uid=found.series_instance_uid, checked_by=checked_by,
        signed_by=verdict.signed_by.hex(), changed=verdict.changed, reason=verdict.reason,
        header_seal="" if verdict.header_seal == "valid" else verdict.header_seal,
    )  # fmt: skip
