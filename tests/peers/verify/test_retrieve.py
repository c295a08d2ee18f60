"""C-GET and C-MOVE: DCMTK, Orthanc and pynetdicom in front, a real Orthanc behind."""

from __future__ import annotations

import dataclasses
import json

import harness
import pydicom
import pytest
import structlog
import verifying
from auditors import (
    DETAILS,
    HEADERS_CHANGED,
    HEADERS_UNSEALED,
    MISSING,
    SUPERSEDED,
    VERDICT,
    find,
    get,
)
from pynetdicom.sop_class import CTImageStorage
from verifying import STUDY_MOVE, QueryOrthanc, block_of, client, keys, verify_now

pytestmark = [pytest.mark.peer, pytest.mark.slow]


def test_getscu_gets_every_instance_as_the_pacs_has_it(service, dcmtk, tmp_path, marks):
    result = dcmtk("getscu", "-S", "-aec", "DICOMVERIFY", "+B", "-od", tmp_path, "-k",
                   "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=1.2.3.1", "127.0.0.1",
                   service.port)  # fmt: skip
    assert result.returncode == 0, result.stderr
    came = {ds.SOPInstanceUID: ds for ds in map(pydicom.dcmread, tmp_path.iterdir())}
    assert len(came) == 4
    for _, marked in marks.study(1):
        sent = pydicom.dcmread(marked)
        assert came[sent.SOPInstanceUID].PixelData == sent.PixelData


def test_movescu_moves_to_a_configured_destination(service, dcmtk, workstation, marks):
    result = dcmtk("movescu", "-S", "-aec", "DICOMVERIFY", "-aem", "WORKSTATION", "-k",
                   "QueryRetrieveLevel=SERIES", "-k", "StudyInstanceUID=1.2.3.1", "-k",
                   "SeriesInstanceUID=1.2.3.1.1", "127.0.0.1", service.port)  # fmt: skip
    assert result.returncode == 0, result.stderr
    stored = workstation.stored()
    for _, marked in marks.study(1):
        [path] = stored[marked.name.removesuffix(".dcm")]
        assert harness.data_set_bytes(path) == harness.data_set_bytes(marked)


def test_a_move_destination_is_told_whose_move_it_is(service, workstation):
    said_before = len(workstation.child.output)
    with client(service, STUDY_MOVE, ae_title="PHYSICIST") as assoc:
        asked = keys(StudyInstanceUID="1.2.3.2")
        answers = list(assoc.send_c_move(asked, "WORKSTATION", STUDY_MOVE, msg_id=4711))
    assert answers[-1][0].Status == 0xB000
    said = [" ".join(line.split()) for line in workstation.child.output[said_before:].splitlines()]
    originators = [line for line in said if "Move Originator" in line]
    assert len(originators) == 8
    assert originators[0].endswith("Move Originator AE Title : PHYSICIST")
    assert originators[1].endswith("Move Originator ID : 4711")


def test_an_unknown_destination_is_refused_with_a801(service, dcmtk):
    result = dcmtk("movescu", "-S", "-aec", "DICOMVERIFY", "-aem", "NOBODY", "-k",
                   "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=1.2.3.1", "127.0.0.1",
                   service.port)  # fmt: skip
    assert "MoveDestinationUnknown" in result.stdout + result.stderr


def test_a_destination_that_is_away_fails_every_sub_operation(service):
    with client(service, STUDY_MOVE) as assoc:
        answers = list(assoc.send_c_move(keys(StudyInstanceUID="1.2.3.1"), "AWAY", STUDY_MOVE))
    status, identifier = answers[-1]
    assert status.Status == 0xA702
    assert (status.NumberOfCompletedSuboperations, status.NumberOfFailedSuboperations) == (0, 4)
    assert len(identifier.FailedSOPInstanceUIDList) == 4


def test_a_tampered_instance_is_a_warning(service):
    came, status, _ = get(service, keys(StudyInstanceUID="1.2.3.2"))
    assert (len(came), status.Status) == (4, 0xB000)
    assert status.NumberOfCompletedSuboperations == 3
    assert status.NumberOfWarningSuboperations == 1
    assert status.NumberOfFailedSuboperations == 0


def test_a_strict_client_is_refused_the_tampered_instance(service):
    came, status, identifier = get(service, keys(StudyInstanceUID="1.2.3.2"), "STRICT")
    assert (len(came), status.Status) == (3, 0xB000)
    assert status.NumberOfFailedSuboperations == 1
    assert identifier.FailedSOPInstanceUIDList == "1.2.3.2.1.2"


