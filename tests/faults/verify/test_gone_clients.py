"""Clients that go away, and workers that are killed, leave nothing behind."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest
from harness import wait_for
from pynetdicom.sop_class import CTImageStorage
from verify_faults import checking_workers, get, left
from verifying import STUDY_FIND, STUDY_GET, STUDY_MOVE, client, keys, verify_now

pytestmark = [pytest.mark.fault, pytest.mark.slow]


def test_aborted_associations_under_load_leave_nothing_behind(service, pacs):
    pacs.delay_s = 0.05
    descriptors = _descriptors()
    failures = []

    def load(how, after_s):
        try:
            for politely in (True, False):
                _go_away(service, how, after_s, politely=politely)
        except Exception as error:  # noqa: BLE001 - shown by the test
            failures.append(repr(error))

    clients = [
        threading.Thread(target=load, args=(how, after_s), name=f"client {how}")
        for how in ("find", "verify now", "get", "move")
        for after_s in (0.0, 0.3)
    ]  # fmt: skip
    for each in clients:
        each.start()
    for each in clients:
        each.join(60)
    assert not any(each.is_alive() for each in clients)
    assert failures == []
    wait_for(lambda: not left(service), 20, lambda: str(left(service)))
    wait_for(
        lambda: _descriptors() <= descriptors + 2, 20,
        lambda: f"{_descriptors()} descriptors, {descriptors} before",
    )  # fmt: skip
    status, _ = get(service, keys(StudyInstanceUID="1.2.3.1"))
    assert status.Status == 0x0000


def _go_away(service, how, after_s, *, politely):
    """Ask for something and abort, or let the connection just end: at once, or `after_s` seconds
    after the first answer.
    """
    model = {"get": STUDY_GET, "move": STUDY_MOVE}.get(how, STUDY_FIND)
    with client(service, model, storage=[CTImageStorage] if how == "get" else (),
                on_store=lambda event: 0x0000) as assoc:  # fmt: skip
        asked = keys(StudyInstanceUID="1.2.3.1")
        if how == "get":
            answers = assoc.send_c_get(asked, STUDY_GET)
        elif how == "move":
            answers = assoc.send_c_move(asked, "TAKING" if after_s else "HANGING", STUDY_MOVE)
        else:
            asked = verify_now(asked) if how == "verify now" else asked
            answers = assoc.send_c_find(asked, STUDY_FIND)
        if after_s:
            next(answers)  # it has begun
            time.sleep(after_s)
        if not politely:
            assoc.dul.socket.socket.shutdown(socket.SHUT_RDWR)
        assoc.abort()


def test_a_client_that_takes_no_more_instances_is_dropped_not_waited_for(service):
    def store(event):
        event.assoc.abort()
        return 0xC000

    with client(service, STUDY_GET, storage=[CTImageStorage], on_store=store,
                patience_s=3) as assoc:  # fmt: skip
        list(assoc.send_c_get(keys(StudyInstanceUID="1.2.3.1"), STUDY_GET))
    assert service.thread.is_alive()


def test_a_checking_worker_that_is_killed_costs_one_verdict_and_no_association(service, pacs):
    pacs.delay_s = 0.2
    with client(service, STUDY_GET, storage=[CTImageStorage],
                on_store=lambda event: 0x0000) as assoc:  # fmt: skip
        answers = assoc.send_c_get(keys(StudyInstanceUID="1.2.3.1"), STUDY_GET)
        next(answers)
        for pid in checking_workers():
            os.kill(pid, 9)
        last = list(answers)[-1][0]
    assert last.NumberOfCompletedSuboperations + last.NumberOfWarningSuboperations == 6
    assert last.NumberOfWarningSuboperations <= 1


def _descriptors():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
