"""Versions under one SOP Instance UID: a PACS keeps whichever comes last, so they go in order."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from dicom_node.config import SpoolConfig
from dicom_node.spool import Spool
from dicom_node.spool import delivery_queue as queue
from dicom_node.spool.records import Delivery


def send(spool: Spool, content: bytes, *destinations: str, uid: str = "1.2.3") -> int:
    return spool.receive(
        b"header", content, sop_class_uid="1.2", sop_instance_uid=uid,
        transfer_syntax_uid="1.2.840.10008.1.2.1", deliver_to=destinations,
    ).job_id  # fmt: skip


def claim(spool: Spool, limit: int = 10, *, fresh_first: bool = False) -> list[Delivery]:
    return spool.claim_delivery("pacs", limit=limit, fresh_first=fresh_first)


def test_a_later_version_does_not_overtake_one_that_was_refused(
    spool: Spool, clock: SimpleNamespace
) -> None:
    first, second = send(spool, b"first", "pacs"), send(spool, b"second", "pacs")
    [delivery] = claim(spool)
    assert delivery.job_id == first, "not both in one batch: the first of them may fail"
    due_at = clock.now + 60
    spool.retry_delivery(delivery, "out of resources", due_at, status=0xA700)

    clock.now += queue.LET_PASS_S
    assert claim(spool) == []
    [waiting] = spool.deliveries(second)
    assert waiting.reason == f"job {first}, an earlier version under its UID, goes first"
    assert waiting.attempts == 0, "to wait is no attempt"
    assert waiting.due_at == clock.now + queue.LET_PASS_S
    rung = sum(spool.wait_for_delivery("pacs", 0.01) for _ in range(10))
    assert rung <= 3, "rung for each arrival and for the retry; then a forwarder sleeps"

    clock.now = due_at
    [delivery] = claim(spool)
    assert delivery.job_id == first
    spool.delivered(delivery)
    [delivery] = claim(spool)
    assert delivery.job_id == second, "woken at once"


def test_a_later_version_that_was_marked_first_waits_for_the_earlier(
    spool: Spool, clock: SimpleNamespace
) -> None:
    first, second = send(spool, b"first"), send(spool, b"second")
    a, b = spool.claim(lease_s=60), spool.claim(lease_s=60)
    assert a is not None
    assert b is not None
    assert (a.id, b.id) == (first, second)
    spool.finish(b, None, action="untouched", deliver_to=["pacs"])
    assert claim(spool) == []
    spool.finish(a, None, action="untouched", deliver_to=["pacs"])
    assert [each.job_id for each in claim(spool)] == [first]


@pytest.mark.parametrize("fresh_first", [True, False])
def test_others_pass_by_the_one_that_waits(spool: Spool, fresh_first: bool) -> None:
    first, _ = send(spool, b"first", "pacs"), send(spool, b"second", "pacs")
    other = send(spool, b"other", "pacs", uid="1.2.4")
    taken = [claim(spool, 1, fresh_first=fresh_first) for _ in range(3)]
    assert [[each.job_id for each in some] for some in taken] == [[first], [other], []]


def test_nobody_waits_for_a_version_that_is_held_or_at_another_destination(
    spool: Spool, clock: SimpleNamespace
) -> None:
    send(spool, b"first", "pacs", "archive")
    second = send(spool, b"second", "pacs")
    [delivery] = claim(spool)
    spool.hold_delivery(delivery, "cannot understand", status=0xC000)
    clock.now += queue.LET_PASS_S
    assert [each.job_id for each in claim(spool)] == [second]


def test_instances_without_a_uid_are_not_versions_of_each_other(spool: Spool) -> None:
    jobs = [send(spool, content, "pacs", uid="") for content in (b"one", b"two")]
    assert [each.job_id for each in claim(spool)] == jobs


@pytest.mark.parametrize("end", ["delivered", "held"])
def test_each_version_wakes_the_next_one(spool: Spool, end: str) -> None:
    jobs = [send(spool, str(number).encode(), "pacs") for number in range(50)]
    for job_id in jobs:
        [delivery] = claim(spool)
        assert delivery.job_id == job_id
        if end == "delivered":
            spool.delivered(delivery)
        else:
            spool.hold_delivery(delivery, "refused")


def test_a_version_that_waits_looks_less_and_less_often(
    spool: Spool, clock: SimpleNamespace
) -> None:
    send(spool, b"first", "pacs")
    second = send(spool, b"second", "pacs")
    [delivery] = claim(spool)
    spool.retry_delivery(delivery, "out of resources", clock.now + 10_000, status=0xA700)
    waits = []
    for _ in range(30):
        assert claim(spool) == []
        [waiting] = spool.deliveries(second)
        waits.append(waiting.due_at - clock.now)
        clock.now = waiting.due_at
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (queue.LET_PASS_S, queue.LONGEST_PASS_S)
    spool.drop(delivery.job_id)
    [claimed] = claim(spool)
    assert claimed.job_id == second, "gone without a word, it is missed in the end"


def test_many_versions_hold_the_journal_for_few_at_a_time(
    spool: Spool, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(200):
        send(spool, str(number).encode(), "pacs")
    [first] = claim(spool, 1)
    spool.retry_delivery(first, "out of resources", clock.now + 1000, status=0xA700)
    passes: list[int] = []
    lets_pass = Spool._lets_pass
    monkeypatch.setattr(
        Spool, "_lets_pass", lambda *given: bool(passes.append(1)) or lets_pass(*given)
    )
    other = send(spool, b"other", "pacs", uid="1.2.4")
    for _ in range(30):
        before, claimed = len(passes), claim(spool, 1)
        assert len(passes) - before <= queue._PASSES
        if claimed:
            break
    assert [each.job_id for each in claimed] == [other]


def test_a_journal_of_the_last_release_gains_the_index(tmp_path: Path) -> None:
    settings = SpoolConfig(directory=tmp_path / "spool", min_free_mib=0)
    with Spool(settings) as spool:
        jobs = [send(spool, content, "pacs") for content in (b"first", b"second")]
        spool._journal._connection.executescript(
            "DROP INDEX job_open_by_uid; PRAGMA user_version = 4"
        )
    with Spool(settings) as spool:
        assert [each.job_id for each in claim(spool)] == jobs[:1]