def test_a_trusted_client_gets_the_originals_bit_for_bit(service, marks):
    came, status, _ = get(service, keys(StudyInstanceUID="1.2.3.1"), "TRUSTED")
    assert (len(came), status.Status) == (4, 0x0000)
    by_uid = {ds.SOPInstanceUID: ds for ds in came}
    for original, marked in marks.study(1):
        sent, before = pydicom.dcmread(original), pydicom.dcmread(marked)
        back = by_uid[sent.SOPInstanceUID]
        assert back.PixelData == sent.PixelData != before.PixelData
        assert "ContributingEquipmentSequence" not in back


def test_a_trusted_client_gets_no_original_of_what_was_changed(service):
    came, status, identifier = get(service, keys(StudyInstanceUID="1.2.3.2"), "TRUSTED")
    assert (len(came), status.Status) == (3, 0xB000)
    assert identifier.FailedSOPInstanceUIDList == "1.2.3.2.1.2"


def test_one_instance_is_retrieved_at_the_image_level(service):
    asked = keys("IMAGE", StudyInstanceUID="1.2.3.1", SeriesInstanceUID="1.2.3.1.1",
                 SOPInstanceUID=["1.2.3.1.1.2", "1.2.3.1.1.3"])  # fmt: skip
    came, status, _ = get(service, asked)
    assert sorted(ds.SOPInstanceUID for ds in came) == ["1.2.3.1.1.2", "1.2.3.1.1.3"]
    assert status.Status == 0x0000


def test_a_patient_is_retrieved_in_the_patient_root(service):
    came = []
    move = verifying.PATIENT_FIND[:-1] + "3"
    with client(service, move, storage=[CTImageStorage],
                on_store=lambda event: came.append(event.dataset) or 0x0000) as assoc:  # fmt: skip
        answers = list(assoc.send_c_get(keys("PATIENT", PatientID="P77"), move))
    assert {ds.StudyInstanceUID for ds in came} >= {"1.2.3.1", "1.2.3.2"}
    assert answers[-1][0].Status == 0xB000


def test_a_study_that_the_pacs_does_not_have_is_an_empty_success(service):
    came, status, _ = get(service, keys(StudyInstanceUID="9.9.9"))
    assert (came, status.Status, status.NumberOfCompletedSuboperations) == ([], 0x0000, 0)


def test_an_instance_missing_in_the_pacs_is_a_failed_sub_operation(service, marks, pacs):
    study = marks.study(4)
    pacs.store(*(marked for _, marked in study[:3]))
    service.register(*(verifying.entry_of(marked) for _, marked in study))
    came, status, identifier = get(service, keys(StudyInstanceUID="1.2.3.4"))
    assert (len(came), status.Status, status.NumberOfFailedSuboperations) == (3, 0xB000, 1)
    assert identifier.FailedSOPInstanceUIDList == "1.2.3.4.1.4"
    [match], _ = find(service, keys(StudyInstanceUID="1.2.3.4"))
    assert block_of(match)[MISSING] == 1


def test_a_stripped_instance_is_suspect_because_the_registry_knows_it(service, marks, pacs):
    [(original, marked)] = marks.study(5, 1)
    pacs.store(original)
    service.register(verifying.entry_of(marked))
    came, status, _ = get(service, keys(StudyInstanceUID="1.2.3.5"))
    assert (len(came), status.Status) == (1, 0xB000)
    assert status.NumberOfWarningSuboperations == 1
    came, status, _ = get(service, keys(StudyInstanceUID="1.2.3.5"), "STRICT")
    assert (len(came), status.Status) == (0, 0xA702)


def test_a_changed_header_is_named_and_no_reason_to_refuse(service, marks, pacs, tmp_path):
    study = [marked for _, marked in marks.study(7, 2)]
    pacs.store(study[0], verifying.retold(study[1], tmp_path / "c.dcm", PatientName="ROE^JANE"))
    service.register(*map(verifying.entry_of, study))
    asked = keys(StudyInstanceUID="1.2.3.7")
    for identifier in (verify_now(keys(StudyInstanceUID="1.2.3.7")), asked):
        # On a slow machine the match comes before with how far the check is.
        [*_, match], _ = find(service, identifier)
        said = block_of(match)
        assert (said[VERDICT], said[HEADERS_CHANGED], said[HEADERS_UNSEALED]) == ("authentic", 1, 0)
        [named] = json.loads(said[DETAILS])["headers"]["instances"]
        assert (named["sop_instance_uid"], named["changed"]) == ("1.2.3.7.1.2", ["PatientName"])
    with structlog.testing.capture_logs() as logs:
        came, status, _ = get(service, asked, "STRICT")
    assert (len(came), status.Status, status.NumberOfCompletedSuboperations) == (2, 0x0000, 2)
    [told] = [line for line in logs if line["event"] == "headers not as signed"]
    assert (told["calling_ae"], told["attributes"]) == ("STRICT", "PatientName")


