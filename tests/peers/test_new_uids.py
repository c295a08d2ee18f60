"""``uid_policy = "derive"``: images become new instances, and their study still hangs together."""

import contextlib
import json
import time

import harness
import pydicom
import pytest
import study_documents
import verifying
from pydicom.dataset import Dataset

from dicom_node.config import load
from dicom_node.instance.datafile import open_data_file
from dicom_node.instance.uids import referenced_uids

pytestmark = [pytest.mark.peer, pytest.mark.slow, pytest.mark.xdist_group("new_uids")]
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
LIVER = "ct_series/liver_3slice_GE_LightSpeedUltra"


class Hospital:
    """A node that gives new UIDs, between storescu and an Orthanc that answers queries."""

    def __init__(self, folder, **watermark):
        self.orthanc = verifying.QueryOrthanc(folder)
        self.workstation = harness.StoreSCP(folder)
        settings = {"uid_policy": "derive", "reference_wait_s": 20.0} | watermark
        self.node = harness.RunningNode(
            folder / "node", [{"port": self.orthanc.port, "ae_title": "ORTHANC"}],
            watermark=settings,
        )  # fmt: skip
        verify = {"bind": "127.0.0.1", "port": self.orthanc.verify_port, "workers": 1,
                  "fetch_port": self.orthanc.fetch_port}  # fmt: skip
        lines = ["[verify]", *(f"{key} = {json.dumps(value)}" for key, value in verify.items())]
        with self.node.config_path.open("a") as file:
            lines += ["[[move_destination]]", 'name = "workstation"', 'ae_title = "WORKSTATION"',
                      'host = "127.0.0.1"', f"port = {self.workstation.port}"]  # fmt: skip
            lines += ["[[verify.client]]", 'ae_title = "TRUSTED"', 'policy = "restored"']
            file.write("\n".join(lines) + "\n")
        self.node.config = load(self.node.config_path)
        self.node.start()

    def send(self, *paths):
        for path in paths:
            meta = pydicom.dcmread(path, stop_before_pixels=True).file_meta
            if meta.MediaStorageSOPClassUID == LABEL_MAP:  # storescu does not know it yet
                status = harness.send_bytes(
                    self.node, harness.data_set_bytes(path), sop_class=LABEL_MAP,
                    sop_instance_uid=meta.MediaStorageSOPInstanceUID,
                    syntax=meta.TransferSyntaxUID,
                )  # fmt: skip
                assert status == 0x0000
                continue
            option = "-xi" if meta.TransferSyntaxUID == "1.2.840.10008.1.2" else "-xe"
            done = harness.storescu(self.node, path, options=("-R", option))
            assert done.returncode == 0, done.stderr

    def stored(self, folder):
        """Fetch all that the PACS has; return files by SOP Instance UID."""
        folder.mkdir(exist_ok=True)
        return {
            uid: harness.fetch(self.orthanc, identifier, folder / f"{number}.dcm")
            for number, (uid, identifier) in enumerate(
                sorted(harness.orthanc_instances(self.orthanc).items())
            )
        }

    def end(self):
        self.node.kill_all()
        self.orthanc.child.end()
        self.workstation.child.kill()


@pytest.fixture
def hospital(tmp_path):
    """Return a function that starts a `Hospital`."""
    made = []

    def make(**watermark):
        made.append(Hospital(tmp_path / f"hospital{len(made)}", **watermark))
        return made[-1]

    yield make
    for one in made:
        one.end()


def uid_of(path):
    return str(pydicom.dcmread(path, stop_before_pixels=True, force=True).SOPInstanceUID)


def source_of(path):
    """Return the UID an instance names as the one it was made of by us, None if it names none."""
    ds = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    for item in ds.get("SourceImageSequence") or ():
        purpose = item.get("PurposeOfReferenceCodeSequence") or [Dataset()]
        if purpose[0].get("CodeValue") == "121322":
            return str(item.ReferencedSOPInstanceUID)
    return None


def references(path):
    """Return the UIDs that an instance refers to, but for the one it was made of."""
    with contextlib.closing(open_data_file(path)) as data:
        return referenced_uids(data.read_header()) - {source_of(path)}


def changed(differences):
    """Leave out what storescu itself does not send: Data Set Trailing Padding."""
    return [line for line in differences if line != "(FFFC,FFFC) removed"]


def pixels(path):
    ds = pydicom.dcmread(path)
    return [ds[tag].value for tag in (0x7FE00008, 0x7FE00010) if tag in ds]


def reference(uid, sop_class=harness.CT):
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
    return item


@pytest.fixture
def study(shared, tmp_path):
    """Real slices with real segmentations of them, key objects and a presentation state."""
    dicom = shared / "dicom"
    images = [*sorted((dicom / LIVER).iterdir()), dicom / "ct/pydicom__CT_small.dcm",
              dicom / "sm/highdicom__sm_image.dcm"]  # fmt: skip
    documents = [
        dicom / "seg/dcmqi__liver.dcm", dicom / "seg/dcmqi__partial_overlaps.dcm",
        dicom / "seg/highdicom__seg_image_sm_control_labelmap_palette_color.dcm",
        dicom / "sr/highdicom__sr_document.dcm",
        dicom / "pmap_float/pydicom-data__parametric_map_float.dcm",
        study_documents.key_objects(images[:3], tmp_path / "ko.dcm"),
        study_documents.presentation_state(images[:3], tmp_path / "pr.dcm"),
    ]  # fmt: skip
    return images, documents


