"""Requests that are none, floods of matches, and archives that are away or give something else."""

from __future__ import annotations

import contextlib
import json

import pytest
import verifying
from harness import wait_for
from pynetdicom.sop_class import CTImageStorage
from verify_faults import get
from verifying import STUDY_FIND, STUDY_MOVE, FakePacs, Service, block_of, client, keys, verify_now

from dicom_node.config import parse
from dicom_node.dimse import commands, query_commands
from dicom_node.dimse.query_scu import PacsLost, QueryAssociation
from dicom_node.registry.records import MarkedInstance, VerdictEntry

pytestmark = [pytest.mark.fault, pytest.mark.slow]


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
