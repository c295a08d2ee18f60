"""Files that vanish under the node's hands: what was answered with success still arrives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dicom_node.config import SpoolConfig
from dicom_node.errors import LeaseLost, SpoolError
from dicom_node.spool import Job, Receipt, Spool

META = b"\x02\x00\x02\x00UI\x04\x001.2\x00"
HEADER = b"\0" * 128 + b"DICM\x02\x00\x00\x00UL\x04\x00" + len(META).to_bytes(4, "little") + META
SENT = HEADER + b"pixels"


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with Spool(SpoolConfig(directory=tmp_path / "spool", min_free_mib=0)) as opened:
        yield opened


def send(spool: Spool, header: bytes = HEADER, **more: Any) -> Receipt:
    return spool.receive(
        header, b"pixels", sop_class_uid="1.2", sop_instance_uid="1.2.3",
        transfer_syntax_uid="1.2.840.10008.1.2.1", **more,
    )  # fmt: skip


def mark(spool: Spool, *destinations: str, mark: bytes = b" marked") -> bool:
    """Mark as the node does: what comes out is made of what was received."""
    job = spool.claim()
    assert job is not None
    out = spool.work_path(job)
    out.write_bytes(job.path.read_bytes() + mark)
    return spool.finish(job, out, action="marked", deliver_to=destinations, key_id=b"k" * 8)


def only(spool: Spool) -> Job:
    [job] = spool.jobs()
    return job


def lose(path: Path | None) -> None:
    assert path is not None
    path.unlink()


def deliver(spool: Spool, destination: str) -> bytes:
    [delivery] = spool.claim_delivery(destination)
    data = delivery.path.read_bytes()
    spool.delivered(delivery)
    return data


def test_an_instance_sent_again_takes_the_place_of_a_lost_one_and_is_marked(spool: Spool) -> None:
    first = send(spool)
    lose(only(spool).path)
    assert spool.recover().held_jobs == 1
    again = send(spool)
    assert again == Receipt(first.job_id, duplicate_of=first.job_id, restored=True)
    assert (only(spool).state, only(spool).reason) == ("received", "")
    assert spool.recover().held_jobs == 0
    mark(spool, "pacs")
    assert deliver(spool, "pacs") == SENT + b" marked"
    assert spool.tally()["delivered"] == 1


def test_it_does_so_before_anybody_has_noticed_the_loss(spool: Spool) -> None:
    send(spool)
    lose(only(spool).path)
    assert send(spool).restored
    mark(spool, "pacs")
    assert deliver(spool, "pacs") == SENT + b" marked"


def test_a_worker_that_missed_the_lost_file_cannot_hold_the_one_that_came_again(
    spool: Spool,
) -> None:
    send(spool)
    job = spool.claim()
    assert job is not None
    lose(job.path)
    assert send(spool).restored
    with pytest.raises(LeaseLost):
        spool.hold(job, "received file is missing")
    mark(spool, "pacs")
    assert deliver(spool, "pacs") == SENT + b" marked"


def test_a_file_that_was_cut_short_counts_as_lost(spool: Spool) -> None:
    send(spool)
    os.truncate(only(spool).path, 20)
    assert send(spool).restored
    assert only(spool).path.read_bytes() == SENT


def test_a_held_file_whose_bytes_changed_on_disk_counts_as_lost(spool: Spool) -> None:
    send(spool)
    job = spool.claim()
    assert job is not None
    job.path.write_bytes(HEADER + b"pixelz")
    spool.hold(job, "cannot be decoded")
    assert send(spool).restored
    assert only(spool).path.read_bytes() == SENT
    assert only(spool).state == "received"


def test_a_held_file_that_is_whole_still_absorbs_the_same_bytes(spool: Spool) -> None:
    send(spool)
    job = spool.claim()
    assert job is not None
    spool.hold(job, "cannot be decoded")
    assert send(spool) == Receipt(job.id, duplicate_of=job.id)
    assert only(spool).state == "held"


def test_the_file_is_in_its_place_on_disk_before_the_sender_is_answered(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(spool)
    place = only(spool).path
    lose(place)
    synced: list[tuple[str, bool]] = []
    fsync = os.fsync

    def note(handle: int) -> None:
        synced.append((Path(f"/proc/self/fd/{handle}").readlink().name, place.exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    send(spool)
    assert synced[-1] == (place.parent.name, True)


def test_a_place_that_cannot_be_made_durable_is_no_success(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(spool)
    lose(only(spool).path)

    def broken(*_: Any) -> None:
        raise SpoolError("Input/output error")

    monkeypatch.setattr(spool._files, "replace_received", broken)
    with pytest.raises(SpoolError):
        send(spool)
    assert only(spool).coalesced == 0


def test_a_sender_of_another_name_restores_the_file_as_well(spool: Spool) -> None:
    send(spool)
    lose(only(spool).path)
    meta = META + b"\x02\x00\x16\x00AE\x04\x00CT1 "
    assert send(spool, HEADER[:140] + len(meta).to_bytes(4, "little") + meta).restored
    assert not send(spool).restored, "its size is known"


@pytest.mark.parametrize("noticed", [True, False])
def test_with_marking_off_the_instance_sent_again_goes_to_whom_it_was_for(
    spool: Spool, noticed: bool
) -> None:
    send(spool, deliver_to=["pacs"])
    lose(only(spool).path)
    if noticed:
        [delivery] = spool.claim_delivery("pacs")
        spool.hold_delivery(delivery, "it cannot be read: No such file or directory")
        assert not spool.release(delivery.job_id)
    assert send(spool, deliver_to=["pacs"]).restored
    assert deliver(spool, "pacs") == SENT


def test_a_lost_original_of_a_result_goes_on_but_what_the_pacs_refused_stays_held(
    spool: Spool,
) -> None:
    send(spool)
    mark(spool, "pacs", "archive")
    spool.hold_delivery(spool.claim_delivery("pacs")[0], "0xC000", status=0xC000)
    lose(only(spool).path)
    assert spool.recover().held_jobs == 1
    assert send(spool).restored
    assert deliver(spool, "archive") == SENT + b" marked"
    assert spool.claim_delivery("pacs") == []
    assert (only(spool).state, only(spool).reason) == ("held", "pacs: 0xC000")


def test_a_lost_result_is_marked_anew_by_recovery_with_the_first_time_and_key(
    spool: Spool,
) -> None:
    send(spool)
    mark(spool, "pacs", "archive")
    first = only(spool)
    assert deliver(spool, "pacs") == SENT + b" marked"
    lose(first.result)
    found = spool.recover()
    assert (found.requeued_jobs, found.held_jobs) == (1, 0)
    assert "marked anew" in only(spool).reason
    job = only(spool)
    assert (job.state, job.marked_at, job.key_id) == ("received", first.marked_at, b"k" * 8)
    assert spool.claim_delivery("archive") == []
    assert mark(spool, "pacs", "archive")
    assert deliver(spool, "archive") == SENT + b" marked"
    assert spool.claim_delivery("pacs") == [], "it has it"
    assert only(spool).state == "delivered"


def test_release_marks_anew_what_the_forwarder_held_for_its_lost_result(spool: Spool) -> None:
    send(spool)
    mark(spool, "pacs")
    lose(only(spool).result)
    [delivery] = spool.claim_delivery("pacs")
    spool.hold_delivery(delivery, "it cannot be read: No such file or directory")
    assert spool.release(delivery.job_id)
    assert not only(spool).released, "it is no other policy that lets it go"
    mark(spool, "pacs")
    assert deliver(spool, "pacs") == SENT + b" marked"


def test_with_both_files_lost_nothing_is_released_until_the_instance_comes_again(
    spool: Spool,
) -> None:
    send(spool)
    mark(spool, "pacs")
    lose(only(spool).result)
    lose(only(spool).path)
    assert spool.recover().held_jobs == 1
    assert not spool.release(only(spool).id)
    assert send(spool).restored
    mark(spool, "pacs")
    assert deliver(spool, "pacs") == SENT + b" marked"


def test_marked_anew_otherwise_than_a_destination_has_it_is_held_until_somebody_decides(
    spool: Spool,
) -> None:
    send(spool)
    mark(spool, "pacs", "archive")
    deliver(spool, "pacs")
    lose(only(spool).result)
    spool.recover()
    assert not mark(spool, "pacs", "archive", mark=b" by other weights")
    job = only(spool)
    assert job.state == "held"
    assert f"what job {job.id} delivered" in job.reason
    assert spool.claim_delivery("archive") == []
    assert spool.release(job.id)
    assert deliver(spool, "archive") == SENT + b" by other weights"


def test_marked_anew_where_everybody_has_it_already_it_is_delivered(spool: Spool) -> None:
    send(spool)
    mark(spool, "pacs", "old")
    deliver(spool, "pacs")
    lose(only(spool).result)
    spool.recover()
    mark(spool, "pacs")
    assert only(spool).state == "delivered"
    assert list(spool.settings.directory.rglob("*.dcm")) == []


def test_a_delivery_in_hand_of_a_result_that_is_marked_anew_is_not_counted(spool: Spool) -> None:
    send(spool)
    mark(spool, "pacs")
    [delivery] = spool.claim_delivery("pacs")
    lose(only(spool).result)
    spool.recover()
    with pytest.raises(LeaseLost):
        spool.delivered(delivery)
    mark(spool, "pacs")
    assert deliver(spool, "pacs") == SENT + b" marked"
