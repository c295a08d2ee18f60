"""On a disk that is really full the journal goes on, and nothing new is taken in."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from peer_tools import missing

from dicom_node.config import SpoolConfig
from dicom_node.errors import SpoolFull
from dicom_node.spool import Delivery, Receipt, Spool, reserve

pytestmark = pytest.mark.fault
_MIB = 1 << 20
_BLOCK = 4096


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MiB of its own."""
    if os.geteuid() != 0:
        missing("a file system of its own needs root: the full-disk tests did not run")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        missing(f"no tmpfs can be mounted here: {mounted.stderr}")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=False)


@pytest.fixture
def spool(disk: Path) -> Iterator[Spool]:
    with Spool(SpoolConfig(directory=disk / "spool", min_free_mib=0)) as opened:
        yield opened


def send(spool: Spool, uid: str, size: int = 1000) -> Receipt:
    return spool.receive(
        b"", os.urandom(size), sop_class_uid="1.2", sop_instance_uid=uid,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
    )  # fmt: skip


def free(disk: Path) -> int:
    told = os.statvfs(disk)
    return told.f_bavail * told.f_frsize


def fill(disk: Path, *, leave: int = 0) -> Path:
    """Fill the disk to the last block but `leave` bytes; return what fills it."""
    ballast = disk / "ballast"
    with ballast.open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, file.tell() + free(disk) - leave))
    return ballast


def mark(spool: Spool, size: int = 1000) -> int | None:
    job = spool.claim()
    if job is None:
        return None
    out = spool.work_path(job)
    out.write_bytes(bytes(size))
    spool.finish(job, out, action="marked", deliver_to=["pacs"])
    return job.id


def renew_until_the_log_needs_another_block(spool: Spool, delivery: Delivery) -> None:
    for _ in range(2000):
        spool.renew_delivery(delivery)


def reserved(disk: Path) -> int:
    """Return how many bytes are really allocated to the reserve."""
    with contextlib.suppress(FileNotFoundError):
        return (disk / "spool" / "journal.reserve").stat().st_blocks * 512
    return 0


def test_receiving_begins_with_a_reserve_of_allocated_blocks(disk: Path, spool: Spool) -> None:
    send(spool, "1")
    assert reserved(disk) == reserve.RESERVE_MIB * _MIB


def test_the_reserve_is_more_than_the_journal_was_seen_to_need(disk: Path, spool: Spool) -> None:
    before = free(disk)
    with Spool(spool.settings) as worker:
        for number in range(300):
            send(spool, str(number), 1)
            mark(worker, 1)
            spool.delivered(spool.claim_delivery("pacs")[0])
    used = sum(path.stat().st_size for path in (disk / "spool").glob("journal.sqlite*"))
    assert used < before
    assert used <= reserve.JOURNAL_ROOM_MIB * _MIB < reserve.RESERVE_MIB * _MIB


def test_every_step_of_a_job_can_be_recorded_on_a_full_disk(disk: Path, spool: Spool) -> None:
    for number in range(100):
        send(spool, str(number))
    ballast = fill(disk)
    for _ in range(50):
        mark(spool)
    ballast.unlink()
    send(spool, "puts the reserve back")
    fill(disk)
    for delivery in spool.claim_delivery("pacs", limit=50):
        spool.renew_delivery(delivery)
        spool.delivered(delivery)
    for job in spool.jobs(state="received"):
        spool.drop(job.id)
    assert spool.tally()["delivered"] == 50
    assert spool.tally()["dropped"] == 51


def test_after_the_reserve_is_given_up_nothing_is_taken_in_until_it_is_back(
    disk: Path, spool: Spool
) -> None:
    send(spool, "1")
    ballast = fill(disk)
    assert mark(spool) == 1
    assert reserved(disk) == 0
    assert free(disk) > 4 * _MIB
    with pytest.raises(SpoolFull, match="8 MiB in reserve; 16 MiB have to be free"):
        send(spool, "2")
    assert len(spool.jobs()) == 1
    ballast.unlink()
    send(spool, "2")
    assert reserved(disk) == reserve.RESERVE_MIB * _MIB


def test_a_waiting_process_puts_the_reserve_back(disk: Path, spool: Spool) -> None:
    send(spool, "1")
    ballast = fill(disk)
    mark(spool)
    ballast.unlink()
    assert reserved(disk) == 0
    spool.wait_for_job(0.01)
    assert reserved(disk) == reserve.RESERVE_MIB * _MIB


def test_results_do_not_take_what_the_journal_may_need(disk: Path, spool: Spool) -> None:
    """A large one waits, a small one behind it goes first: each delivery makes more room."""
    large, small = send(spool, "1", 2 * _MIB), send(spool, "2")
    fill(disk)
    assert spool.make_room()
    fill(disk, leave=reserve.JOURNAL_ROOM_MIB * _MIB + _MIB)
    assert mark(spool) == small.job_id
    assert spool.claim() is None
    for _bell in (large, small):
        spool.wait_for_job(0)
    assert not spool.wait_for_job(0.2), "and nobody is told to try"
    (disk / "ballast").unlink()
    assert mark(spool) == large.job_id


def test_two_results_do_not_count_on_the_same_room(disk: Path, spool: Spool) -> None:
    for uid in "12":
        send(spool, uid, _MIB)
    fill(disk)
    spool.make_room()
    fill(disk, leave=reserve.JOURNAL_ROOM_MIB * _MIB + 3 * _MIB // 2)
    with Spool(spool.settings) as other:
        first = spool.claim()
        assert first is not None
        assert other.claim() is None
        spool.unclaim(first)
        assert other.claim() is not None


def test_an_instance_whose_result_would_not_fit_is_not_taken_in(disk: Path, spool: Spool) -> None:
    send(spool, "1")
    fill(disk, leave=3 * _MIB)
    with pytest.raises(SpoolFull, match="no space left for the result"):
        send(spool, "2", 2 * _MIB)
    assert free(disk) > 2 * _MIB, "nor kept"
    send(spool, "3", _MIB)


def test_the_reserve_is_kept_while_the_disk_has_room(disk: Path, spool: Spool) -> None:
    send(spool, "1")
    assert not spool.make_room()
    assert reserved(disk)


def test_with_nothing_left_to_give_up_a_step_waits_for_room(
    disk: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(spool, "1")
    mark(spool)
    [delivery] = spool.claim_delivery("pacs")
    fill(disk)
    spool.make_room()
    ballast = fill(disk)
    monkeypatch.setattr(reserve, "FULL_TIMEOUT_S", 0.3)
    with pytest.raises(SpoolFull):
        renew_until_the_log_needs_another_block(spool, delivery)
    monkeypatch.setattr(reserve, "FULL_TIMEOUT_S", 30.0)
    monkeypatch.setattr(time, "sleep", lambda _s: ballast.unlink(missing_ok=True))
    spool.delivered(delivery)
    assert spool.tally()["delivered"] == 1


def test_a_spool_can_be_opened_on_a_full_disk(disk: Path, spool: Spool) -> None:
    send(spool, "1")
    fill(disk)
    with Spool(spool.settings) as other:
        assert other.recover().held_jobs == 0
        assert mark(other) == 1
