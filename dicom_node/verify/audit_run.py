"""One run of re-checks over many studies: paced, resumable, summed up.

The plan and every finished study are lines of a file, so that a run that was stopped, or that met
a PACS that was away, goes on where it was.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import structlog

from dicom_node.audit.recording import key_used
from dicom_node.errors import ConfigError, ForwardError, NodeError, RegistryError
from dicom_node.verify import identifiers
from dicom_node.verify.checked_fetch import Pace
from dicom_node.verify.inspector import Inspector
from dicom_node.verify.pacs import Wanted
from dicom_node.verify.study import StudyCheck, remove_files, was_delivered

log = structlog.get_logger(__name__)

_FORMAT = "dicom-node audit run 1"
_FIRST_DAY, _LAST_DAY = date(1970, 1, 2), date(9998, 12, 31)


class RunError(NodeError):
    """The file of a run cannot be read or written."""


@dataclass
class Summary:
    """What a run has found so far.

    Attributes
    ----------
    counts
        Instances by verdict.
    unsound
        Studies of which something is not authentic or missing.
    unsent
        Of those missing, what the PACS has and failed to send.
    headers_changed, headers_unsealed
        Instances whose header is not what was signed, or has no seal that holds; their studies may
        be sound.
    failed
        Studies that could not be checked, with the reason.
    """

    studies: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    unsent: int = 0
    extra: int = 0
    transcoded: int = 0
    headers_changed: int = 0
    headers_unsealed: int = 0
    unsound: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, check: StudyCheck) -> None:
        """Take in one study."""
        self.take(line_of(check))

    def take(self, line: dict[str, Any]) -> None:
        """Take in one finished study as the file of a run has it."""
        self.studies += 1
        self.counts.update(line["counts"])
        self.missing += line["missing"]
        self.extra += line["extra"]
        self.transcoded += line["transcoded"]
        # A run that an earlier release began has no such numbers.
        self.unsent += line.get("unsent", 0)
        self.headers_changed += line.get("headers_changed", 0)
        self.headers_unsealed += line.get("headers_unsealed", 0)
        if not line["sound"]:
            self.unsound.append(line["study"])

    def to_json(self) -> dict[str, Any]:
        """Return the last line of ``audit --json``."""
        return {
            "summary": {
                "studies": self.studies, "instances": sum(self.counts.values()),
                "counts": dict(self.counts), "missing": self.missing, "unsent": self.unsent,
                "extra": self.extra,
                "transcoded": self.transcoded, "headers_changed": self.headers_changed,
                "headers_unsealed": self.headers_unsealed, "unsound": self.unsound,
                "failed": self.failed,
            }
        }  # fmt: skip


def line_of(check: StudyCheck) -> dict[str, Any]:
    """Return what the file of a run keeps of a study."""
    headers = check.headers
    return {
        "study": check.study_instance_uid, "sound": check.sound, "counts": check.counts,
        "missing": len(check.missing), "unsent": len(check.unsent), "extra": len(check.extra),
        "transcoded": len(check.transcoded), "headers_changed": headers.changed,
        "headers_unsealed": headers.unsealed,
    }  # fmt: skip


class RunFile:
    """The file of a run: its plan, then a line for every finished study (RunError).

    Parameters
    ----------
    path
        None: nothing is kept.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.studies: tuple[str, ...] = ()
        self.finished: list[dict[str, Any]] = []
        if path is not None and path.exists():
            self._read(path)

    @property
    def begun(self) -> bool:
        """Whether there is a plan, of one study at least."""
        return bool(self.studies)

    def begin(self, studies: Sequence[str]) -> None:
        """Write the plan down; one of no study is not kept, so that the next run looks again."""
        self.studies = tuple(studies)
        if studies:
            self._append({"format": _FORMAT, "studies": list(studies)})

    def done(self, check: StudyCheck) -> None:
        """Write down that a study is finished."""
        line = line_of(check)
        self.finished.append(line)
        self._append(line)

    @property
    def left(self) -> tuple[str, ...]:
        """Studies that are not finished, in the order of the plan."""
        done = {line["study"] for line in self.finished}
        return tuple(study for study in self.studies if study not in done)

    def _read(self, path: Path) -> None:
        try:
            # Half a line is what a power failure leaves of the last study: it is checked again.
            text = path.read_text("ascii")
            lines = [json.loads(line) for line in text.splitlines(keepends=True)
                     if line.endswith("\n")]  # fmt: skip
            if lines and lines[0].get("format") != _FORMAT:
                raise RunError(f"{path}: not the file of an audit run")
            for line in lines:
                self._take(line)
            if not text.endswith("\n"):
                os.truncate(path, text.rfind("\n") + 1)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path}: not the file of an audit run: {error}") from error

    def _take(self, line: dict[str, Any]) -> None:
        """Take in a line; the last plan counts, as earlier releases wrote empty ones before it."""
        if "format" in line:
            self.studies, self.finished = tuple(map(str, line["studies"])), []
        elif line["study"] in self.studies:
            self.finished.append(line)

    def _append(self, line: dict[str, Any]) -> None:
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="ascii") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"{self._path}: {error.strerror or error}") from error


