"""What happened is told, in order, in the transaction in which it happened."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_node.config import SpoolConfig
from dicom_node.errors import LeaseLost
from dicom_node.facts import InstanceFacts, MarkedFrame
from dicom_node.spool import Job, OutboxRow, Spool
from dicom_node.spool.outbox import decode

GOLDEN = Path(__file__).parents[2] / "golden"
CT = "1.2.840.10008.5.1.4.1.1.2"
FACTS = InstanceFacts(
    "CT", 7, 2, (MarkedFrame(b"o" * 32, b"m" * 32, b"look8888", b"message12345", b"f"),
                 MarkedFrame(b"p" * 32, b"n" * 32, b"8888look")),
)  # fmt: skip


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with Spool(SpoolConfig(directory=tmp_path / "spool", min_free_mib=0)) as opened:
        yield opened


def claimed(spool: Spool, uid: str = "1.2.3") -> Job:
    spool.receive(b"header ", uid.encode(), sop_class_uid=CT, sop_instance_uid=uid,
                  transfer_syntax_uid="1.2.840.10008.1.2.1", calling_ae="CT1")  # fmt: skip
    job = spool.claim()
    assert job is not None
    return job


def finish(spool: Spool, job: Job, content: bytes = b"marked") -> bool:
    out = spool.work_path(job)
    out.write_bytes(content)
    return spool.finish(
        job, out, action="marked", deliver_to=["pacs", "second"], key_id=b"k" * 8,
        transfer_syntax_uid="1.2.840.10008.1.2.4.80", study_instance_uid="1.2",
        series_instance_uid="1.2.9", facts=FACTS,
    )  # fmt: skip


def kinds(spool: Spool) -> list[tuple[str, str]]:
    return [(row.kind, row.destination) for row in spool.outbox()]


def test_a_marked_and_delivered_instance_is_told_of_with_all_that_is_known(spool: Spool) -> None:
    job = claimed(spool)
    finish(spool, job)
    [delivery] = spool.claim_delivery("pacs")
    spool.delivered(delivery, 0xB000)
    marked, delivered = spool.outbox()
    assert marked.facts == FACTS
    for row in (marked, delivered):
        assert (row.sop_instance_uid, row.series_instance_uid, row.study_instance_uid) == (
            "1.2.3", "1.2.9", "1.2",
        )  # fmt: skip
        assert (row.calling_ae, row.action, row.key_id) == ("CT1", "marked", b"k" * 8)
        assert (row.transfer_syntax_uid, row.sop_class_uid) == ("1.2.840.10008.1.2.4.80", CT)
        assert (row.received_digest, row.received_at) == (job.digest, job.received_at)
        assert (row.marked_at, len(row.delivered_digest)) == (job.marked_at, 32)
    assert kinds(spool) == [("marked", ""), ("delivered", "pacs")]
    assert delivered.status == 0xB000
    assert delivered.facts == InstanceFacts()
    assert delivered.delivered_digest == marked.delivered_digest


def test_what_is_held_refused_or_dropped_is_told_with_its_reason(spool: Spool) -> None:
    spool.hold(claimed(spool, "1.2.1"), "odd")
    spool.reject(claimed(spool, "1.2.2"), "no picture")
    finish(spool, claimed(spool, "1.2.3"))
    [delivery] = spool.claim_delivery("pacs")
    spool.hold_delivery(delivery, "refused", status=0xC000)
    spool.drop(delivery.job_id, "given up")
    told = [(row.kind, row.destination, row.reason, row.status) for row in spool.outbox()]
    assert told == [
        ("held", "", "odd", None), ("refused", "", "no picture", None), ("marked", "", "", None),
        ("held", "pacs", "refused", 0xC000), ("dropped", "", "given up", None),
    ]  # fmt: skip


def test_what_changes_nothing_is_not_told(spool: Spool) -> None:
    job = claimed(spool)
    spool.renew(job)
    spool.retry(job, "no memory", 0.0)
    again = spool.claim()
    assert again is not None
    spool.unclaim(again)
    third = spool.claim()
    assert third is not None
    finish(spool, third)
    [delivery] = spool.claim_delivery("pacs")
    spool.retry_delivery(delivery, "away", 0.0)
    assert kinds(spool) == [("marked", "")]


def test_another_version_that_is_held_is_told_of_twice(spool: Spool) -> None:
    finish(spool, claimed(spool))
    for name in ("pacs", "second"):
        spool.delivered(spool.claim_delivery(name)[0])
    assert not finish(spool, claimed(spool), b"other marks")
    assert kinds(spool)[3:] == [("marked", ""), ("held", "")]


def test_a_result_that_comes_too_late_tells_nothing(spool: Spool) -> None:
    job = claimed(spool)
    spool.drop(job.id)
    with pytest.raises(LeaseLost):
        finish(spool, job)
    assert kinds(spool) == [("dropped", "")]


def test_a_crashed_job_is_told_of_when_it_is_held(tmp_path: Path) -> None:
    now = [1000.0]
    settings = SpoolConfig(directory=tmp_path / "spool", min_free_mib=0)
    with Spool(settings, clock=lambda: now[0]) as spool:
        spool.receive(b"h", b"d", sop_class_uid=CT, sop_instance_uid="1.2.3",
                      transfer_syntax_uid="1.2.840.10008.1.2.1")  # fmt: skip
        # A claim that finds a lease run out puts the job back, the next one takes it.
        for _ in range(6):
            spool.claim(lease_s=10)
            now[0] += 60
        [row] = spool.outbox()
        assert (row.kind, row.reason) == ("held", "marking it ended its worker 3 times")


def test_rows_come_in_order_and_go_when_they_are_forgotten(spool: Spool) -> None:
    for number in range(5):
        spool.hold(claimed(spool, f"1.2.{number}"), "odd")
    first = spool.outbox(limit=2)
    assert [row.sop_instance_uid for row in first] == ["1.2.0", "1.2.1"]
    assert spool.outbox_depth() == (5, first[0].at)
    spool.forget(first[-1])
    assert [row.sop_instance_uid for row in spool.outbox()] == ["1.2.2", "1.2.3", "1.2.4"]
    spool.forget(spool.outbox()[-1])
    assert spool.outbox_depth() == (0, None)
    # A name is never given twice, also after the last row has gone.
    spool.hold(claimed(spool, "1.2.9"), "odd")
    [row] = spool.outbox()
    assert row.reference == f"{spool.name}:6"


def test_a_batch_is_bounded_in_bytes_but_never_empty(spool: Spool) -> None:
    frames = tuple(MarkedFrame(fingerprint=bytes(500)) for _ in range(3000))
    for number in range(3):
        job = claimed(spool, f"1.2.{number}")
        out = spool.work_path(job)
        out.write_bytes(b"marked")
        spool.finish(job, out, action="marked", deliver_to=["pacs"],
                     facts=InstanceFacts("XA", 1, 3000, frames))  # fmt: skip
    counts = []
    while rows := spool.outbox():
        counts.append(len(rows))
        spool.forget(rows[-1])
    assert counts == [2, 1]


def test_news_wake_the_registrar(spool: Spool) -> None:
    assert not spool.wait_for_news(0.0)
    spool.hold(claimed(spool), "odd")
    assert spool.wait_for_news(5.0)


def test_two_spools_have_two_names_that_stay(tmp_path: Path) -> None:
    names = []
    for folder in ("one", "two", "one"):
        with Spool(SpoolConfig(directory=tmp_path / folder, min_free_mib=0)) as spool:
            names.append(spool.name)
    assert names[0] == names[2] != names[1]
    assert all(len(name) == 16 for name in names)


def test_a_row_of_the_first_release_is_read_for_ever() -> None:
    for line in (GOLDEN / "outbox_1.jsonl").read_text("utf-8").splitlines():
        body, expected = line.split("\t")
        row = decode({"id": 41, "kind": "marked", "at": 5.5, "body": body}, "s")  # type: ignore[arg-type]
        assert isinstance(row, OutboxRow)
        assert row.reference == "s:41"
        found = {
            "uid": row.sop_instance_uid, "digest": row.delivered_digest.hex(),
            "looks": [frame.perceptual_hash.hex() for frame in row.facts.frames],
            "messages": [frame.message.hex() for frame in row.facts.frames],
            "number": row.facts.instance_number, "status": row.status,
        }  # fmt: skip
        assert found == json.loads(expected)


def test_a_journal_without_an_outbox_gains_one_and_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    connection = sqlite3.connect(folder / "journal.sqlite")
    connection.executescript((GOLDEN / "journal_1.sql").read_text("utf-8"))
    connection.close()
    with Spool(SpoolConfig(directory=folder, min_free_mib=0)) as spool:
        [delivered, marked] = spool.jobs()
        assert (delivered.state, marked.state) == ("delivered", "marked")
        assert spool.outbox() == []
        [delivery] = spool.claim_delivery("pacs")
        spool.delivered(delivery)
        [row] = spool.outbox()
        assert (row.kind, row.sop_instance_uid) == ("delivered", marked.sop_instance_uid)
        assert row.delivered_digest == marked.result_digest
