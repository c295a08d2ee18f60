"""The nightly re-check: a sample drawn by chance, at the hour that ``[verify]`` names.

The plan of the night and every finished study are in a file of the spool: a service that was
stopped in the middle goes on with what is left when it is started again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import structlog

from dicom_node.errors import ConfigError, NodeError
from dicom_node.verify import audit_run
from dicom_node.verify.audit_run import RunFile, Summary
from dicom_node.verify.checked_fetch import CalledOff
from dicom_node.verify.inspector import Inspector
from dicom_node.verify.study import StudyCheck
from dicom_node.verify.telling import verdict_given

log = structlog.get_logger(__name__)

CHECKED_BY = "nightly"
RUN_FILE = "nightly-run.jsonl"
_LONGEST_WAIT_S = 300.0


class Nightly(threading.Thread):
    """Waits for the hour and checks a sample, every night until `stop` is set.

    It does nothing where ``nightly_sample`` is 0.
    """

    def __init__(self, inspector: Inspector, stop: threading.Event) -> None:
        super().__init__(name="nightly", daemon=True)
        self._inspector = inspector
        self._stop_event = stop

    def run(self) -> None:
        """Go on with a night that was cut short, then wait and check, night after night.

        What fails tonight, for whatever reason, is logged, and another night follows.
        """
        verify = self._inspector.config.verify
        if not verify.nightly_sample:
            return
        due = next_time(verify.nightly_at, datetime.now().astimezone())
        self._attempt(self.go_on)
        while not self._stop_event.is_set():
            left_s = (due - datetime.now().astimezone()).total_seconds()
            if left_s > 0:
                # In short steps: the clock may be set meanwhile.
                self._stop_event.wait(min(left_s, _LONGEST_WAIT_S))
                continue
            due = next_time(verify.nightly_at, datetime.now().astimezone())
            self._attempt(self.check_sample)

    def _attempt(self, check: Callable[[], object]) -> None:
        try:
            check()
        except CalledOff:
            log.info("nightly check cut short; it goes on when the service is started again")
        except NodeError as error:
            log.error("nightly check failed", reason=str(error))  # noqa: TRY400
        except Exception:
            # Nobody watches this thread: a night that was lost is seen, and not the last one.
            log.exception("nightly check failed")

    def go_on(self) -> Summary | None:
        """Check what is left of a night that was cut short; None where nothing is."""
        file = RunFile(self._path)
        if not file.left:
            return None
        log.info("nightly check goes on", finished=len(file.finished), studies=len(file.studies))
        return self._check(file)

    @property
    def _path(self) -> Path:
        return self._inspector.config.spool.directory / RUN_FILE

    def check_sample(self) -> Summary | None:
        """Check tonight's sample, record and log what was found; None where nothing is to draw."""
        verify = self._inspector.config.verify
        try:
            studies = audit_run.sample(self._inspector, verify.nightly_sample)
        except ConfigError:
            log.info("nothing marked yet to draw a sample from")
            return None
        self._path.unlink(missing_ok=True)
        file = RunFile(self._path)
        file.begin(studies)
        return self._check(file)

    def _check(self, file: RunFile) -> Summary:
        def progress(_done: int, _total: int) -> None:
            if self._stop_event.is_set():
                raise CalledOff("shutting down")

        def told(check: StudyCheck) -> None:
            self._inspector.recorder.record(
                verdict_given(check, CHECKED_BY, CHECKED_BY, missing=len(check.absent))
            )
            if not check.sound and not check.unfinished:
                log.error(
                    "study not sound", study_instance_uid=check.study_instance_uid,
                    verdict=check.verdict, counts=check.counts, missing=len(check.absent),
                    unsent=len(check.unsent),
                    **check.headers.to_log(),
                )  # fmt: skip
            elif check.headers:
                log.warning(
                    "headers not as signed", study_instance_uid=check.study_instance_uid,
                    **check.headers.to_log(),
                )  # fmt: skip

        found = audit_run.run(
            self._inspector, file, checked_by=CHECKED_BY, told=told, progress=progress
        )
        log.info("nightly sample checked", **found.to_json()["summary"])
        return found


def next_time(at: str, now: datetime) -> datetime:
    """Return when it is next `at` (HH:MM, the time zone of `now`)."""
    hour, minute = map(int, at.split(":"))
    then = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    return then if then > now else then + timedelta(days=1)