def run(
    inspector: Inspector,
    file: RunFile,
    *,
    checked_by: str,
    told: Callable[[StudyCheck], None] = lambda check: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    keep_files: bool = False,
) -> Summary:
    """Check every study of a plan that is not finished.

    Parameters
    ----------
    told
        Given each study when it is finished; with `keep_files` its files are there until it
        returns.
    progress
        Told ``(done, total)`` of the study in hand; may raise to end the run.

    Returns
    -------
    Summary
        Of all of the plan, what an earlier run finished included. A study that PACS or registry
        could not be asked about, or that the PACS failed to send whole, is in `failed`, and is left
        for the next run.
    """
    keep_files = keep_files or inspector.config.verify.store_reports
    summary = Summary()
    for line in file.finished:
        summary.take(line)
    pace = Pace(inspector.config.verify.instances_per_s)
    for study in file.left:
        try:
            check = inspector.check(
                Wanted(study), checked_by=checked_by, progress=progress, pace=pace,
                keep_files=keep_files,
            )  # fmt: skip
        except (ForwardError, RegistryError) as error:
            log.warning("study not checked", study_instance_uid=study, reason=str(error))
            summary.failed[study] = str(error)
            continue
        try:
            if not check.instances and not check.missing:
                summary.failed[study] = f"{inspector.pacs.name} does not have it"
            elif check.unfinished:
                # The next run may have more luck; what came was remembered.
                log.warning("study not checked", study_instance_uid=study, reason=check.failure)
                summary.failed[study] = check.failure
            else:
                summary.add(check)
            told(check)
            if inspector.config.verify.store_reports and check.instances:
                _store_report(check, inspector, checked_by)
        finally:
            remove_files(check.instances)
        if study not in summary.failed:
            file.done(check)
    return summary


def _store_report(check: StudyCheck, inspector: Inspector, checked_by: str) -> None:
    """Store the structured report; a PACS that does not take it is told of in the log."""
    from dicom_node.verify.report_storing import Destination, store_study_report

    to = Destination.of(inspector.config)
    inspector.recorder.record(key_used(inspector.ring, "sign"))
    try:
        entry = store_study_report(check, to, inspector.ring, checked_by=checked_by)
    except NodeError as error:
        log.error(  # noqa: TRY400 - the reason says it
            "report not stored", study_instance_uid=check.study_instance_uid, reason=str(error)
        )
    else:
        inspector.recorder.register(entry)


# Which studies


def by_date(
    inspector: Inspector, since: date | None, until: date | None, modality: str = ""
) -> tuple[str, ...]:
    """Return the studies of these days (both included) that the PACS has or ought to have.

    The PACS is asked by Study Date. The registry keeps no Study Date: it adds what was marked on
    these days (local time) and delivered to the PACS, so that a study deleted there is missed. One
    that was marked on another day than these, and deleted, is not, whatever its Study Date was.

    Raises
    ------
    ForwardError
        If the PACS cannot be asked.
    RegistryError
        If the registry cannot: without it nothing that was deleted would be missed.
    """
    found = dict.fromkeys(_listed(inspector, since, until, modality))
    marked = inspector.recorder.studies(
        since=None if since is None else _clock_s(since, time.min),
        until=None if until is None else _clock_s(until, time.max),
        modality=modality,
    )
    expected = (each for each in marked if each not in found and _was_delivered(inspector, each))
    return tuple(dict.fromkeys([*found, *expected]))


def _listed(
    inspector: Inspector, since: date | None, until: date | None, modality: str
) -> Iterator[str]:
    """Yield the studies that the PACS says it has."""
    span = f"{since:%Y%m%d}-" if since else "-"
    span += f"{until:%Y%m%d}" if until else ""
    values = {"StudyDate": span} if span != "-" else {}
    if modality:
        values["ModalitiesInStudy"] = modality
    keys = identifiers.keys_of("STUDY", values, ("StudyInstanceUID", "ModalitiesInStudy"))
    yield from _with_modality(inspector.pacs.studies_by(keys), modality)


def _clock_s(day: date, at: time) -> float:
    """Return Unix seconds of a local time; days that have none become the nearest that has."""
    day = min(max(day, _FIRST_DAY), _LAST_DAY)
    return datetime.combine(day, at).timestamp()


def _was_delivered(inspector: Inspector, study: str) -> bool:
    """Say whether the PACS has ever taken anything of a study."""
    entries = inspector.recorder.entries(Wanted(study))
    return any(was_delivered(each, inspector.pacs.name) for each in entries)


def _with_modality(matches: Iterable[Any], modality: str) -> Iterator[str]:
    """Yield studies; a PACS may not know the optional key Modalities in Study."""
    for match in matches:
        uid = identifiers.text_of(match, "StudyInstanceUID")
        said = identifiers.text_of(match, "ModalitiesInStudy")
        if uid and (not modality or not said or modality in said.split("\\")):
            yield uid


def sample(
    inspector: Inspector, instances: int, modality: str = "", *, chance: random.Random | None = None
) -> tuple[str, ...]:
    """Return studies drawn by chance from the registry, with about `instances` instances in all.

    Raises
    ------
    ConfigError
        If the registry knows of none.
    RegistryError
        If it cannot be asked.
    """
    known = inspector.recorder.studies(modality=modality)
    if not known:
        raise ConfigError("the registry knows of no study to draw from; use --since or --study")
    return draw(inspector, known, instances, chance=chance)


def draw(
    inspector: Inspector, studies: Sequence[str], instances: int,
    *, chance: random.Random | None = None,
) -> tuple[str, ...]:  # fmt: skip
    """Return some of these studies, drawn by chance, with about `instances` instances in all.

    One that the registry does not know counts as one instance; it has to be there (RegistryError).
    """
    known = list(studies)
    (chance or random.SystemRandom()).shuffle(known)
    drawn, left = [], instances
    for study in known:
        if left <= 0:
            break
        drawn.append(study)
        left -= max(1, len(inspector.recorder.entries(Wanted(study))))
    return tuple(drawn)
