"""Nobody waits: requests called off, and archives that hang, stall or never end."""

from __future__ import annotations

import time

import pytest
import verifying
from harness import wait_for
from pynetdicom.sop_class import CTImageStorage
from verify_faults import hanging_port, left
from verifying import (
    STUDY_FIND,
    STUDY_GET,
    STUDY_MOVE,
    FakePacs,
    Service,
    block_of,
    client,
    keys,
    verify_now,
)

from dicom_node.config import parse
from dicom_node.verify import audit_run
from dicom_node.verify.audit_run import RunFile
from dicom_node.verify.inspector import Inspector

pytestmark = [pytest.mark.fault, pytest.mark.slow]


def test_a_query_is_cancelled_within_a_second(service, pacs):
    pacs.matches, pacs.delay_s = 15, 0.3
    with client(service, STUDY_FIND) as assoc:
        answers = assoc.send_c_find(keys(StudyInstanceUID=""), STUDY_FIND, msg_id=7)
        next(answers)
        assoc.send_c_cancel(7, query_model=STUDY_FIND)
        cancelled_at = time.monotonic()
        last = list(answers)[-1][0]
    assert last.Status == 0xFE00
    assert time.monotonic() - cancelled_at < 1.0
    wait_for(lambda: pacs.cancelled, 10, "the archive was not told to stop")


def test_a_check_before_an_answer_is_cancelled_within_a_second(service, pacs):
    pacs.delay_s = 1.5  # an archive that takes its time over each instance
    with client(service, STUDY_FIND) as assoc:
        asked = verify_now(keys(StudyInstanceUID="1.2.3.1"))
        answers = assoc.send_c_find(asked, STUDY_FIND, msg_id=9)
        time.sleep(3.0)
        assoc.send_c_cancel(9, query_model=STUDY_FIND)
        cancelled_at = time.monotonic()
        last = list(answers)[-1][0]
        took_s = time.monotonic() - cancelled_at
    assert last.Status == 0xFE00
    assert took_s < 1.0


def test_a_move_to_a_destination_that_hangs_is_cancelled_within_a_second(service):
    with client(service, STUDY_MOVE) as assoc:
        answers = assoc.send_c_move(keys(StudyInstanceUID="1.2.3.2"), "HANGING", STUDY_MOVE,
                                    msg_id=3)  # fmt: skip
        time.sleep(3.0)
        assoc.send_c_cancel(3, query_model=STUDY_MOVE)
        cancelled_at = time.monotonic()
        last = list(answers)[-1][0]
        took_s = time.monotonic() - cancelled_at
    assert last.Status == 0xFE00
    assert last.NumberOfRemainingSuboperations == 2
    assert took_s < 1.0


def _cancelled(assoc, answers, model, message_id, after_s=1.0):
    """Call a request off and return its last answer, how long that and the release took."""
    time.sleep(after_s)
    started = time.monotonic()
    assoc.send_c_cancel(message_id, query_model=model)
    last = list(answers)[-1][0]
    answered = time.monotonic()
    assoc.release()
    return last, answered - started, time.monotonic() - answered


def test_a_client_that_called_a_hanging_move_off_is_let_go_at_once(service):
    with client(service, STUDY_MOVE) as assoc:
        asked = keys(StudyInstanceUID="1.2.3.2")
        answers = assoc.send_c_move(asked, "HANGING", STUDY_MOVE, msg_id=4)
        last, took_s, release_s = _cancelled(assoc, answers, STUDY_MOVE, 4, 3.0)
    assert last.Status == 0xFE00
    assert took_s < 1.0
    assert release_s < 1.5


@pytest.mark.parametrize("how", ["find", "verify now", "move"])
def test_a_client_need_not_wait_for_a_pacs_that_hangs(tmp_path, marks, how):
    text = verifying.config_text(tmp_path, marks.keys, hanging_port(), move=[("AWAY", 1)])
    one = Service(parse(text, "test")).start()
    try:
        model = STUDY_MOVE if how == "move" else STUDY_FIND
        with client(one, model) as assoc:
            asked = keys(StudyInstanceUID="1.2.3.1")
            if how == "move":
                answers = assoc.send_c_move(asked, "AWAY", STUDY_MOVE, msg_id=5)
            else:
                asked = verify_now(asked) if how == "verify now" else asked
                answers = assoc.send_c_find(asked, STUDY_FIND, msg_id=5)
            last, took_s, release_s = _cancelled(assoc, answers, model, 5)
        assert last.Status == 0xFE00
        assert took_s < 1.0
        assert release_s < 1.5
    finally:
        one.end()


@pytest.mark.parametrize("how", ["find", "get"])
def test_a_client_need_not_wait_for_a_pacs_that_ignores_c_cancel(service, pacs, how):
    pacs.delay_s, pacs.ignores_cancel = 4.0, True
    model = STUDY_FIND if how == "find" else STUDY_GET
    with client(service, model, storage=[CTImageStorage] if how == "get" else (),
                on_store=lambda event: 0x0000) as assoc:  # fmt: skip
        asked = keys(StudyInstanceUID="1.2.3.1")
        if how == "find":
            answers = assoc.send_c_find(asked, STUDY_FIND, msg_id=6)
        else:
            answers = assoc.send_c_get(asked, STUDY_GET, msg_id=6)
        last, took_s, release_s = _cancelled(assoc, answers, model, 6)
    assert last.Status == 0xFE00
    assert took_s < 1.0
    assert release_s < 1.5


