"""An auditor asks over DICOM: DCMTK, Orthanc and pynetdicom in front, a real Orthanc behind."""

from __future__ import annotations

import dataclasses
import json
import threading
import time

import harness
import numpy as np
import pydicom
import pytest
import structlog
import verifying
from pydicom.pixels import pixel_array
from pydicom.uid import JPEG2000Lossless
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage
from verifying import (
    STUDY_FIND,
    STUDY_GET,
    STUDY_MOVE,
    Marks,
    QueryOrthanc,
    Service,
    block_of,
    client,
    keys,
    verify_now,
)

from dicom_node.config import parse

pytestmark = [pytest.mark.peer, pytest.mark.slow]
VERDICT, AT, AGE, VERIFIED, TAMPERED, UNMARKED, MISSING, DETAILS, SUPERSEDED, PROGRESS = (
    0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x21,
)  # fmt: skip
HEADERS_CHANGED, HEADERS_UNSEALED = 0x19, 0x1A


@pytest.fixture(scope="module")
def marks(tmp_path_factory):
    return Marks(tmp_path_factory.mktemp("marks"))


@pytest.fixture(scope="module")
def pacs(tmp_path_factory):
    one = QueryOrthanc(tmp_path_factory.mktemp("pacs"))
    yield one
    one.child.end()


@pytest.fixture(scope="module")
def workstation(tmp_path_factory):
    """A move destination: DCMTK's storescp, bit for bit."""
    one = harness.StoreSCP(tmp_path_factory.mktemp("workstation"), "-d")
    yield one
    one.child.kill()


@pytest.fixture(scope="module")
def viewer(tmp_path_factory):
    """A move destination without codecs: uncompressed transfer syntaxes only."""
    one = harness.StoreSCP(tmp_path_factory.mktemp("viewer"), "+x=")
    yield one
    one.child.kill()


@pytest.fixture(scope="module")
def service(tmp_path_factory, marks, pacs, workstation, viewer):
    """The service, over an Orthanc with study 1 (4 slices, authentic) and 2 (slice 2 tampered)."""
    folder = tmp_path_factory.mktemp("service")
    text = verifying.config_text(
        folder, marks.keys, pacs.port, port=pacs.verify_port, fetch_port=pacs.fetch_port,
        move=[("WORKSTATION", workstation.port), ("VIEWER", viewer.port),
              ("AWAY", verifying.refusing_port())],
        clients=[("TRUSTED", "restored"), ("STRICT", "refuse-tampered")], max_matches=50,
    )  # fmt: skip
    one = Service(parse(text, "test")).start()
    first, second = marks.study(1), marks.study(2)
    pacs.store(*(marked for _, marked in first))
    changed = verifying.tampered(second[1][1], folder / "changed.dcm")
    pacs.store(second[0][1], changed, second[2][1], second[3][1])
    one.register(*(verifying.entry_of(m) for _, m in [*first, *second]))
    yield one
    one.end()
    assert one.scratch() == []
    assert [t.name for t in threading.enumerate() if "association" in t.name] == []


def find(service, identifier, ae_title="AUDITOR"):
    with client(service, STUDY_FIND, ae_title=ae_title) as assoc:
        answers = list(assoc.send_c_find(identifier, STUDY_FIND))
    assert all(status.Status in (0xFF00, 0xFF01) for status, _ in answers[:-1])
    return [match for _, match in answers[:-1]], answers[-1][0]


def get(service, identifier, ae_title="AUDITOR"):
    came = []

    def store(event):
        came.append(event.dataset)
        return 0x0000

    with client(service, STUDY_GET, storage=[CTImageStorage], on_store=store,
                ae_title=ae_title) as assoc:  # fmt: skip
        answers = list(assoc.send_c_get(identifier, STUDY_GET))
    return came, answers[-1][0], answers[-1][1]


# C-ECHO and C-FIND


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


# C-GET and C-MOVE


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


# Compressed, colour and multi-frame instances


COMPRESSED = {
    "CT, JPEG-LS": "ct_transfer_syntaxes/cornerstoneWADOImageLoader__CTImage.dcm_JPEGLSLossless"
                   "TransferSyntax_1.2.840.10008.1.2.4.80.dcm",
    "colour, RLE": "sc/pydicom__SC_rgb_rle.dcm",
    "multi-frame, RLE": "mr/pylibjpeg-data__emri_small_RLE.dcm",
}  # fmt: skip


