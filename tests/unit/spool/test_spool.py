"""The spool's folder: recovery, wakers, what it refuses to open."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from spooling import HEADER, send

from dicom_node.config import SpoolConfig
from dicom_node.errors import SpoolError
from dicom_node.spool import Spool


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