@pytest.mark.parametrize("first", ["images", "documents"])
def test_every_reference_of_a_study_resolves_in_the_pacs_whichever_comes_first(
    first, hospital, study, tmp_path
):
    images, documents = study
    place = hospital()
    order = [*images, *documents] if first == "images" else [*documents, *images]
    place.send(*order)
    jobs = place.node.settled(120)
    assert {job.state for job in jobs} == {"delivered"}
    stored = place.stored(tmp_path / "stored")

    new = {source_of(path): uid for uid, path in stored.items() if source_of(path)}
    assert new.keys() == {uid_of(path) for path in images}
    assert stored.keys() == {*new.values(), *(uid_of(path) for path in documents)}
    for uid, path in stored.items():
        assert references(path) <= stored.keys(), uid
    for path in documents:
        assert references(stored[uid_of(path)]), "it refers to images"

    by_source = {uid_of(path): path for path in order}
    for uid, path in stored.items():
        source = by_source.get(uid) or by_source[source_of(path)]
        assert harness.dciodvfy_errors(path) - harness.dciodvfy_errors(source) == set()

    done = place.node.cli("verify", tmp_path / "stored", "--json")
    verdicts = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["verdict"] for line in verdicts} == {"authentic"}, verdicts
    assert done.returncode == 0

    restored = place.node.cli("restore", tmp_path / "stored", "--out", tmp_path / "back", "--json")
    assert restored.returncode == 0, restored.stdout
    back = {uid_of(path): path for path in (tmp_path / "back").iterdir()}
    assert back.keys() == by_source.keys()
    for path in images:
        assert changed(harness.differences(path, back[uid_of(path)])) == []
    for path in documents:
        assert changed(harness.header_differences(path, back[uid_of(path)])) == []
        assert pixels(back[uid_of(path)]) == pixels(path)

    place.send(*order)
    again = place.node.settled(120)[len(jobs) :]
    first_time = {job.id: job for job in jobs}
    for job in again:
        assert job.state == "delivered"
        assert job.result_digest == first_time[job.repeat_of].result_digest
    assert len(again) == len(order)
    assert harness.orthanc_instances(place.orthanc).keys() == stored.keys()

    study_uid = pydicom.dcmread(images[0]).StudyInstanceUID
    harness.wait_for(lambda: '"event": "verifying"' in place.node.output)
    audit = place.node.cli("audit", "--study", study_uid, "--json")
    found = json.loads(audit.stdout.splitlines()[0])
    assert (audit.returncode, found["sound"], found["missing"]) == (0, True, []), audit.stdout
    assert len(found["instances"]) == 7

    # Who may have originals is given a study whose references are the originals', too.
    moved = harness.run_tool(
        "movescu", "-S", "-aet", "TRUSTED", "-aec", "DICOMVERIFY", "-aem", "WORKSTATION",
        "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study_uid}",
        "127.0.0.1", place.orthanc.verify_port,
    )  # fmt: skip
    assert moved.returncode == 0, moved.stderr
    originals = {uid: path for uid, [path] in place.workstation.stored().items()}
    of_study = {
        uid: path for uid, path in by_source.items()
        if pydicom.dcmread(path, stop_before_pixels=True).StudyInstanceUID == study_uid
    }  # fmt: skip
    assert originals.keys() == of_study.keys()
    for uid, path in originals.items():
        assert references(path) == references(of_study[uid])


def test_a_worker_that_is_killed_never_leaves_a_reference_to_another_uid(hospital, study, tmp_path):
    images, documents = study
    place = hospital()
    node = place.node
    place.send(*documents[:2], *images, *documents[2:])
    for round_ in range(4):
        harness.wait_for(lambda: "mark-0" in node.processes(), 60, lambda: node.output[-2000:])
        harness.wait_for(
            lambda: any(job.state == "marking" for job in node.jobs()) or node.tally().keys()
            <= {"delivered", "held"}, 60,
        )  # fmt: skip
        time.sleep(0.05 * round_)
        if worker := node.processes().get("mark-0"):
            harness.kill(worker)
    jobs = node.settled(120)
    for job in jobs:
        if job.state == "held":
            assert "ended its worker" in job.reason
            assert node.cli("queue", "release", job.id).returncode == 0
    assert {job.state for job in node.settled(120)} == {"delivered"}
    stored = place.stored(tmp_path / "stored")
    sources = [source for path in stored.values() if (source := source_of(path))]
    assert sorted(sources) == sorted(uid_of(path) for path in images)
    for uid, path in stored.items():
        assert references(path) <= stored.keys(), uid