@pytest.fixture(scope="module")
def compressed(marks, pacs, shared):
    """Real objects, marked; the PACS has them as they are coded."""
    made = {}
    for name, path in COMPRESSED.items():
        made[name] = marks.mark(shared / "dicom" / path)
        pacs.upload(made[name])
    return made


def is_the_same_decompressed(came, marked, marks, syntax=verifying.EXPLICIT):
    there, sent = pydicom.dcmread(came), pydicom.dcmread(marked)
    assert sent.file_meta.TransferSyntaxUID.is_encapsulated
    assert there.file_meta.TransferSyntaxUID == syntax
    before = pixel_array(sent, raw=True)
    assert before.size == sent.Rows * sent.Columns * sent.SamplesPerPixel * int(
        sent.get("NumberOfFrames", 1)
    )
    assert np.array_equal(pixel_array(there, raw=True), before)
    assert there.PhotometricInterpretation == sent.PhotometricInterpretation
    assert marks.verdict(came) == "authentic"


@pytest.mark.parametrize("syntax", [verifying.EXPLICIT, verifying.IMPLICIT])
@pytest.mark.parametrize("name", COMPRESSED)
def test_a_client_without_codecs_gets_every_pixel_and_the_same_verdict(
    service, marks, compressed, name, syntax, tmp_path
):
    sent = pydicom.dcmread(compressed[name], stop_before_pixels=True)
    came = tmp_path / "came.dcm"

    def store(event):
        assert not came.exists()
        came.write_bytes(event.encoded_dataset())
        return 0x0000

    with client(service, STUDY_GET, storage=[sent.SOPClassUID], on_store=store,
                storage_syntax=syntax) as assoc:  # fmt: skip
        asked = keys(StudyInstanceUID=sent.StudyInstanceUID)
        status = list(assoc.send_c_get(asked, STUDY_GET))[-1][0]
    assert (status.Status, status.NumberOfCompletedSuboperations) == (0x0000, 1)
    is_the_same_decompressed(came, compressed[name], marks, syntax)


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_destination_without_codecs_gets_every_pixel_and_the_same_verdict(
    service, marks, compressed, name, viewer
):
    sent = pydicom.dcmread(compressed[name], stop_before_pixels=True)
    with client(service, STUDY_MOVE) as assoc:
        asked = keys(StudyInstanceUID=sent.StudyInstanceUID)
        status = list(assoc.send_c_move(asked, "VIEWER", STUDY_MOVE))[-1][0]
    assert (status.Status, status.NumberOfCompletedSuboperations) == (0x0000, 1)
    [came] = viewer.stored()[sent.SOPInstanceUID]
    is_the_same_decompressed(came, compressed[name], marks)


def test_a_destination_with_codecs_gets_a_compressed_instance_as_it_is(
    service, compressed, workstation
):
    marked = compressed["CT, JPEG-LS"]
    sent = pydicom.dcmread(marked, stop_before_pixels=True)
    with client(service, STUDY_MOVE) as assoc:
        asked = keys(StudyInstanceUID=sent.StudyInstanceUID)
        assert list(assoc.send_c_move(asked, "WORKSTATION", STUDY_MOVE))[-1][0].Status == 0x0000
    [came] = workstation.stored()[sent.SOPInstanceUID]
    there = pydicom.dcmread(came)
    assert there.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID
    assert there.PixelData == pydicom.dcmread(marked).PixelData


def test_what_a_client_takes_in_no_syntax_of_ours_is_a_failed_sub_operation(service, compressed):
    sent = pydicom.dcmread(compressed["CT, JPEG-LS"], stop_before_pixels=True)
    came = []
    with client(service, STUDY_GET, storage=[sent.SOPClassUID], on_store=came.append,
                storage_syntax=JPEG2000Lossless) as assoc:  # fmt: skip
        asked = keys(StudyInstanceUID=sent.StudyInstanceUID)
        status, identifier = list(assoc.send_c_get(asked, STUDY_GET))[-1]
    assert (came, status.Status, status.NumberOfFailedSuboperations) == ([], 0xA702, 1)
    assert identifier.FailedSOPInstanceUIDList == sent.SOPInstanceUID


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


# Who may ask


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, marks, pacs):
    """A service for listed clients: KNOWN from anywhere, NEAR and FAR from an address each."""
    folder = tmp_path_factory.mktemp("guarded")
    text = verifying.config_text(
        folder, marks.keys, pacs.port, admit="listed", retrieve="get",
        clients=[("KNOWN", ""), ("NEAR", "restored", "127.0.0.0/8"),
                 ("FAR", "restored", "192.0.2.7")],
    )  # fmt: skip
    pacs.store(*(marked for _, marked in marks.study(1)))
    one = Service(parse(text, "test")).start()
    yield one
    one.end()