def test_an_older_version_is_told_by_a_check_and_remembered(service, marks, pacs):
    [(_, marked)] = marks.study(6, 1)
    pacs.store(marked)
    entry = verifying.entry_of(marked)
    newer = dataclasses.replace(entry, marked_at=entry.marked_at + 60, delivered_digest=b"n" * 32)
    service.register(entry, newer)
    asked = keys(StudyInstanceUID="1.2.3.6")
    for identifier in (verify_now(keys(StudyInstanceUID="1.2.3.6")), asked):
        [match], _ = find(service, identifier)
        said = block_of(match)
        assert (said[VERDICT], said[SUPERSEDED]) == ("authentic", 1)
        assert json.loads(said[DETAILS])["superseded"] == ["1.2.3.6.1.1"]
    came, status, _ = get(service, asked)
    assert (len(came), status.Status, status.NumberOfWarningSuboperations) == (1, 0xB000, 1)
    came, status, _ = get(service, asked, "STRICT")
    assert (len(came), status.Status) == (0, 0xA702)


def test_orthanc_queries_and_retrieves_through_us(service, tmp_path, workstation):
    before = len(workstation.stored().get("1.2.3.1.1.1", ()))
    with verifying.contextlib.closing(_Second(tmp_path, service.port)) as second:
        asked = {"Level": "Study", "Query": {"StudyInstanceUID": "1.2.3.1"}}
        answer = harness.post(second.pacs, "/modalities/verify/query", json.dumps(asked))
        assert second.pacs.get(f"{answer['Path']}/answers") == ["0"]
        harness.post(second.pacs, f"{answer['Path']}/retrieve", "WORKSTATION")
    assert len(workstation.stored()["1.2.3.1.1.1"]) == before + 1


class _Second:
    """A second Orthanc, which is the client."""

    def __init__(self, folder, port):
        self.pacs = QueryOrthanc(folder)
        modality = {"AET": "DICOMVERIFY", "Host": "127.0.0.1", "Port": port}
        request = verifying.harness.urllib.request.Request(
            f"http://127.0.0.1:{self.pacs.http}/modalities/verify",
            json.dumps(modality).encode(), method="PUT",
        )  # fmt: skip
        verifying.harness.urllib.request.urlopen(request, timeout=10).close()

    def close(self):
        self.pacs.child.end()


# What is left behind


def test_the_audit_trail_tells_who_asked_and_who_got_what(service):
    find(service, keys(StudyInstanceUID="1.2.3.2"), ae_title="CURIOUS")
    get(service, keys(StudyInstanceUID="1.2.3.2"), "STRICT")
    [asked] = [e for e in service.audit_events("queried") if e["client_ae"] == "CURIOUS"]
    assert (asked["level"], asked["study_instance_uid"], asked["matches"]) == (
        "STUDY", "1.2.3.2", 1)  # fmt: skip
    assert "0020000D" in asked["keys"]
    got = [e for e in service.audit_events("retrieved") if e["client_ae"] == "STRICT"][-1]
    assert (got["policy"], got["instances"], got["failed"]) == ("refuse-tampered", 3, 1)
    seen = [e for e in service.audit_events("verified") if e["checked_by"] == "STRICT"]
    assert {e["sop_instance_uid"]: e["verdict"] for e in seen}["1.2.3.2.1.2"] == "tampered"
    assert "DOE" not in json.dumps(service.audit_events("queried", "retrieved", "verified"))


def test_files_are_gone_and_the_inner_scp_takes_nothing_unasked(service, marks, dcmtk):
    get(service, keys(StudyInstanceUID="1.2.3.1"))
    assert service.scratch() == []
    slices = [marked for _, marked in marks.study(1)]
    sent = dcmtk("storescu", "-v", "--no-halt", "-aet", "STRANGER", "-aec", "DICOMFETCH",
                 "127.0.0.1", service.config.verify.fetch_port, *slices)  # fmt: skip
    said = sent.stdout + sent.stderr
    assert said.count("Status: 0x124") == said.count("Store Response") == len(slices), said
    assert service.scratch() == []
    [event] = [e for e in service.audit_events("refused") if e["peer_ae"] == "STRANGER"]
    assert (event["stage"], event["outcome"], event["status"]) == ("receive", "rejected", 0x0124)
    assert (event["sop_instance_uid"], event["peer_address"]) == ("1.2.3.1.1.1", "127.0.0.1")
