"""Deliveries that end their forwarder, and deliveries that are refused again and again."""

from __future__ import annotations

from types import SimpleNamespace

from dicom_node.config import SpoolConfig
from dicom_node.spool import Spool

CT, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"


def put(spool: Spool, uid: str) -> int:
    return spool.receive(
        b"\0" * 128 + b"DICM", uid.encode(), sop_class_uid=CT, sop_instance_uid=uid,
        transfer_syntax_uid=EXPLICIT, deliver_to=["pacs"],
    ).job_id  # fmt: skip


def test_a_delivery_that_ends_its_forwarder_ten_times_is_held_with_the_reason(
    spool: Spool, clock: SimpleNamespace
) -> None:
    job = put(spool, "1.2.3")
    for _ in range(10):
        [claimed] = spool.claim_delivery("pacs", lease_s=10)
        spool._delivery_crashed(claimed.id, claimed.worker, clock.now, blame=True)
        clock.now += 600
    [delivery] = spool.deliveries(job)
    assert delivery.state == "held"
    assert delivery.reason == "sending it ended its forwarder 10 times in a row"
    assert spool.job(job).state == "held"
    assert spool.claim_delivery("pacs") == []
    spool.release(job)
    assert [d.job_id for d in spool.claim_delivery("pacs")] == [job]


def test_only_crashes_in_a_row_count(spool: Spool, clock: SimpleNamespace) -> None:
    job = put(spool, "1.2.3")
    for _ in range(11):
        [claimed] = spool.claim_delivery("pacs", lease_s=10)
        spool._delivery_crashed(claimed.id, claimed.worker, clock.now, blame=True)
        clock.now += 60
        [claimed] = spool.claim_delivery("pacs", lease_s=10)
        spool.retry_delivery(claimed, "the destination was down", clock.now)
    assert spool.deliveries(job)[0].state == "waiting"


def test_a_forwarder_that_was_killed_by_a_drain_is_no_crash_of_its_delivery(
    spool: Spool, clock: SimpleNamespace
) -> None:
    job = put(spool, "1.2.3")
    for _ in range(11):
        [claimed] = spool.claim_delivery("pacs", lease_s=10)
        spool._delivery_crashed(claimed.id, claimed.worker, clock.now, blame=False)
    assert spool.deliveries(job)[0].state == "waiting"


def test_new_work_goes_before_what_was_refused_three_times(
    spool: Spool, clock: SimpleNamespace
) -> None:
    bad = [put(spool, f"1.2.{number}") for number in range(5)]
    for _ in range(3):
        for delivery in spool.claim_delivery("pacs", limit=5):
            spool.retry_delivery(delivery, "refused", clock.now, status=0xA700)
    clock.now += 60
    good = [put(spool, f"1.3.{number}") for number in range(3)]
    first = [spool.claim_delivery("pacs", fresh_first=True)[0].job_id for _ in range(4)]
    assert first[:3] == good
    assert first[3] in bad
    assert spool.claim_delivery("pacs")[0].job_id in bad


def test_a_journal_of_the_last_release_gets_the_count(settings: SpoolConfig) -> None:
    with Spool(settings) as spool:
        job = put(spool, "1.2.3")
        spool._journal._connection.executescript(
            "ALTER TABLE delivery DROP COLUMN crashes; PRAGMA user_version = 3"
        )
    with Spool(settings) as spool:
        [claimed] = spool.claim_delivery("pacs")
        spool.delivered(claimed)
        assert spool.job(job).state == "delivered"
