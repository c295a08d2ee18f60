"""C-ECHO and C-FIND: DCMTK and pynetdicom in front, a real Orthanc behind."""

from __future__ import annotations

import json
import time

import pydicom
import pytest
import verifying
from auditors import AGE, AT, DETAILS, TAMPERED, UNMARKED, VERDICT, VERIFIED, find
from verifying import Service, block_of, client, keys, verify_now

from dicom_node.config import parse

pytestmark = [pytest.mark.peer, pytest.mark.slow]


def test_echoscu_is_answered(service, dcmtk):
    assert dcmtk("echoscu", "-aec", "DICOMVERIFY", "127.0.0.1", service.port).returncode == 0


def test_findscu_sees_the_pacss_matches_and_our_block(service, dcmtk):
    result = dcmtk("findscu", "-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID",
                   "-k", "PatientName=DOE*", "127.0.0.1", service.port)  # fmt: skip
    said = result.stdout + result.stderr
    assert result.returncode == 0
    for expected in ("[1.2.3.1", "[1.2.3.2", "[DOE^JANE]", "[DICOM-NODE WATERMARK 1.0]"):
        assert expected in said


@pytest.mark.parametrize(
    ("level", "unique", "number"),
    [("STUDY", "StudyInstanceUID", 1), ("SERIES", "SeriesInstanceUID", 1),
     ("IMAGE", "SOPInstanceUID", 4)],
)  # fmt: skip
def test_every_level_of_the_study_root_is_answered(service, level, unique, number):
    study, series = {"StudyInstanceUID": "1.2.3.2"}, {"SeriesInstanceUID": "1.2.3.2.1"}
    above = {"STUDY": {}, "SERIES": study, "IMAGE": study | series}
    asked = keys(level, **above[level], **{unique: "1.2.3.2" if level == "STUDY" else ""})
    matches, last = find(service, verify_now(asked))
    assert last.Status == 0x0000
    assert len(matches) == number
    said = [block_of(match) for match in matches]
    assert max(each[VERDICT] for each in said) == "tampered"
    assert sum(each[TAMPERED] for each in said) == 1
    assert sum(each[VERIFIED] for each in said) == 4


def test_the_patient_root_has_the_patient_level(service):
    with client(service, verifying.PATIENT_FIND) as assoc:
        asked = keys("PATIENT", PatientID="P77", PatientName="")
        answers = list(assoc.send_c_find(asked, verifying.PATIENT_FIND))
    assert [status.Status for status, _ in answers] == [0xFF00, 0x0000]
    assert answers[0][1].PatientName == "DOE^JANE"


def test_a_verdict_is_remembered_and_told_with_its_age(service):
    find(service, verify_now(keys(StudyInstanceUID="1.2.3.1")))
    time.sleep(1.1)
    [match], _ = find(service, keys(StudyInstanceUID="1.2.3.1"))
    said = block_of(match)
    assert (said[VERDICT], said[VERIFIED], said[TAMPERED], said[UNMARKED]) == ("authentic", 4, 0, 0)
    assert 1 <= said[AGE] < 60
    assert pydicom.valuerep.DT(str(said[AT])).year == time.gmtime().tm_year


def test_the_details_name_the_instance_and_where_it_was_changed(service):
    [match], _ = find(service, verify_now(keys(StudyInstanceUID="1.2.3.2")))
    details = json.loads(block_of(match)[DETAILS])
    assert details["counts"] == {"authentic": 3, "tampered": 1}
    [finding] = details["findings"]
    assert finding["sop_instance_uid"] == "1.2.3.2.1.2"
    [box] = finding["frames"][0]["tampered"]
    assert box["row"] <= 40 < box["row"] + box["rows"]
    assert box["column"] <= 60 < box["column"] + box["columns"]


def test_a_service_that_checks_on_find_does_so_unasked(tmp_path, marks, pacs):
    text = verifying.config_text(tmp_path, marks.keys, pacs.port, on_find="verify", retrieve="get")
    (tmp_path / "copy").mkdir()
    (_, first), (_, second) = marks.study(7, 2)
    pacs.store(first, verifying.tampered(second, tmp_path / "copy" / "changed.dcm"))
    one = Service(parse(text, "test")).start()
    try:
        [match], last = find(one, keys(StudyInstanceUID="1.2.3.7"))
        said = block_of(match)
        assert last.Status == 0x0000
        assert (said[VERDICT], said[VERIFIED], said[TAMPERED]) == ("tampered", 2, 1)
        seen = one.audit_events("verified")
        assert sorted(event["verdict"] for event in seen) == ["authentic", "tampered"]
    finally:
        one.end()


def test_what_was_never_checked_has_an_empty_verdict(service, marks, pacs):
    pacs.store(*(marked for _, marked in marks.study(3, 1)))
    [match], _ = find(service, keys(StudyInstanceUID="1.2.3.3"))
    said = block_of(match)
    assert said[VERDICT] in ("", None)
    assert (said[VERIFIED], AT in said) == (0, False)


def test_keys_that_were_not_asked_for_are_not_returned(service):
    [match], _ = find(service, keys(StudyInstanceUID="1.2.3.1", StudyDate=""))
    assert match.StudyDate == "20260101"
    assert "PatientName" not in match
    assert match.get("RetrieveAETitle", "DICOMVERIFY") == "DICOMVERIFY"


def test_a_study_that_the_pacs_does_not_have_gives_no_match(service):
    matches, last = find(service, verify_now(keys(StudyInstanceUID="9.9.9")))
    assert (matches, last.Status) == ([], 0x0000)
