"""A modality, the node, a PACS, an auditor: the main job with real programs on both sides."""

import json

import harness
import pydicom
import pytest
from fixtures import running_node
from harness import ct
from pydicom.uid import generate_uid

__all__ = ["running_node"]
pytestmark = [pytest.mark.peer, pytest.mark.xdist_group("end_to_end")]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """A node between storescu and Orthanc."""
    folder = tmp_path_factory.mktemp("hospital")
    orthanc = harness.Orthanc(folder)
    node = harness.RunningNode(folder / "node", [{"port": orthanc.port, "ae_title": "ORTHANC"}])
    try:
        node.orthanc = orthanc
        yield node.start()
    finally:
        node.kill_all()
        orthanc.child.end()


def stored(node, uid, path):
    """Fetch what the PACS has under this UID."""
    [identifier] = harness.post(node.orthanc, "/tools/lookup", uid)
    return harness.fetch(node.orthanc, identifier["ID"], path)


def verify(node, *paths):
    """Return exit code and verdicts of ``dicom-node verify``."""
    done = node.cli("verify", *paths, "--json")
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_a_series_arrives_marked_is_authentic_and_restores(hospital, shared, tmp_path):
    sources = sorted((shared / "dicom/ct_series/liver_3slice_GE_LightSpeedUltra").iterdir())
    assert harness.storescu(hospital, *sources, options=("-xi",)).returncode == 0
    assert {job.state for job in hospital.settled()} == {"delivered"}
    fetched, back = tmp_path / "fetched", tmp_path / "back"
    fetched.mkdir()
    for source in sources:
        uid = pydicom.dcmread(source, stop_before_pixels=True).SOPInstanceUID
        stored(hospital, uid, fetched / source.name)
    code, verdicts = verify(hospital, fetched)
    assert code == 0
    assert [line["verdict"] for line in verdicts] == ["authentic"] * len(sources)
    assert {line["owner"] for line in verdicts} == {"TEST-HOSPITAL"}
    assert hospital.cli("restore", fetched, "--out", back, "--json").returncode == 0
    for source in sources:
        assert harness.differences(source, back / source.name) == []


def test_a_changed_copy_is_caught_with_the_place_and_the_attribute(hospital, tmp_path):
    uid = generate_uid()
    source = harness.save(ct(uid, size=256), tmp_path / "source.dcm")
    assert harness.storescu(hospital, source).returncode == 0
    hospital.settled()
    path = stored(hospital, uid, tmp_path / "stored.dcm")
    ds = pydicom.dcmread(path)
    pixels = ds.pixel_array.copy()
    pixels[100:104, 50:54] += 7
    ds.PixelData = pixels.tobytes()
    ds.save_as(tmp_path / "pixels.dcm")
    ds = pydicom.dcmread(path)
    ds.PatientID = "SOMEBODY-ELSE"
    ds.save_as(tmp_path / "header.dcm")
    code, [changed] = verify(hospital, tmp_path / "pixels.dcm")
    assert (code, changed["verdict"]) == (1, "tampered")
    boxes = changed["frames"][0]["tampered"]
    assert any(
        box["row"] <= 100 < box["row"] + box["rows"]
        and box["column"] <= 50 < box["column"] + box["columns"]
        for box in boxes
    )
    _, [renamed] = verify(hospital, tmp_path / "header.dcm")
    assert renamed["header"] == {"changed": ["PatientID"]}


def test_an_auditor_with_the_public_key_alone_can_verify(hospital, tmp_path):
    uid = generate_uid()
    harness.storescu(hospital, harness.save(ct(uid), tmp_path / "source.dcm"))
    hospital.settled()
    path = stored(hospital, uid, tmp_path / "stored.dcm")
    pem = tmp_path / "public.pem"
    pem.write_text(hospital.cli("keys", "export-public").stdout)
    done = hospital.cli("verify", path, "--json", "--public-key", pem)
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["verdict"] == "authentic"


def test_a_study_sent_again_is_stored_once_and_in_the_same_bytes(hospital, tmp_path):
    uid = generate_uid()
    path = harness.save(ct(uid), tmp_path / "source.dcm")
    for _ in range(2):
        assert harness.storescu(hospital, path).returncode == 0
        hospital.settled()
    first, second = [job for job in hospital.jobs() if job.sop_instance_uid == uid]
    assert second.repeat_of == first.id
    assert second.result_digest == first.result_digest
    assert len(harness.post(hospital.orthanc, "/tools/lookup", uid)) == 1


def test_what_comes_back_from_the_pacs_is_passed_on_unchanged(hospital, tmp_path):
    uid = generate_uid()
    harness.storescu(hospital, harness.save(ct(uid), tmp_path / "source.dcm"))
    hospital.settled()
    path = stored(hospital, uid, tmp_path / "stored.dcm")
    assert harness.storescu(hospital, path).returncode == 0
    [_, again] = [job for job in hospital.settled() if job.sop_instance_uid == uid]
    assert (again.state, again.action) == ("delivered", "untouched")
    assert "already" in again.reason


def test_delivered_instances_leave_nothing_in_the_spool(hospital):
    hospital.settled()
    harness.wait_for(lambda: hospital.files() == [], message=lambda: str(hospital.files()))


def test_no_log_line_names_a_patient(hospital):
    for name in ("DOE", "JANE", "P77", "SOMEBODY"):
        assert name not in hospital.output


def test_a_node_that_does_not_mark_forwards_the_very_bytes(running_node, tmp_path):
    scp = harness.StoreSCP(tmp_path)
    try:
        node = running_node(
            [{"port": scp.port, "ae_title": "STORESCP"}], watermark={"enabled": False}
        )
        uid = generate_uid()
        path = harness.save(ct(uid), tmp_path / "source.dcm")
        assert harness.storescu(node, path).returncode == 0
        assert [(job.state, job.action) for job in node.settled()] == [("delivered", "untouched")]
        [arrived] = scp.stored()[uid]
        assert harness.data_set_bytes(arrived) == harness.data_set_bytes(path)
    finally:
        scp.child.kill()


def test_what_waits_when_the_node_stops_is_delivered_after_the_next_start(running_node, tmp_path):
    scp = harness.StoreSCP(tmp_path)
    scp.child.kill()
    try:
        node = running_node([{"port": scp.port, "ae_title": "STORESCP"}])
        paths = [harness.save(ct(seed=k), tmp_path / f"{k}.dcm") for k in range(5)]
        assert harness.storescu(node, *paths).returncode == 0
        assert node.stop() == 0
        assert node.tally().get("delivered", 0) == 0
        scp.restart()
        node.start()
        assert [job.state for job in node.settled()] == ["delivered"] * 5
        assert len(scp.stored()) == 5
        assert node.stop() == 0
    finally:
        scp.child.kill()
