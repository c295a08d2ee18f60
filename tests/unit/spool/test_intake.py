"""What is received: on disk as sent, once, or refused before anything is written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from spooling import CT, EXPLICIT, HEADER, META, files, mark, send, wait_for

from dicom_node.config import SpoolConfig
from dicom_node.errors import SpoolError, SpoolFull
from dicom_node.spool import Receipt, Spool


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


def test_the_same_bytes_after_delivery_repeat_the_first_marking(
    spool: Spool, clock: SimpleNamespace
) -> None:
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


def test_after_a_b_a_the_last_a_is_marked_like_the_first(
    spool: Spool, clock: SimpleNamespace
) -> None:
    first, _, last = (send(spool, data) for data in (b"A", b"B", b"A"))
    assert last.repeat_of == first.job_id
    claimed = []
    for _ in range(3):
        job = spool.claim()
        assert job is not None
        claimed.append(job)
        clock.now += 100
    assert claimed[0].marked_at == claimed[2].marked_at != claimed[1].marked_at


def test_what_one_destination_has_is_repeated_though_the_job_was_dropped(spool: Spool) -> None:
    first = send(spool, b"A")
    mark(spool, "archive", "pacs")
    [delivery] = spool.claim_delivery("archive")
    spool.delivered(delivery)
    spool.drop(first.job_id)
    again = send(spool, b"A")
    assert again.repeat_of == first.job_id
    assert spool.claim().marked_at == spool.job(first.job_id).marked_at


def test_what_nobody_has_and_was_dropped_is_marked_anew(
    spool: Spool, clock: SimpleNamespace
) -> None:
    first = send(spool, b"A")
    mark(spool, "pacs")
    spool.drop(first.job_id)
    clock.now += 100
    assert send(spool, b"A").repeat_of is None


def test_a_version_older_than_a_hundred_others_is_known(spool: Spool) -> None:
    first = send(spool, b"A")
    for number in range(101):
        send(spool, b"B%d" % number)
    assert send(spool, b"A").repeat_of == first.job_id
