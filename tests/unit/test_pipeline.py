"""What becomes of a job, whatever the marker answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog

from dicom_node import heartbeat, pipeline
from dicom_node.config import SpoolConfig
from dicom_node.errors import DecoderLost, EngineError, PixelError, ReadBackError
from dicom_node.facts import InstanceFacts
from dicom_node.pipeline import MarkWorker, retry_delay_s
from dicom_node.spool import Job, Spool
from dicom_node.spool.reserve import Reserve


@dataclass
class Outcome:
    action: str = "marked"
    reason: str = ""
    sop_class_uid: str = "1.2.840.10008.5.1.4.1.1.2"
    sop_instance_uid: str = "1.2.3"
    study_instance_uid: str = "1.2"
    series_instance_uid: str = "1.2.1"
    transfer_syntax_uid: str = "1.2.840.10008.1.2.1"
    frames: int = 1
    message: tuple[str, ...] = ("ab",)
    psnr_db: float | None = 44.0
    ssim: float | None = 0.99
    max_change: int | None = 3
    stage_s: dict[str, float] = field(default_factory=dict)
    facts: InstanceFacts = field(default_factory=InstanceFacts)


class Stamp:
    """Marks by appending; answers, raises or acts as told."""

    def __init__(
        self,
        answer: Outcome | BaseException | Callable[[Path], Outcome],
        mark: bytes = b" marked",
    ) -> None:
        self.answer = answer
        self.stamp = mark
        self.times: list[datetime] = []

    def mark(self, source: Path, out: Path, *, marked_at: datetime) -> Any:
        self.times.append(marked_at)
        if isinstance(self.answer, BaseException):
            raise self.answer
        outcome = self.answer(source) if callable(self.answer) else self.answer
        if outcome.action not in ("held", "rejected"):
            out.write_bytes(source.read_bytes() + self.stamp)
        return outcome


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with Spool(SpoolConfig(directory=tmp_path / "spool", min_free_mib=0)) as opened:
        yield opened


def receive(spool: Spool) -> None:
    spool.receive(
        b"header ",
        b"pixels",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        sop_instance_uid="1.2.3",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
    )


def run_one(spool: Spool, stamp: Stamp | None, **more: Any) -> Job:
    receive(spool)
    marker_for = None if stamp is None else lambda _key: stamp
    values: dict[str, Any] = {"current_key_id": b"k" * 8, "destinations": ["pacs"]} | more
    worker = MarkWorker(spool, marker_for, **values)
    assert worker.step()
    assert not worker.step()
    assert list(spool._files.scratch.glob("job-*")) == []
    return spool.jobs()[-1]


def test_a_marked_instance_is_queued_for_every_destination(spool: Spool) -> None:
    job = run_one(spool, Stamp(Outcome()), destinations=["pacs", "archive"])
    assert (job.state, job.action, job.key_id) == ("marked", "marked", b"k" * 8)
    assert job.study_instance_uid == "1.2"
    for name in ("pacs", "archive"):
        [delivery] = spool.claim_delivery(name)
        assert delivery.path.read_bytes() == b"header pixels marked"


def test_the_marks_carry_the_time_of_the_first_claim(spool: Spool) -> None:
    stamp = Stamp(Outcome())
    job = run_one(spool, stamp)
    assert job.marked_at is not None
    assert stamp.times == [datetime.fromtimestamp(job.marked_at, UTC)]


def test_with_marking_off_the_received_file_is_sent_as_it_is(spool: Spool) -> None:
    job = run_one(spool, None)
    assert (job.state, job.action, job.result) == ("marked", "untouched", None)
    [delivery] = spool.claim_delivery("pacs")
    assert delivery.path.read_bytes() == b"header pixels"


def test_a_policy_of_hold_or_reject_becomes_the_state_with_its_reason(spool: Spool) -> None:
    job = run_one(spool, Stamp(Outcome(action="held", reason="a segmentation")))
    assert (job.state, job.reason) == ("held", "a segmentation")
    spool.drop(job.id)
    job = run_one(spool, Stamp(Outcome(action="rejected", reason="a report")))
    assert (job.state, job.reason) == ("rejected", "a report")
    assert job.path.exists()


def test_a_sealed_instance_says_why_it_is_not_marked(spool: Spool) -> None:
    job = run_one(spool, Stamp(Outcome(action="sealed", reason="no pixel data", psnr_db=None)))
    assert (job.state, job.action, job.reason) == ("marked", "sealed", "no pixel data")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PixelError("row 3 is missing"), "row 3 is missing"),
        (ReadBackError("frame 1 did not come back"), "frame 1 did not come back"),
        (ZeroDivisionError("Doe^Jane"), "fault in the node: ZeroDivisionError"),
    ],
)
def test_what_can_never_work_is_held_with_the_reason(
    spool: Spool, error: Exception, words: str
) -> None:
    job = run_one(spool, Stamp(error))
    assert (job.state, job.reason) == ("held", words)


def test_an_instance_whose_received_file_is_gone_is_held(spool: Spool) -> None:
    def mark(source: Path) -> Outcome:
        source.unlink()
        source.read_bytes()
        raise AssertionError("there is nothing to read")

    job = run_one(spool, Stamp(mark))
    assert (job.state, job.reason) == ("held", "received file is missing")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(28, "No space left on device"),
        OSError(24, "Too many open files"),
        FileNotFoundError(2, "No such file"),  # another one: what was received is there
        EngineError("weights altered"),
        DecoderLost("the decoder died of signal 9, twice"),
    ],
)
def test_what_is_our_own_failure_is_tried_again_later(spool: Spool, error: Exception) -> None:
    job = run_one(spool, Stamp(error))
    assert job.state == "received"
    assert job.reason
    assert job.due_at > job.updated_at + 1


def test_a_result_that_finds_no_room_is_marked_again_at_once_with_the_reserve(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reserve, "needed", True)
    stamp = Stamp(OSError(28, "No space left on device"))
    receive(spool)
    worker = MarkWorker(spool, lambda _key: stamp, current_key_id=None, destinations=["pacs"])
    assert worker.step()
    [job] = spool.jobs()
    assert (job.state, job.reason, job.attempts) == ("received", "", 0)
    assert not (spool.settings.directory / "journal.reserve").exists()
    stamp.answer = Outcome()
    assert worker.step()
    assert spool.tally()["marked"] == 1


def test_what_waits_for_room_is_tried_often_for_room_comes_with_a_delivery(spool: Spool) -> None:
    receive(spool)
    stamp = Stamp(OSError(28, "No space left on device"))
    worker = MarkWorker(spool, lambda _key: stamp, current_key_id=None, destinations=["pacs"])
    for _ in range(12):
        spool.retry_now(1)
        assert worker.step()
    [job] = spool.jobs()
    assert 0 < job.due_at - job.updated_at <= pipeline.RETRY_FULL_S


def test_an_instance_that_never_fits_into_memory_is_held_in_the_end(spool: Spool) -> None:
    job = run_one(spool, Stamp(MemoryError()))
    worker = MarkWorker(
        spool, lambda _key: Stamp(MemoryError()), current_key_id=None, destinations=["pacs"]
    )
    for _ in range(pipeline.MEMORY_ATTEMPTS - 1):
        spool.retry_now(job.id)
        assert worker.step()
    [job] = spool.jobs()
    assert (job.state, job.reason) == ("held", "not enough memory to mark it, 5 times")


def test_an_instance_whose_decoder_is_lost_every_time_is_held_in_the_end(spool: Spool) -> None:
    lost = Stamp(DecoderLost("frame 1 of 1: the decoder died of signal 9, twice"))
    job = run_one(spool, lost)
    worker = MarkWorker(spool, lambda _key: lost, current_key_id=None, destinations=["pacs"])
    for _ in range(pipeline.DECODER_ATTEMPTS - 1):
        spool.retry_now(job.id)
        assert worker.step()
    [job] = spool.jobs()
    assert job.state == "held"
    assert job.reason == "frame 1 of 1: the decoder died of signal 9, twice, 5 times"


def test_a_job_dropped_while_it_is_marked_stays_dropped(spool: Spool) -> None:
    def drop(_source: Path) -> Outcome:
        spool.drop(1)
        return Outcome(action="held", reason="too late")

    assert run_one(spool, Stamp(drop)).state == "dropped"


def test_a_repeat_is_marked_with_the_first_key_and_time(spool: Spool) -> None:
    first = run_one(spool, Stamp(Outcome()))
    spool.delivered(spool.claim_delivery("pacs")[0])
    asked: list[bytes | None] = []
    stamp = Stamp(Outcome())

    def marker_for(key_id: bytes | None) -> Stamp:
        asked.append(key_id)
        return stamp

    receive(spool)
    assert MarkWorker(spool, marker_for, current_key_id=b"new key!", destinations=["pacs"]).step()
    again = spool.jobs()[-1]
    assert asked == [b"k" * 8]
    assert again.key_id == b"k" * 8
    assert again.marked_at == first.marked_at
    assert again.result_digest == first.result_digest
    assert not again.differs_from_repeat


def test_a_repeat_that_other_weights_mark_otherwise_is_held_and_released_by_hand(
    spool: Spool,
) -> None:
    run_one(spool, Stamp(Outcome()))
    spool.delivered(spool.claim_delivery("pacs")[0])
    job = run_one(spool, Stamp(Outcome(), mark=b" marked otherwise"))
    assert job.state == "held"
    assert f"`dicom-node queue release {job.id}` sends it as a second version" in job.reason
    assert spool.claim_delivery("pacs") == []
    assert spool.release(job.id)
    [delivery] = spool.claim_delivery("pacs")
    assert delivery.path.read_bytes() == b"header pixels marked otherwise"


def test_the_stages_of_a_job_add_up_to_what_it_cost(spool: Spool) -> None:
    def work(_source: Path) -> Outcome:
        until = time.thread_time() + 0.2
        while time.thread_time() < until:
            pass
        return Outcome(stage_s={"w1": 0.05, "w2": 0.03})

    with structlog.testing.capture_logs() as events:
        before = time.thread_time()
        run_one(spool, Stamp(work))
        spent = time.thread_time() - before
    [stage_s] = [event["stage_s"] for event in events if event["event"] == "marked"]
    assert list(stage_s) == ["w1", "w2", "other"]
    assert 0.2 <= sum(stage_s.values()) <= spent


def test_a_worker_ends_when_told_to(spool: Spool) -> None:
    stop = threading.Event()
    worker = MarkWorker(spool, None, current_key_id=None, destinations=["pacs"])
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    stop.set()
    thread.join(5)
    assert not thread.is_alive()


def test_a_worker_that_grew_too_large_ends_after_its_job(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "RECYCLE_MIB", 1)
    spool.receive(b"", b"x", sop_class_uid="1", sop_instance_uid="1", transfer_syntax_uid="1.2")
    MarkWorker(spool, None, current_key_id=None, destinations=["pacs"]).run(threading.Event())
    assert spool.tally()["marked"] == 1


def test_a_long_marking_keeps_its_lease(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pipeline, heartbeat):
        monkeypatch.setattr(module, "LEASE_S", 2.0)  # a busy machine may be late by a second
    other = Spool(spool.settings)

    def slow(_source: Path) -> Outcome:
        for _ in range(8):
            threading.Event().wait(0.3)
            assert other.claim() is None
        return Outcome()

    assert run_one(spool, Stamp(slow)).state == "marked"
    other.close()


def test_retry_delays_grow_and_are_bounded() -> None:
    assert retry_delay_s(1) < retry_delay_s(4) < retry_delay_s(100) <= pipeline.RETRY_MAX_S * 1.25
