"""Deliveries: bytes stay until every destination has the result."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from spooling import CT, EXPLICIT, HEADER, files, mark, send, wait_for

from dicom_node.errors import LeaseLost
from dicom_node.spool import Spool


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


def test_a_retried_delivery_waits_for_its_time(spool: Spool, clock: SimpleNamespace) -> None:
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
