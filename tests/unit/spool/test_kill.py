"""kill -9 of every process of the spool, at random moments, while instances flow through it."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from dicom_node.config import SpoolConfig
from dicom_node.errors import LeaseLost, SpoolError
from dicom_node.spool import Spool

SETTINGS = {"min_free_mib": 0, "max_backlog": 10**6}
ROUNDS = 20


def receiver(folder: Path, seed: int) -> None:
    """Receive for ever; note every success *after* it was promised."""
    spool = Spool(SpoolConfig(directory=folder, **SETTINGS))
    promises = os.open(folder.parent / "promised", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    number = 0
    while True:
        number += 1
        uid = f"{seed}.{os.getpid()}.{number}"
        spool.receive(
            b"h" * 300,
            uid.encode() * 300,
            sop_class_uid="1",
            sop_instance_uid=uid,
            transfer_syntax_uid="1.2",
        )
        os.write(promises, f"{uid}\n".encode())


def worker(folder: Path, _seed: int) -> None:
    spool = Spool(SpoolConfig(directory=folder, **SETTINGS))
    while True:
        job = spool.claim()
        if job is None:
            spool.wait_for_job(0.05)
            continue
        out = spool.work_path(job)
        out.write_bytes(job.path.read_bytes() + b"marked")
        try:
            spool.finish(job, out, action="marked", deliver_to=["pacs"])
        except LeaseLost:
            out.unlink(missing_ok=True)


def forwarder(folder: Path, _seed: int) -> None:
    """The archive is a file of lines; what it has answered is on disk before we say so."""
    spool = Spool(SpoolConfig(directory=folder, **SETTINGS))
    archive = os.open(folder.parent / "archive", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    while True:
        for delivery in spool.claim_delivery("pacs"):
            whole = delivery.path.read_bytes()
            assert whole.endswith(b"marked")
            os.write(archive, f"{delivery.sop_instance_uid} {delivery.id}\n".encode())
            try:
                spool.delivered(delivery)
            except (LeaseLost, SpoolError):
                continue
        spool.wait_for_delivery("pacs", 0.05)


def promises(folder: Path) -> int:
    path = folder / "promised"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.fault
def test_nothing_promised_is_lost_whoever_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    context = multiprocessing.get_context("fork")
    roles = {"receive": receiver, "mark-0": worker, "mark-1": worker, "forward": forwarder}

    def start(name: str, seed: int) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=roles[name], args=(folder, seed))
        process.start()
        return process

    chance = random.Random(20)
    running = {name: start(name, 0) for name in roles}
    with Spool(SpoolConfig(directory=folder, **SETTINGS)) as spool:
        for seed in range(1, ROUNDS + 1):
            # Work must have gone on since the last kill, however busy the machine is.
            before, limit = promises(tmp_path), time.monotonic() + 20
            while promises(tmp_path) < before + 3 and time.monotonic() < limit:
                time.sleep(0.01)
            time.sleep(chance.uniform(0.0, 0.1))
            name = chance.choice(sorted(roles))
            os.kill(running[name].pid or 0, signal.SIGKILL)
            running[name].join()
            spool.recover()
            running[name] = start(name, seed)
        running["receive"].kill()
        running["receive"].join()
        limit = time.monotonic() + 60
        while spool.backlog():
            spool.reclaim()
            assert time.monotonic() < limit, spool.tally()
            time.sleep(0.05)
        for process in running.values():
            process.kill()
            process.join()
        found = spool.recover()
        promised = (tmp_path / "promised").read_text().split()
        sent = [line.split()[0] for line in (tmp_path / "archive").read_text().splitlines()]
        assert len(promised) >= 3 * ROUNDS
        assert set(promised) <= set(sent)
        # Sent again only if the forwarder died between the archive's answer and noting it.
        assert all(times <= 1 + ROUNDS for times in Counter(sent).values())
        assert len(sent) - len(set(sent)) <= ROUNDS
        assert found.held_jobs == 0
        assert spool.tally()["delivered"] == len(set(sent))
        left = [path for kind in ("received", "marked") for path in folder.rglob(f"{kind}/*/*")]
        assert left == []
        assert spool._journal._connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
