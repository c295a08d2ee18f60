"""Everything a re-check needs, held together: the PACS, the fetcher, the pool, the recorder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from types import TracebackType

from dicom_node.config import Config
from dicom_node.keys import KeyRing
from dicom_node.registry.records import MarkedInstance
from dicom_node.verify.admission import pacs_only
from dicom_node.verify.checked_fetch import Arrival, CheckedFetch, Pace
from dicom_node.verify.checking import Setup
from dicom_node.verify.checking_pool import CheckingPool
from dicom_node.verify.fetching import Fetched, Fetcher
from dicom_node.verify.inner_storage import scratch_folder
from dicom_node.verify.pacs import Pacs, Planned, Wanted
from dicom_node.verify.recording import Recorder, Watch
from dicom_node.verify.study import CheckedInstance, StudyCheck, remove_files, study_check

_BATCH = 50

Progress = Callable[[int, int], None]
"""Told ``(done, total)`` now and then while a check goes on; may raise to call it off."""


class Inspector:
    """Re-checks what a PACS has; a context. Safe to use from several threads.

    Raises
    ------
    ConfigError
        If there is no PACS to ask, or a port is in use.
    KeyRingError, EngineError, SpoolError, AuditError
        If keys, networks, scratch folder or audit trail cannot be used.
    """

    def __init__(self, config: Config, *, listen: bool) -> None:
        self.config = config
        self.pacs = Pacs.of(config)
        self.ring = KeyRing.open(config.keys.directory)
        with ExitStack() as stack:
            folder = scratch_folder(config)
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            self.recorder = Recorder(config, self.ring)
            stack.callback(self.recorder.close)
            admits = pacs_only(config.verify, self.recorder.record)
            self.fetcher = Fetcher(config, self.pacs, folder, admits, self.recorder.record)
            stack.callback(self.fetcher.close)
            if listen:
                self.fetcher.listen()
            setup = Setup(config.keys.directory, config.watermark.engine,
                          registry=config.registry_url)  # fmt: skip
            self.pool = stack.enter_context(CheckingPool(setup, config.verify.workers))
            self._stack = stack.pop_all()

    def __enter__(self) -> Inspector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._stack.close()

    def check(
        self,
        wanted: Wanted,
        *,
        checked_by: str,
        progress: Progress = lambda done, total: None,
        pace: Pace | None = None,
        keep_files: bool = False,
    ) -> StudyCheck:
        """Fetch and check what is wanted; every verdict is remembered.

        Parameters
        ----------
        keep_files
            Leave the fetched files, named by the instances' `path`: the caller removes them. Where
            the check fails none is left.

        Raises
        ------
        ForwardError
            If the PACS cannot be asked or does not finish: nothing is said of what is missing.
        RegistryError
            If the registry cannot be asked what ought to be there. Nothing is fetched then.
        """
        found: list[CheckedInstance] = []
        try:
            return self._check(wanted, found, checked_by, progress, pace, keep_files)
        except BaseException:
            remove_files(found)
            raise

    def _check(
        self,
        wanted: Wanted,
        found: list[CheckedInstance],
        checked_by: str,
        progress: Progress,
        pace: Pace | None,
        keep_files: bool,
    ) -> StudyCheck:
        def alive() -> bool:
            progress(0, 0)
            return False

        planned = self.pacs.plan(wanted, alive)
        entries = self.recorder.entries(wanted, alive)
        shortfall: Fetched | None = None
        if planned:
            with CheckedFetch(
                self.fetcher, self.pool, wanted, planned, pace=pace, keep=keep_files
            ) as arrivals:
                self._follow(
                    arrivals, found, len(planned), checked_by, progress, keep_files, entries
                )
                if arrivals.error is not None:
                    raise arrivals.error
                shortfall = arrivals.shortfall
        study = wanted.study_instance_uid
        check = study_check(
            study, found, entries, destination=self.pacs.name,
            listed=[each.sop_instance_uid for each in planned], checked_at=datetime.now(UTC),
            failure=shortfall.reason if shortfall else "",
            failed=shortfall.failed_uids if shortfall else (), asked=wanted == Wanted(study),
        )  # fmt: skip
        self.recorder.remember(
            (), checked_by=checked_by, missing=missing_entries(check), watch=alive
        )
        return check

    def _follow(
        self,
        arrivals: CheckedFetch,
        found: list[CheckedInstance],
        total: int,
        checked_by: str,
        progress: Progress,
        keep_files: bool,
        entries: tuple[MarkedInstance, ...],
    ) -> None:
        remembered = 0

        def remember() -> None:
            self.recorder.remember(
                found[remembered:], checked_by=checked_by, entries=entries,
                watch=lambda: progress(len(found), total),
            )  # fmt: skip

        try:
            for arrival in arrivals:
                if arrival is not None:
                    found.append(found_of(arrival, keep_path=keep_files))
                progress(len(found), total)
                if len(found) - remembered >= _BATCH:
                    remember()
                    remembered = len(found)
        finally:
            remember()

    def expected(
        self, wanted: Wanted, planned: tuple[Planned, ...], watch: Watch
    ) -> tuple[tuple[MarkedInstance, ...], tuple[str, ...]]:
        """Return what is registered of what is wanted, and what of it the PACS does not list.

        Raises
        ------
        RegistryError
            If the registry cannot be asked. What `watch` raises while it is waited for is raised.
        """
        entries = self.recorder.entries(wanted, watch)
        check = study_check(wanted.study_instance_uid, (), entries, destination=self.pacs.name)
        listed = {each.sop_instance_uid for each in planned}
        return entries, tuple(uid for uid in check.missing if uid not in listed)


def found_of(arrival: Arrival, *, keep_path: bool = False) -> CheckedInstance:
    """Return what was found of an arrival; without its path where the file will be gone."""
    found = arrival.checked.found
    if not found.sop_instance_uid:
        # Unreadable: what the PACS called it is all there is.
        verdict = replace(found.verdict, sop_instance_uid=arrival.incoming.sop_instance_uid)
        found = replace(found, verdict=verdict)
    return found if keep_path else replace(found, path=None)


def missing_entries(check: StudyCheck) -> tuple[MarkedInstance, ...]:
    """Return the registry's records of what is missing, but for what the PACS failed to send."""
    known = {each.sop_instance_uid: each for each in check.entries}
    return tuple(known[uid] for uid in check.absent if uid in known)