@pytest.mark.parametrize(
    ("how", "stall"),
    [
        ("get", "between PDUs"), ("get", "inside a PDU"), ("get", "endless"),
        ("move", "between PDUs"), ("move", "inside a PDU"),
        ("verify now", "inside a PDU"), ("find", "inside a match"),
    ],
)  # fmt: skip
def test_a_client_need_not_wait_for_the_rest_of_an_instance(service, pacs, how, stall):
    pacs.stall = stall
    model = {"get": STUDY_GET, "move": STUDY_MOVE}.get(how, STUDY_FIND)
    with client(service, model, storage=[CTImageStorage] if how == "get" else (),
                on_store=lambda event: 0x0000) as assoc:  # fmt: skip
        asked = keys(StudyInstanceUID="1.2.3.1")
        if how == "get":
            answers = assoc.send_c_get(asked, STUDY_GET, msg_id=8)
        elif how == "move":
            answers = assoc.send_c_move(asked, "HANGING", STUDY_MOVE, msg_id=8)
        else:
            asked = verify_now(asked) if how == "verify now" else asked
            answers = assoc.send_c_find(asked, STUDY_FIND, msg_id=8)
        assert pacs.stalled.wait(10)
        last, took_s, release_s = _cancelled(assoc, answers, model, 8, 0.2)
    assert last.Status == 0xFE00
    assert took_s < 1.0
    assert release_s < 1.5
    # Well before anybody's time-out, which is 10 s.
    wait_for(lambda: not left(service), 4, lambda: str(left(service)))
    wait_for(lambda: not pacs.stalled.is_set(), 4, "the PACS still has its association")


def test_an_instance_that_stops_on_its_way_to_the_inner_storage_scp_is_cut_too(tmp_path, marks):
    files = [marked for _, marked in marks.study(1, 2, size=128)]
    fetch_port = verifying.refusing_port()
    pacs = FakePacs(files, get=False, fetch_port=fetch_port)
    text = verifying.config_text(tmp_path, marks.keys, pacs.port, fetch_port=fetch_port)
    one = Service(parse(text, "test")).start()
    try:
        pacs.stall = "inside a PDU"
        with client(one, STUDY_GET, storage=[CTImageStorage],
                    on_store=lambda event: 0x0000) as assoc:  # fmt: skip
            answers = assoc.send_c_get(keys(StudyInstanceUID="1.2.3.1"), STUDY_GET, msg_id=8)
            assert pacs.stalled.wait(10)
            last, took_s, _ = _cancelled(assoc, answers, STUDY_GET, 8, 0.2)
        assert last.Status == 0xFE00
        assert took_s < 1.0
        wait_for(lambda: not pacs.stalled.is_set(), 4, "the PACS still has its association")
        wait_for(lambda: not left(one), 4, lambda: str(left(one)))
    finally:
        one.end()
        pacs.stop()


def test_a_client_that_aborts_is_not_waited_for_by_an_instance_that_does_not_end(service, pacs):
    pacs.stall = "inside a PDU"
    with client(service, STUDY_GET, storage=[CTImageStorage],
                on_store=lambda event: 0x0000) as assoc:  # fmt: skip
        assoc.send_c_get(keys(StudyInstanceUID="1.2.3.1"), STUDY_GET)
        assert pacs.stalled.wait(10)
        assoc.abort()
    wait_for(lambda: not left(service), 4, lambda: str(left(service)))


def test_no_fetched_file_outlives_an_audit_whose_pacs_goes_down(tmp_path, marks, pacs):
    text = verifying.config_text(tmp_path, marks.keys, pacs.port, store_reports=True)
    config = parse(text, "test")
    fetched = config.spool.directory / "fetched"
    file = RunFile(None)
    file.begin(["1.2.3.1"])
    pacs.abort_after = 3
    came = []
    with Inspector(config, listen=False) as inspector:
        summary = audit_run.run(
            inspector, file, checked_by="test", progress=lambda done, total: came.append(done)
        )
        assert list(summary.failed) == ["1.2.3.1"]
        assert max(came) == 3
        assert [p for p in fetched.rglob("*") if p.is_file()] == []


def test_a_client_hears_of_a_long_check_before_it_loses_patience(service, pacs, monkeypatch):
    monkeypatch.setattr("dicom_node.verify.query.HEARTBEAT_S", 1.0)
    pacs.delay_s = 0.8
    with client(service, STUDY_FIND) as assoc:
        asked = verify_now(keys(StudyInstanceUID="1.2.3.1"))
        answers = list(assoc.send_c_find(asked, STUDY_FIND))
    said = [block_of(match) for _, match in answers[:-1]]
    assert len(said) > 1
    assert all("checked" in each[0x21] for each in said[:-1])
    assert said[-1][0x10] == "authentic"
    assert 0x21 not in said[-1]