@pytest.mark.parametrize(("title", "returncode"), [("KNOWN", 0), ("NEAR", 0)])
def test_a_listed_client_is_admitted(guarded, dcmtk, title, returncode):
    result = dcmtk("echoscu", "-aet", title, "-aec", "DICOMVERIFY", "127.0.0.1", guarded.port)
    assert result.returncode == returncode, result.stderr


@pytest.mark.parametrize(
    ("title", "why"), [("STRANGER", "not among"), ("FAR", "from another address")]
)
def test_who_is_not_listed_is_rejected_for_good_and_the_trail_says_so(guarded, dcmtk, title, why):
    result = dcmtk("findscu", "-S", "-aet", title, "-aec", "DICOMVERIFY", "-k",
                   "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=1.2.3.1", "127.0.0.1",
                   guarded.port)  # fmt: skip
    said = result.stdout + result.stderr
    assert result.returncode != 0
    assert "Rejected Permanent" in said
    assert "Calling AE Title Not Recognized" in said
    [event] = [e for e in guarded.audit_events("refused") if e["peer_ae"] == title]
    assert (event["stage"], event["outcome"], event["peer_address"]) == (
        "associate", "rejected", "127.0.0.1")  # fmt: skip
    assert why in event["reason"]
    assert not [e for e in guarded.audit_events("queried") if e["client_ae"] == title]


def test_a_listed_client_without_a_policy_of_its_own_gets_what_others_get(guarded, marks):
    for title, index in (("KNOWN", 1), ("NEAR", 0)):
        came, status, _ = get(guarded, keys(StudyInstanceUID="1.2.3.1"), title)
        assert (len(came), status.Status) == (4, 0x0000)
        expected = {p.PixelData for pair in marks.study(1) for p in [pydicom.dcmread(pair[index])]}
        assert {ds.PixelData for ds in came} == expected


def test_openness_to_all_does_not_open_a_listed_title_to_all_addresses(tmp_path, marks, pacs):
    text = verifying.config_text(tmp_path, marks.keys, pacs.port, retrieve="get",
                                 clients=[("TRUSTED", "restored", "192.0.2.0/24")])  # fmt: skip
    one = Service(parse(text, "test")).start()
    try:
        for title, admitted in (("ANYBODY", True), ("TRUSTED", False)):
            ae = AE(title)
            ae.add_requested_context(STUDY_FIND)
            assoc = ae.associate("127.0.0.1", one.port, ae_title="DICOMVERIFY")
            assert assoc.is_established is admitted
            assoc.release()
    finally:
        one.end()


# Through C-MOVE, from a PACS that has no C-GET


def test_only_the_pacs_sends_to_the_fetch_port_where_its_address_is_known(
    tmp_path, marks, pacs, dcmtk
):
    text = verifying.config_text(tmp_path, marks.keys, pacs.port, retrieve="move",
                                 fetch_from="192.0.2.1")  # fmt: skip
    one = Service(parse(text, "test")).start()
    try:
        sent = dcmtk("storescu", "-aet", "FORGER", "-aec", "DICOMFETCH", "127.0.0.1",
                     one.config.verify.fetch_port, marks.study(1)[0][1])  # fmt: skip
        assert sent.returncode != 0
        assert "Calling AE Title Not Recognized" in sent.stdout + sent.stderr
        [event] = one.audit_events("refused")
        assert (event["stage"], event["peer_ae"]) == ("associate", "FORGER")
    finally:
        one.end()


def test_a_pacs_without_c_get_moves_to_the_inner_scp(tmp_path, marks):
    pacs = QueryOrthanc(tmp_path, get=False)
    text = verifying.config_text(tmp_path, marks.keys, pacs.port, port=pacs.verify_port,
                                 fetch_port=pacs.fetch_port, retrieve="move",
                                 fetch_from="127.0.0.0/8")  # fmt: skip
    one = Service(parse(text, "test")).start()
    try:
        study = marks.study(1)
        pacs.store(*(marked for _, marked in study))
        one.register(*(verifying.entry_of(marked) for _, marked in study))
        came, status, _ = get(one, keys(StudyInstanceUID="1.2.3.1"))
        assert (len(came), status.Status) == (4, 0x0000)
        for ds in came:
            marked = pydicom.dcmread(marks.folder / f"{ds.SOPInstanceUID}.dcm")
            assert ds.PixelData == marked.PixelData
        assert one.scratch() == []
    finally:
        one.end()
        pacs.child.end()
