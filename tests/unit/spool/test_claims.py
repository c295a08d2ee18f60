"""Jobs and their workers: one at a time, leases, crashes, reasons."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from spooling import files, mark, send

from dicom_node.config import SpoolConfig
from dicom_node.errors import LeaseLost
from dicom_node.spool import Spool


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
    settings: SpoolConfig, clock: SimpleNamespace
) -> None:
    with (
        Spool(settings, clock=lambda: float(clock.now)) as slow,
        Spool(settings, clock=lambda: float(clock.now)) as quick,
    ):
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
    settings: SpoolConfig, clock: SimpleNamespace
) -> None:
    with Spool(settings, clock=lambda: float(clock.now)) as spool:
        send(spool)
        for _ in range(3):
            worker = Spool(settings, clock=lambda: float(clock.now))
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


def test_retry_and_hold_keep_the_reason(spool: Spool, clock: SimpleNamespace) -> None:
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
