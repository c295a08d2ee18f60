"""The durability contract, point by point, on one spool folder."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dicom_node.config import SpoolConfig
from dicom_node.errors import LeaseLost, SpoolError, SpoolFull
from dicom_node.spool import Receipt, Spool

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
META = b"\x02\x00\x02\x00UI\x04\x001.2\x00"
HEADER = b"\0" * 128 + b"DICM\x02\x00\x00\x00UL\x04\x00" + len(META).to_bytes(4, "little") + META


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def settings(tmp_path: Path) -> SpoolConfig:
    return SpoolConfig(directory=tmp_path / "spool", min_free_mib=0, max_backlog=1000)


@pytest.fixture
def spool(settings: SpoolConfig, clock: Clock) -> Iterator[Spool]:
    with Spool(settings, clock=clock) as opened:
        yield opened


def send(spool: Spool, data: bytes = b"pixels", uid: str = "1.2.3", **more: Any) -> Receipt:
    return spool.receive(
        HEADER, data, sop_class_uid=CT, sop_instance_uid=uid, transfer_syntax_uid=EXPLICIT, **more
    )


def mark(spool: Spool, *destinations: str, data: bytes = b"marked pixels") -> int:
    job = spool.claim()
    assert job is not None
    out = spool.work_path(job)
    out.write_bytes(HEADER + data)
    spool.finish(job, out, action="marked", deliver_to=destinations or ("pacs",), key_id=b"k" * 8)
    return job.id


def wait_for(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


def files(spool: Spool, kind: str) -> list[Path]:
    return [path for path in (spool.settings.directory / kind).rglob("*") if path.is_file()]


def test_a_received_instance_is_on_disk_as_sent_and_in_the_journal(spool: Spool) -> None:
    receipt = send(spool, calling_ae="CT1")
    job = spool.job(receipt.job_id)
    assert job is not None
    assert (job.state, job.calling_ae, job.sop_instance_uid) == ("received", "CT1", "1.2.3")
    assert job.path.read_bytes() == HEADER + b"pixels"
    assert job.digest == hashlib.blake2b(b"pixels", digest_size=32).digest()


def test_a_data_set_may_come_in_chunks(spool: Spool) -> None:
    chunks = (memoryview(part) for part in (b"pix", b"", b"els"))
    receipt = spool.receive(
        HEADER, chunks, sop_class_uid=CT, sop_instance_uid="1", transfer_syntax_uid=EXPLICIT
    )
    job = spool.job(receipt.job_id)
    assert job is not None
    assert job.path.read_bytes() == HEADER + b"pixels"
    assert job.digest == hashlib.blake2b(b"pixels", digest_size=32).digest()


def test_files_are_named_by_our_ids_never_by_a_uid(spool: Spool) -> None:
    send(spool, uid="../../../x")
    [path] = files(spool, "received")
    assert "x" not in path.name.removesuffix(".dcm")
    assert path.is_relative_to(spool.settings.directory)


def test_file_and_folder_are_synced_before_the_journal_row(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, insert = os.fsync, spool._journal.insert

    def note_fsync(handle: int) -> None:
        target = Path(f"/proc/self/fd/{handle}").readlink()
        steps.append("fsync folder" if target.is_dir() else f"fsync {target.parts[-3]}")
        fsync(handle)

    def note_insert(*args: Any) -> int:
        steps.append("row")
        return insert(*args)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(spool._journal, "insert", note_insert)
    send(spool)
    assert steps == ["fsync incoming", "fsync folder", "row"]


def test_journal_commits_are_synchronous_for_received_instances(spool: Spool) -> None:
    send(spool)
    assert spool._journal._connection.execute("PRAGMA synchronous").fetchone()[0] == 2
    assert spool._journal._connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_a_failing_disk_is_an_error_and_leaves_nothing(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(handle: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(SpoolError, match="Input/output error") as caught:
        send(spool)
    assert caught.value.status == 0xA700
    assert files(spool, "received") == []
    assert spool.jobs() == []


def test_no_space_left_is_spool_full(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(SpoolFull):
        send(spool)


def test_too_little_free_disk_refuses_before_anything_is_written(settings: SpoolConfig) -> None:
    tight = settings.model_copy(update={"min_free_mib": 1 << 40})
    with Spool(tight) as spool:
        with pytest.raises(SpoolFull, match=r"spool\.min_free_mib"):
            send(spool)
        with pytest.raises(SpoolFull):
            spool.check_room()
        assert spool.jobs() == []


def test_an_instance_that_is_too_large_is_refused_before_it_takes_the_last_of_the_disk(
    settings: SpoolConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    tight = settings.model_copy(update={"min_free_mib": 100})
    written = 0

    def free(_: Path) -> int:
        return (200 << 20) - written

    def chunks() -> Iterator[bytes]:
        nonlocal written
        for _ in range(1000):
            written += 4 << 20
            yield bytes(4 << 20)

    monkeypatch.setattr("dicom_node.spool.intake.free_bytes", free)
    with Spool(tight) as spool:
        with pytest.raises(SpoolFull, match=r"spool\.min_free_mib"):
            send(spool, chunks())
        assert written < 130 << 20
        assert spool.jobs() == []
        assert not list(settings.directory.rglob("*.dcm"))
        assert [path.name for path in spool._files.scratch.iterdir()] == ["alive"]


def test_backlog_refuses_at_its_limit_and_opens_again(settings: SpoolConfig) -> None:
    with Spool(settings.model_copy(update={"max_backlog": 2})) as spool:
        send(spool, b"1", "1")
        send(spool, b"2", "2")
        with pytest.raises(SpoolFull, match=r"spool\.max_backlog"):
            send(spool, b"3", "3")
        mark(spool)
        [delivery] = spool.claim_delivery("pacs")
        spool.delivered(delivery)
        send(spool, b"3", "3")


def test_the_same_bytes_twice_before_delivery_are_one_job(spool: Spool) -> None:
    first = send(spool)
    second = send(spool)
    assert second == Receipt(first.job_id, duplicate_of=first.job_id)
    [job] = spool.jobs()
    assert job.coalesced == 1
    assert len(files(spool, "received")) == 1


def test_the_same_bytes_after_delivery_repeat_the_first_marking(spool: Spool, clock: Clock) -> None:
    first = send(spool)
    mark(spool)
    spool.delivered(spool.claim_delivery("pacs")[0])
    clock.now += 1000
    again = send(spool)
    assert again.repeat_of == first.job_id
    job = spool.claim()
    assert job is not None
    assert (job.marked_at, job.key_id) == (1_700_000_000, b"k" * 8)


def test_a_repeat_with_another_result_is_held_until_an_administrator_decides(spool: Spool) -> None:
    for data, same in ((b"marked pixels", True), (b"marked pixels", True), (b"other", False)):
        send(spool)
        job = spool.claim()
        assert job is not None
        out = spool.work_path(job)
        out.write_bytes(HEADER + data)
        assert spool.finish(job, out, action="marked", deliver_to=["pacs", "archive"]) is same
        for name in ("pacs", "archive"):
            claimed = spool.claim_delivery(name)
            assert len(claimed) == same
            for delivery in claimed:
                spool.delivered(delivery)
    assert [job.differs_from_repeat for job in spool.jobs()] == [False, False, True]
    last = spool.jobs()[-1]
    assert last.state == "held"
    assert "what job 2 delivered" in last.reason
    assert "`dicom-node queue release 3`" in last.reason
    assert "`dicom-node queue drop 3`" in last.reason
    assert {d.state for d in spool.deliveries(last.id)} == {"held"}
    assert send(spool).duplicate_of == last.id, "sent once more, it waits for the same decision"
    assert spool.release(last.id)
    for name in ("pacs", "archive"):
        [delivery] = spool.claim_delivery(name)
        assert delivery.path.read_bytes() == HEADER + b"other"
        spool.delivered(delivery)
    assert spool.tally()["delivered"] == 3


def test_a_released_version_is_what_later_repeats_have_to_equal(spool: Spool) -> None:
    for data in (b"one", b"two", b"two", b"one"):
        send(spool)
        mark(spool, data=data)
        job = spool.jobs()[-1]
        if job.state == "held":
            spool.release(job.id)
        spool.delivered(spool.claim_delivery("pacs")[0])
    assert [job.differs_from_repeat for job in spool.jobs()] == [False, True, False, True]


def test_another_version_that_is_dropped_leaves_no_file(spool: Spool) -> None:
    for data in (b"one", b"two"):
        send(spool)
        mark(spool, data=data)
        for delivery in spool.claim_delivery("pacs"):
            spool.delivered(delivery)
    assert spool.drop(spool.jobs()[-1].id)
    wait_for(lambda: files(spool, "received") == files(spool, "marked") == [])
    assert spool.backlog() == 0


def test_the_result_digest_ignores_who_sent_the_file(spool: Spool) -> None:
    meta = META + b"\x02\x00\x16\x00AE\x04\x00CT1 "
    other = HEADER[:140] + len(meta).to_bytes(4, "little") + meta
    for header in (HEADER, other):
        send(spool)
        job = spool.claim()
        assert job is not None
        spool.work_path(job).write_bytes(header + b"marked")
        assert spool.finish(job, spool.work_path(job), action="marked", deliver_to=["pacs"])
        spool.delivered(spool.claim_delivery("pacs")[0])


def test_other_content_under_one_uid_is_a_job_of_its_own_and_reported(spool: Spool) -> None:
    first = send(spool, b"one")
    second = send(spool, b"two")
    assert second.job_id != first.job_id
    assert second.conflicts_with == first.job_id
    job = spool.job(second.job_id)
    assert job is not None
    assert job.conflicts_with == first.job_id


def test_after_a_b_a_the_last_a_is_not_swallowed(spool: Spool) -> None:
    send(spool, b"a")
    send(spool, b"b")
    assert send(spool, b"a").duplicate_of is None
    assert len(spool.jobs()) == 3


def test_instances_without_a_uid_do_not_conflict(spool: Spool) -> None:
    send(spool, b"a", "")
    receipt = send(spool, b"b", "")
    assert receipt.conflicts_with is None


def test_a_job_is_claimed_by_one_worker_only(settings: SpoolConfig) -> None:
    with Spool(settings) as first, Spool(settings) as second:
        send(first)
        assert first.claim() is not None
        assert second.claim() is None


def test_claims_never_double_under_contention(settings: SpoolConfig) -> None:
    with Spool(settings) as spool:
        for n in range(60):
            send(spool, str(n).encode(), str(n))
    taken: list[int] = []

    def worker() -> None:
        with Spool(settings) as spool:
            while (job := spool.claim()) is not None:
                taken.append(job.id)

    threads = [threading.Thread(target=worker) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(1, 61))


def test_an_expired_lease_is_claimed_again_and_the_first_result_thrown_away(
    settings: SpoolConfig, clock: Clock
) -> None:
    with Spool(settings, clock=clock) as slow, Spool(settings, clock=clock) as quick:
        send(slow)
        lost = slow.claim(lease_s=10)
        assert lost is not None
        clock.now += 5
        slow.renew(lost, lease_s=10)
        clock.now += 8
        assert quick.claim() is None
        clock.now += 3
        assert quick.claim() is None, "a job whose lease ran out waits a moment"
        clock.now += 2
        job = quick.claim()
        assert job is not None
        assert job.crashes == 1
        slow.work_path(lost).write_bytes(b"late")
        with pytest.raises(LeaseLost):
            slow.finish(lost, slow.work_path(lost), action="marked", deliver_to=["pacs"])
        assert files(quick, "marked") == []
        with pytest.raises(LeaseLost):
            slow.renew(lost)


def test_a_job_that_ends_its_worker_three_times_is_held(
    settings: SpoolConfig, clock: Clock
) -> None:
    with Spool(settings, clock=clock) as spool:
        send(spool)
        for _ in range(3):
            worker = Spool(settings, clock=clock)
            assert worker.claim() is not None
            worker.close()
            spool.reclaim()
            clock.now += 10
        [job] = spool.jobs()
        assert (job.state, job.crashes) == ("held", 3)
        assert "3 times" in job.reason
        assert spool.release(job.id)
        assert spool.claim() is not None


def test_a_job_whose_worker_was_killed_by_a_drain_is_never_held_for_it(
    settings: SpoolConfig,
) -> None:
    with Spool(settings) as spool:
        send(spool)
        for _ in range(4):
            worker = Spool(settings)
            assert worker.claim() is not None
            worker.close()
            assert spool.reclaim(drained=True).requeued_jobs == 1
            [job] = spool.jobs()
            assert (job.state, job.crashes, job.attempts) == ("received", 0, 0)
        assert "stopped" in job.reason
        assert spool.claim() is not None, "due at once"


def test_claims_of_an_ended_process_are_requeued_at_once(settings: SpoolConfig) -> None:
    with Spool(settings) as spool:
        send(spool, b"1", "1")
        mark(spool)
        send(spool, b"2", "2")
        dead = Spool(settings)
        assert dead.claim() is not None
        assert dead.claim_delivery("pacs")
        assert spool.reclaim().requeued_jobs == 0
        dead.close()
        found = spool.reclaim()
        assert (found.requeued_jobs, found.requeued_deliveries) == (1, 1)
        assert spool.claim_delivery("pacs")


def test_retry_and_hold_keep_the_reason(spool: Spool, clock: Clock) -> None:
    send(spool)
    job = spool.claim()
    assert job is not None
    spool.retry(job, "disk full", clock.now + 60)
    [job] = spool.jobs()
    assert (job.state, job.reason, job.attempts) == ("received", "disk full", 1)
    assert spool.claim() is None
    assert spool.retry_now(job.id)
    job = spool.claim()
    assert job is not None
    spool.hold(job, "cannot be decoded")
    [job] = spool.jobs(state="held")
    assert job.reason == "cannot be decoded"
    assert job.path.exists()


def test_a_drained_claim_costs_no_attempt(spool: Spool) -> None:
    send(spool)
    job = spool.claim()
    assert job is not None
    spool.unclaim(job)
    job = spool.claim()
    assert job is not None
    assert job.attempts == 1


def test_a_rejected_job_keeps_its_bytes_and_leaves_the_backlog(spool: Spool) -> None:
    send(spool)
    job = spool.claim()
    assert job is not None
    spool.reject(job, "a segmentation")
    assert spool.backlog() == 0
    assert job.path.exists()
    assert spool.release(job.id)
    assert spool.claim() is not None


def test_bytes_stay_until_every_destination_has_the_result(spool: Spool) -> None:
    receipt = send(spool)
    mark(spool, "pacs", "archive")
    [first] = spool.claim_delivery("pacs")
    assert first.path.read_bytes() == HEADER + b"marked pixels"
    assert first.size == first.path.stat().st_size
    spool.delivered(first, 0xB000)
    assert len(files(spool, "received")) == len(files(spool, "marked")) == 1
    [second] = spool.claim_delivery("archive")
    spool.delivered(second)
    wait_for(lambda: files(spool, "received") == files(spool, "marked") == [])
    job = spool.job(receipt.job_id)
    assert job is not None
    assert job.state == "delivered"
    assert [d.status for d in spool.deliveries(job.id)] == [0xB000, 0x0000]


def test_a_held_delivery_holds_the_job_and_comes_back_with_release(spool: Spool) -> None:
    receipt = send(spool)
    mark(spool, "pacs", "archive")
    spool.delivered(spool.claim_delivery("archive")[0])
    spool.hold_delivery(spool.claim_delivery("pacs")[0], "0xC000 cannot understand", status=0xC000)
    job = spool.job(receipt.job_id)
    assert job is not None
    assert job.state == "held"
    assert job.reason == "pacs: 0xC000 cannot understand"
    assert spool.release(job.id)
    [delivery] = spool.claim_delivery("pacs")
    assert spool.claim_delivery("archive") == []
    spool.delivered(delivery)
    assert spool.tally()["delivered"] == 1


def test_a_retried_delivery_waits_for_its_time(spool: Spool, clock: Clock) -> None:
    send(spool)
    mark(spool)
    [delivery] = spool.claim_delivery("pacs")
    spool.retry_delivery(delivery, "PACS out of resources", clock.now + 2, status=0xA700)
    assert spool.claim_delivery("pacs") == []
    clock.now += 2.5
    [delivery] = spool.claim_delivery("pacs")
    assert (delivery.attempts, delivery.reason, delivery.status) == (
        2,
        "PACS out of resources",
        0xA700,
    )
    with pytest.raises(LeaseLost):
        spool.delivered(spool.deliveries(delivery.job_id)[0].__class__(**_old(delivery)))


def _old(delivery: Any) -> dict[str, Any]:
    values = {name: getattr(delivery, name) for name in delivery.__slots__}
    return values | {"attempts": delivery.attempts - 1}


def test_deliveries_come_oldest_first_and_contexts_in_that_order(spool: Spool) -> None:
    for n in range(5):
        send(spool, str(n).encode(), str(n), deliver_to=["pacs"])
    assert spool.waiting_contexts("pacs") == [(CT, EXPLICIT)]
    assert [d.sop_instance_uid for d in spool.claim_delivery("pacs", limit=3)] == ["0", "1", "2"]


def test_with_marking_off_an_instance_goes_straight_to_its_destinations(spool: Spool) -> None:
    send(spool, deliver_to=["pacs"])
    assert spool.claim() is None
    [delivery] = spool.claim_delivery("pacs")
    assert delivery.path.read_bytes() == HEADER + b"pixels"
    assert delivery.transfer_syntax_uid == EXPLICIT
    spool.delivered(delivery)
    wait_for(lambda: files(spool, "received") == [])


def test_a_job_without_a_destination_is_held(spool: Spool) -> None:
    send(spool)
    job = spool.claim()
    assert job is not None
    spool.finish(job, None, action="untouched", deliver_to=[])
    [job] = spool.jobs()
    assert job.state == "held"
    assert "[[destination]]" in job.reason


def test_a_dropped_job_is_gone_and_its_claim_lost(spool: Spool) -> None:
    send(spool)
    job = spool.claim()
    assert job is not None
    assert spool.drop(job.id)
    assert not spool.drop(job.id)
    assert files(spool, "received") == []
    with pytest.raises(LeaseLost):
        spool.hold(job, "too late")


def test_recovery_removes_files_no_row_names_and_keeps_the_others(settings: SpoolConfig) -> None:
    ended = Spool(settings)
    kept = send(ended, b"1", "1")
    name = ended._files.new_name()
    ended._files.store(name, HEADER, b"never answered")
    (ended._files.scratch / "half").write_bytes(b"x")
    ended.close()
    with Spool(settings) as spool:
        living = spool._files.new_name()
        spool._files.store(living, HEADER, b"being received right now")
        found = spool.recover()
        assert found.removed_files == 1
        job = spool.job(kept.job_id)
        assert job is not None
        assert job.path.exists()
        assert spool._files.received(living).exists()


def test_recovery_holds_jobs_whose_file_is_gone(settings: SpoolConfig) -> None:
    with Spool(settings) as spool:
        receipt = send(spool)
        job = spool.job(receipt.job_id)
        assert job is not None
        job.path.unlink()
        assert spool.recover().held_jobs == 1
        job = spool.job(receipt.job_id)
        assert job is not None
        assert (job.state, job.reason) == ("held", "received file is missing")
        assert not spool.release(job.id)


def test_a_received_instance_wakes_a_waiting_worker_at_once(settings: SpoolConfig) -> None:
    woken: list[float] = []
    with Spool(settings) as sender, Spool(settings) as worker:

        def wait() -> None:
            worker.wait_for_job(10.0)
            assert worker.claim() is not None
            woken.append(time.monotonic())

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.1)
        send(sender)
        sent = time.monotonic()
        thread.join()
    assert woken[0] - sent < 0.2


def test_a_wait_ends_when_the_next_job_is_due(settings: SpoolConfig) -> None:
    with Spool(settings) as spool:
        send(spool)
        job = spool.claim()
        assert job is not None
        spool.wait_for_job(0)
        spool.retry(job, "later", time.time() + 0.1)
        started = time.monotonic()
        assert spool.wait_for_job(10.0)
        assert time.monotonic() - started < 1.0


def test_waiters_of_one_destination_do_not_hear_another(settings: SpoolConfig) -> None:
    with Spool(settings) as spool:
        send(spool, deliver_to=["pacs"])
        assert not spool.wait_for_delivery("archive", 0.01)
        assert spool.wait_for_delivery("pacs", 0.01)


def test_a_journal_of_another_release_is_refused_with_the_fix(settings: SpoolConfig) -> None:
    with Spool(settings) as spool:
        spool._journal._connection.execute("PRAGMA user_version = 99")
    with pytest.raises(SpoolError, match="version 99"):
        Spool(settings)


def test_an_unusable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match="file"):
        Spool(SpoolConfig(directory=tmp_path / "file"))
