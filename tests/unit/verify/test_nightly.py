"""The nightly re-check goes on after a restart, and night after night whatever happens."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dicom_node.audit.events import Event, VerdictGiven
from dicom_node.audit.message_xml import Node
from dicom_node.audit.messages import messages_of
from dicom_node.errors import AssociationRejected
from dicom_node.registry.records import DeliveryEntry, MarkedInstance
from dicom_node.verify import nightly
from dicom_node.verify.nightly import RUN_FILE, Nightly
from dicom_node.verify.study import CheckedInstance, StudyCheck
from dicom_node.verify.verdict import InstanceVerdict

STUDIES = ("a", "b", "c", "d")
AT = datetime(2026, 1, 1, tzinfo=UTC)


class Inspector:
    """Finds every study authentic; `before` is called with each, and may raise."""

    def __init__(self, folder: Path, before: Callable[[str], None] = lambda study: None) -> None:
        verify = SimpleNamespace(
            instances_per_s=1000.0, store_reports=False, nightly_sample=40, nightly_at="02:00"
        )
        self.config = SimpleNamespace(verify=verify, spool=SimpleNamespace(directory=folder))
        self.pacs = SimpleNamespace(name="pacs")
        self.recorder = self
        self.asked: list[str] = []
        self.recorded: list[Event] = []
        self.checks: dict[str, StudyCheck] = {}
        self._before = before

    def record(self, *events: Event) -> None:
        self.recorded += events

    def studies(self, **_: object) -> tuple[str, ...]:
        return STUDIES

    def entries(self, _wanted: object) -> tuple[None, ...]:
        return (None,) * 10

    def check(self, wanted: Any, *, progress: Any, **_: object) -> StudyCheck:
        study = wanted.study_instance_uid
        self._before(study)
        progress(0, 1)
        self.asked.append(study)
        if study in self.checks:
            return self.checks[study]
        found = CheckedInstance(InstanceVerdict("", f"{study}.1", "authentic"), study)
        return StudyCheck(study, AT, (found,))


@pytest.fixture
def hours(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let so many nights begin at once; the one after them is far away."""

    def nights(number: int) -> None:
        left = iter([timedelta()] * number)
        monkeypatch.setattr(
            nightly, "next_time", lambda _, now: now + next(left, timedelta(days=1))
        )

    return nights


def ended(thread: Nightly, stop: threading.Event) -> None:
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        threading.Event().wait(0.02)
    pytest.fail("it did not happen within 10 s")


def test_a_restarted_service_goes_on_with_the_nights_sample(
    tmp_path: Path, hours: Callable[[int], None]
) -> None:
    hours(1)
    stop = threading.Event()

    def shutting_down(_study: str) -> None:
        if len(first.asked) == 2:
            stop.set()

    first = Inspector(tmp_path, shutting_down)
    thread = Nightly(first, stop)  # type: ignore[arg-type]
    thread.start()
    until(stop.is_set)
    ended(thread, stop)
    assert len(first.asked) == 2

    hours(0)
    stop = threading.Event()
    second = Inspector(tmp_path)
    thread = Nightly(second, stop)  # type: ignore[arg-type]
    thread.start()
    until(lambda: len(second.asked) == 2)
    ended(thread, stop)
    assert sorted(first.asked + second.asked) == list(STUDIES)


def test_a_night_that_is_finished_is_not_gone_on_with_and_the_next_is_drawn_anew(
    tmp_path: Path,
) -> None:
    inspector = Inspector(tmp_path)
    night = Nightly(inspector, threading.Event())  # type: ignore[arg-type]
    assert night.go_on() is None
    for nights in (1, 2):
        summary = night.check_sample()
        assert summary is not None
        assert summary.studies == len(STUDIES)
        assert len(inspector.asked) == nights * len(STUDIES)
        assert night.go_on() is None


@pytest.mark.parametrize(
    "fault",
    [OSError(28, "No space left on device"), RuntimeError("a bug"),
     AssociationRejected("pacs", "no connection")],
)  # fmt: skip
def test_no_fault_ends_the_schedule(
    tmp_path: Path, hours: Callable[[int], None], fault: Exception
) -> None:
    hours(2)
    faults = [fault] * len(STUDIES if isinstance(fault, AssociationRejected) else "1")

    def failing(_study: str) -> None:
        if faults:
            raise faults.pop()

    stop, inspector = threading.Event(), Inspector(tmp_path, failing)
    thread = Nightly(inspector, stop)  # type: ignore[arg-type]
    thread.start()
    until(lambda: len(inspector.asked) == len(STUDIES))
    assert thread.is_alive()
    ended(thread, stop)


def test_a_run_file_that_cannot_be_read_costs_no_night(
    tmp_path: Path, hours: Callable[[int], None]
) -> None:
    (tmp_path / RUN_FILE).write_text("no json\n")
    hours(1)
    stop, inspector = threading.Event(), Inspector(tmp_path)
    thread = Nightly(inspector, stop)  # type: ignore[arg-type]
    thread.start()
    until(lambda: len(inspector.asked) == len(STUDIES))
    ended(thread, stop)


def check_of(study: str, *, marked_at: int = 7, **more: Any) -> StudyCheck:
    """Return an authentic instance marked at 7 whose last version was delivered at `marked_at`."""
    uid = f"{study}.1"
    said = InstanceVerdict("", uid, "authentic", marked_at=7)
    last = MarkedInstance(
        uid, "1.2.1", study, "1.1", "1.2.840.10008.1.2.1", "marked", b"", b"", b"", marked_at, 0.0,
        "CT1", deliveries=(DeliveryEntry("pacs", 0, 0.0),),
    )  # fmt: skip
    return StudyCheck(study, AT, (CheckedInstance(said, study),), entries=(last,), **more)


def test_what_a_night_finds_missing_or_superseded_is_in_the_trail_and_raises_an_alert(
    tmp_path: Path,
) -> None:
    inspector = Inspector(tmp_path)
    inspector.checks = {
        "a": check_of("a", missing=("a.2", "a.3")), "b": check_of("b", marked_at=9),
        "c": check_of("c", missing=("c.2",), unsent=("c.2",), failure="not sent"),
    }  # fmt: skip
    Nightly(inspector, threading.Event()).check_sample()  # type: ignore[arg-type]
    told = {
        each.study_instance_uid: each for each in inspector.recorded
        if isinstance(each, VerdictGiven)
    }  # fmt: skip
    assert {study: dict(each.counts) for study, each in told.items()} == {
        "a": {"authentic": 1, "missing": 2}, "b": {"authentic": 1, "superseded": 1},
        "c": {"authentic": 1}, "d": {"authentic": 1},
    }  # fmt: skip
    assert {(each.how, each.given_to) for each in told.values()} == {("nightly", "nightly")}
    node = Node("DICOMNODE", "node.example", "TESTS")
    alarmed = {
        study for study, each in told.items()
        if any(b'csd-code="110113"' in message.xml for message in messages_of([each], node))
    }  # fmt: skip
    assert alarmed == {"a", "b"}
