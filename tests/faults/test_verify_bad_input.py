"""The verification service under clients and archives that misbehave."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest
import verifying
from harness import wait_for
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage
from verifying import (
    STUDY_FIND,
    STUDY_GET,
    STUDY_MOVE,
    FakePacs,
    Marks,
    Service,
    block_of,
    client,
    keys,
    verify_now,
)

from dicom_node.config import parse
from dicom_node.dimse import commands, query_commands
from dicom_node.dimse.query_scu import PacsLost, QueryAssociation
from dicom_node.registry.records import MarkedInstance, VerdictEntry
from dicom_node.verify import audit_run
from dicom_node.verify.audit_run import RunFile
from dicom_node.verify.inspector import Inspector

pytestmark = [pytest.mark.fault, pytest.mark.slow]


@pytest.fixture(scope="module")
def marks(tmp_path_factory):
    return Marks(tmp_path_factory.mktemp("marks"))


@pytest.fixture(scope="module")
def pacs(marks):
    """A pynetdicom archive with studies 1 (6 slices) and 2 (2 slices)."""
    files = [marked for number, slices in ((1, 6), (2, 2))
             for _, marked in marks.study(number, slices, size=128)]  # fmt: skip
    one = FakePacs(files)
    yield one
    one.stop()


@pytest.fixture(scope="module")
def taking():
    """Return the port of a Storage SCP that takes every instance."""
    ae = AE("TAKING")
    ae.add_supported_context(CTImageStorage)
    server = ae.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda event: 0x0000)]
    )
    yield server.server_address[1]
    server.shutdown()


@pytest.fixture(scope="module")
def service(tmp_path_factory, marks, pacs, taking):
    folder = tmp_path_factory.mktemp("service")
    text = verifying.config_text(
        folder, marks.keys, pacs.port, max_matches=20, max_unchecked=40,
        move=[("HANGING", _hanging_port()), ("TAKING", taking)],
    )
    one = Service(parse(text, "test")).start()
    yield one
    one.end()


_HANGING = []


def _hanging_port():
    """Return a port whose connections are taken and never answered."""
    listener = socket.create_server(("127.0.0.1", 0))
    _HANGING.append(listener)
    return listener.getsockname()[1]


@pytest.fixture(autouse=True)
def _healthy(request):
    """Begin with a sound archive; end with nothing left in the service."""
    pacs, service = request.getfixturevalue("pacs"), request.getfixturevalue("service")
    pacs.abort_after, pacs.delay_s, pacs.matches, pacs.send = None, 0.0, None, None
    pacs.ignores_cancel, pacs.stall, pacs.images = False, None, None
    pacs.cancelled.clear()
    yield
    wait_for(lambda: not _left(service), 15, lambda: str(_left(service)))


def _left(service):
    names = ("association", "fetch", "move to")
    threads = [t.name for t in threading.enumerate() if t.name.startswith(names)]
    # pynetdicom's own threads belong to the archive and the clients of these tests.
    return threads + service.scratch()


def get(service, identifier, on_store=lambda event: 0x0000):
    with client(service, STUDY_GET, storage=[CTImageStorage], on_store=on_store) as assoc:
        answers = list(assoc.send_c_get(identifier, STUDY_GET))
    return answers[-1]


def test_a_pacs_that_is_down_in_mid_transfer_fails_the_rest_and_names_it(service, pacs):
    pacs.abort_after = 3
    status, identifier = get(service, keys(StudyInstanceUID="1.2.3.1"))
    assert status.Status == 0xB000
    assert status.NumberOfCompletedSuboperations == 3
    assert status.NumberOfFailedSuboperations == 3
    assert sorted(identifier.FailedSOPInstanceUIDList) == [f"1.2.3.1.1.{n}" for n in (4, 5, 6)]


def test_a_pacs_that_is_down_in_mid_move_fails_the_rest_and_names_it(tmp_path, marks):
    files = [marked for _, marked in marks.study(1, 6, size=128)]
    fetch_port = verifying.refusing_port()
    pacs = FakePacs(files, get=False, fetch_port=fetch_port)
    text = verifying.config_text(tmp_path, marks.keys, pacs.port, fetch_port=fetch_port)
    one = Service(parse(text, "test")).start()
    try:
        status, _ = get(one, keys(StudyInstanceUID="1.2.3.1"))
        assert (status.Status, status.NumberOfCompletedSuboperations) == (0x0000, 6)
        pacs.abort_after = 2
        status, identifier = get(one, keys(StudyInstanceUID="1.2.3.1"))
        assert status.Status == 0xB000
        assert status.NumberOfCompletedSuboperations == 2
        assert len(identifier.FailedSOPInstanceUIDList) == 4
        assert one.scratch() == []
    finally:
        one.end()
        pacs.stop()


def test_what_did_not_come_from_a_broken_transfer_is_not_called_missing(service, pacs):
    pacs.abort_after = 3
    get(service, keys(StudyInstanceUID="1.2.3.1"))
    with service.registry() as registry:
        entries = registry.verdicts(study_instance_uid="1.2.3.1")
    assert "missing" not in {entry.verdict for entry in entries}
    given = service.audit_events("verdict-given")
    assert not [each for each in given if "missing" in each["counts"]]


def test_a_pacs_that_is_away_is_a_failure_with_its_name(tmp_path, marks):
    text = verifying.config_text(tmp_path, marks.keys, verifying.refusing_port())
    one = Service(parse(text, "test")).start()
    try:
        with client(one, STUDY_FIND) as assoc:
            [(status, _)] = assoc.send_c_find(keys(StudyInstanceUID=""), STUDY_FIND)
        assert status.Status == 0xC000
        assert "pacs" in status.ErrorComment
        status, _ = get(one, keys(StudyInstanceUID="1.2.3.1"))
        assert status.Status == 0xA701
    finally:
        one.end()


def test_a_flood_of_matches_ends_with_out_of_resources_and_a_reason(service, pacs):
    pacs.matches = 1000
    with client(service, STUDY_FIND) as assoc:
        answers = list(assoc.send_c_find(keys(StudyInstanceUID=""), STUDY_FIND))
    assert len(answers) == 40 + 1
    assert answers[-1][0].Status == 0xA700
    assert "more than 40 matches" in answers[-1][0].ErrorComment
    wait_for(lambda: pacs.cancelled, 10, "the archive was not told to stop")


def test_exactly_as_many_matches_as_allowed_are_a_success(service, pacs):
    pacs.matches = 40
    with client(service, STUDY_FIND) as assoc:
        answers = list(assoc.send_c_find(keys(StudyInstanceUID=""), STUDY_FIND))
    assert (len(answers), answers[-1][0].Status) == (41, 0x0000)


def test_a_flood_is_refused_before_anything_is_fetched(service, pacs):
    pacs.matches = 1000
    with client(service, STUDY_FIND) as assoc:
        answers = list(assoc.send_c_find(verify_now(keys(StudyInstanceUID="")), STUDY_FIND))
    assert [status.Status for status, _ in answers] == [0xA700]
    assert "more than 20 matches" in answers[0][0].ErrorComment
    wait_for(lambda: pacs.cancelled, 10, "the archive was not told to stop")


def test_a_series_of_2000_slices_is_listed_in_full_and_is_one_event_of_the_trail(
    tmp_path, marks, pacs
):
    pacs.images = 2000
    one = Service(parse(verifying.config_text(tmp_path, marks.keys, pacs.port), "test")).start()
    try:
        one.register(*(_entry_of_slice(n) for n in range(2000)))
        with one.registry() as registry:
            registry.add_verdicts(_verdict_on_slice(n) for n in range(2000))
        asked = keys("IMAGE", StudyInstanceUID="1.9", SeriesInstanceUID="1.9.1", SOPInstanceUID="")
        with client(one, STUDY_FIND) as assoc:
            answers = list(assoc.send_c_find(asked, STUDY_FIND))
        assert (len(answers), answers[-1][0].Status) == (2001, 0x0000)
        assert len({match.SOPInstanceUID for _, match in answers[:-1]}) == 2000
        [given] = one.audit_events("verdict-given")
        assert (given["verdict"], given["counts"]) == ("tampered", {"tampered": 1, "other": 1999})
    finally:
        one.end()


def test_every_verdict_of_a_long_answer_is_in_the_trail(tmp_path, marks, pacs):
    pacs.matches = 250
    one = Service(parse(verifying.config_text(tmp_path, marks.keys, pacs.port), "test")).start()
    try:
        with one.registry() as registry:
            registry.add_verdicts(
                VerdictEntry(f"1.9.{n}.1", "1.9", f"1.9.{n}", "authentic", 1.0, "audit", "{}")
                for n in range(250)
            )
        with client(one, STUDY_FIND) as assoc:
            answers = list(assoc.send_c_find(keys(StudyInstanceUID=""), STUDY_FIND))
        assert (len(answers), answers[-1][0].Status) == (251, 0x0000)
        given = one.audit_events("verdict-given")
        assert [each["study_instance_uid"] for each in given] == [f"1.9.{n}" for n in range(250)]
    finally:
        one.end()


def test_matches_beyond_the_bound_are_passed_on_where_nobody_asked_for_a_check(
    tmp_path, marks, pacs
):
    pacs.matches = 30
    text = verifying.config_text(tmp_path, marks.keys, pacs.port, max_matches=20, on_find="verify")
    one = Service(parse(text, "test")).start()
    try:
        with client(one, STUDY_FIND) as assoc:
            answers = list(assoc.send_c_find(keys(StudyInstanceUID=""), STUDY_FIND))
        assert (len(answers), answers[-1][0].Status) == (31, 0x0000)
        details = [json.loads(block_of(match)[0x17]) for _, match in answers[:-1]]
        assert {each["not_checked"] for each in details} == {"more than 20 matches: ask for less"}
    finally:
        one.end()


def _entry_of_slice(number):
    return MarkedInstance(f"1.9.1.{number}", "1.9.1", "1.9", CTImageStorage, verifying.EXPLICIT,
                          "marked", bytes(32), b"%032d" % number, bytes(8), 1, 1.0, "CT1", "CT",
                          number, 1)  # fmt: skip


def _verdict_on_slice(number):
    word = "tampered" if number == 1000 else "authentic"
    return VerdictEntry(f"1.9.1.{number}", "1.9.1", "1.9", word, 1.0, "audit", "{}")


@pytest.mark.parametrize(
    "broken",
    [
        keys("NONSENSE", StudyInstanceUID="1.2"),
        keys("PATIENT", PatientID="1"),
        keys("STUDY", StudyInstanceUID="../../etc/passwd"),
        keys("SERIES", StudyInstanceUID="1.2", SeriesInstanceUID="1.2.3\\' OR 1=1"),
    ],
    ids=["level", "level of the other root", "path", "injection"],
)
def test_an_identifier_that_fits_no_level_is_a900(service, pacs, broken):
    asked = pacs.queries
    with client(service, STUDY_FIND) as assoc:
        [(status, _)] = assoc.send_c_find(broken, STUDY_FIND)
        assert status.Status == 0xA900
        # The association is as good as before.
        again = list(assoc.send_c_find(keys(StudyInstanceUID="1.2.3.1"), STUDY_FIND))
    assert again[-1][0].Status == 0x0000
    assert pacs.queries == asked + 1


@pytest.mark.parametrize("missing", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_a_retrieve_without_a_key_it_needs_is_a900(service, missing):
    identifier = keys("SERIES", StudyInstanceUID="1.2.3.1", SeriesInstanceUID="1.2.3.1.1")
    del identifier[missing]
    status, _ = get(service, identifier)
    assert status.Status == 0xA900
    assert missing in status.ErrorComment


def test_bytes_that_are_no_data_set_are_refused_without_harm(service):
    with _raw(service) as assoc:
        answers = list(assoc.request("find", STUDY_FIND, b"\x08\x00\x52\x00XX\xff\xff" * 9,
                                     verifying.EXPLICIT))  # fmt: skip
        assert answers[-1].response.status in (0xA900, 0xC000)
        answers = list(assoc.request("find", STUDY_FIND, b"", verifying.EXPLICIT))
        assert answers[-1].response.status == 0xA900


def test_values_of_an_identifier_reach_no_log(service, capsys):
    asked = keys(StudyInstanceUID="not a uid", PatientName="SECRET^NAME", PatientID="SECRETID")
    with client(service, STUDY_FIND) as assoc:
        list(assoc.send_c_find(asked, STUDY_FIND))
        asked.StudyInstanceUID = ""
        list(assoc.send_c_find(verify_now(asked), STUDY_FIND))
    out = capsys.readouterr()
    trail = "".join(p.read_text() for p in service.config.audit_directory.glob("*.jsonl"))
    assert "SECRET" not in out.out + out.err + trail


@contextlib.contextmanager
def _raw(service):
    """Associate with our own requestor, which sends whatever it is told to."""
    assoc = QueryAssociation.open(
        "service", ("127.0.0.1", service.port), called_ae="DICOMVERIFY", calling_ae="RAW",
        sop_classes=[STUDY_FIND, STUDY_MOVE], timeout_s=30,
    )  # fmt: skip
    try:
        yield assoc
    finally:
        assoc.release()


def test_a_request_of_another_service_is_answered_as_unrecognized(service):
    with _raw(service) as assoc:
        queries = assoc._assoc.queries
        context = assoc._contexts[STUDY_FIND, verifying.EXPLICIT]
        move = query_commands.QueryRequest("move", 1, STUDY_FIND, "X").encode()
        queries.send(context, move, b"\0\0")
        assert queries.read(10)
        assert commands.us(queries.inbox.popleft().elements, commands.STATUS) == 0x0211


def test_answers_and_identifiers_without_end_cost_the_client_its_association(service):
    answer = commands.StoreResponse(1, 0x0000).encode()
    before = service.audit_events("queried")
    with _raw(service) as assoc:
        queries, context = assoc._assoc.queries, assoc._contexts[STUDY_FIND, verifying.EXPLICIT]
        for _ in range(3):
            queries.send_command(context, answer)
        assert queries.read(10)
        assert queries.over
    with _raw(service) as assoc, pytest.raises(PacsLost):
        list(assoc.request("find", STUDY_FIND, bytes(2 << 20), verifying.EXPLICIT))
    assert service.audit_events("queried") == before


# C-CANCEL


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
    text = verifying.config_text(tmp_path, marks.keys, _hanging_port(), move=[("AWAY", 1)])
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
    wait_for(lambda: not _left(service), 4, lambda: str(_left(service)))
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
        wait_for(lambda: not _left(one), 4, lambda: str(_left(one)))
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
    wait_for(lambda: not _left(service), 4, lambda: str(_left(service)))


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


# Archives that give something else


def test_fewer_instances_than_listed_are_failed_and_missing(service, pacs):
    pacs.send = pacs.files[:4]
    status, identifier = get(service, keys(StudyInstanceUID="1.2.3.1"))
    assert (status.Status, status.NumberOfFailedSuboperations) == (0xB000, 2)
    assert sorted(identifier.FailedSOPInstanceUIDList) == ["1.2.3.1.1.5", "1.2.3.1.1.6"]
    assert "2 missing" in status.ErrorComment


def test_other_instances_than_registered_are_extra(service, pacs, marks):
    registered = [marked for _, marked in marks.study(2, 2, size=128)]
    service.register(verifying.entry_of(registered[0]))
    with client(service, STUDY_FIND) as assoc:
        answers = list(assoc.send_c_find(verify_now(keys(StudyInstanceUID="1.2.3.2")), STUDY_FIND))
    assert '"extra":["1.2.3.2.1.2"]' in block_of(answers[0][1])[0x17]


# Clients that go away


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
    wait_for(lambda: not _left(service), 20, lambda: str(_left(service)))
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

    with client(service, STUDY_GET, storage=[CTImageStorage], on_store=store) as assoc:
        list(assoc.send_c_get(keys(StudyInstanceUID="1.2.3.1"), STUDY_GET))
    assert service.thread.is_alive()


def test_a_checking_worker_that_is_killed_costs_one_verdict_and_no_association(service, pacs):
    pacs.delay_s = 0.2
    with client(service, STUDY_GET, storage=[CTImageStorage],
                on_store=lambda event: 0x0000) as assoc:  # fmt: skip
        answers = assoc.send_c_get(keys(StudyInstanceUID="1.2.3.1"), STUDY_GET)
        next(answers)
        for pid in _workers():
            os.kill(pid, 9)
        last = list(answers)[-1][0]
    assert last.NumberOfCompletedSuboperations + last.NumberOfWarningSuboperations == 6
    assert last.NumberOfWarningSuboperations <= 1


def _workers():
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            command = (process / "cmdline").read_bytes()
            if int(parent) == os.getpid() and b"checking_worker" in command:
                found.append(int(process.name))
    return found


def _descriptors():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
