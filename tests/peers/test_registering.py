"""A running node registers what it marks and delivers, and `trace` finds it there."""

import json
from contextlib import closing
from pathlib import Path

import cv2
import harness
import numpy as np
import pytest
from fixtures import running_node
from postgresql import Cluster
from verifying import QueryOrthanc

from dicom_node.instance.display import display_of
from dicom_node.instance.frames import open_instance
from dicom_node.registry import Registry

__all__ = ["running_node"]
DEMO = Path(__file__).parents[2] / "demo"
SLICES = sorted((DEMO / "mr_brain").glob("*.dcm"))

pytestmark = [pytest.mark.peer, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def orthanc(tmp_path):
    """An Orthanc that answers C-FIND and C-GET."""
    one = QueryOrthanc(tmp_path)
    yield one
    one.child.end()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request):
    """Return what ``registry.url`` says; "" for the file in the spool."""
    if request.param == "sqlite":
        yield ""
        return
    cluster = Cluster()
    yield cluster.new_database()
    cluster.close()


def test_a_series_sent_by_a_modality_is_registered_and_a_leaked_picture_leads_to_its_slice(
    running_node, orthanc, tmp_path, url
):
    node = running_node([{"port": orthanc.port, "ae_title": "ORTHANC"}], start=False)
    if url:
        with node.config_path.open("a") as text:
            text.write(f'[registry]\nurl = "{url}"\n')
        node.config = harness.load(node.config_path)
    node.start(timeout_s=120)
    assert harness.storescu(node, *SLICES).returncode == 0
    jobs = node.settled(120)
    with node.spool() as spool:
        harness.wait_for(lambda: spool.outbox_depth()[0] == 0, 60, lambda: node.output)
    with Registry.open(node.config.registry_url) as registry:
        found = [registry.instances(sop_instance_uid=job.sop_instance_uid)[0] for job in jobs]
        manifest = registry.series(jobs[0].series_instance_uid)
        present = [job.sop_instance_uid for job in jobs[1:]]
        [missing] = manifest.missing(present, "pacs")
    assert missing.sop_instance_uid == jobs[0].sop_instance_uid
    for job, record in zip(jobs, found, strict=True):
        assert (record.delivered_digest, record.received_digest) == (job.result_digest, job.digest)
        assert (record.action, record.modality, record.calling_ae) == ("marked", "MR", "MODALITY")
        assert record.key_id == node.ring().current.key_id
        [frame] = record.frames
        assert frame.original_digest
        assert frame.fingerprint
        assert (len(frame.message), frame.message[:8]) == (12, frame.perceptual_hash)
        assert [(d.destination, d.status) for d in record.deliveries] == [("pacs", 0)]
    assert node.stop() == 0
    _leaked_pictures_lead_to_their_slices(node, orthanc, tmp_path)


def _leaked_pictures_lead_to_their_slices(node, orthanc, tmp_path):
    leaked = tmp_path / "leaked"
    leaked.mkdir()
    for uid, identifier in harness.orthanc_instances(orthanc).items():
        stored = harness.fetch(orthanc, identifier, tmp_path / "fetched.dcm")
        with closing(open_instance(stored, max_pixels=1 << 28)) as instance:
            shown = display_of(instance).image(instance.frame(0), 0)
        picture = str(leaked / f"{uid}.jpg")
        cv2.imwrite(picture, np.rint(shown * 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 70])
    done = node.cli("trace", leaked, "--json", "--no-search", "--pictures", tmp_path / "shown",
                    "--fetch", timeout_s=200)  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(SLICES)
    for line in lines:
        assert (line["match"]["sop_instance_uid"], line["match"]["frame"]) == (
            Path(line["path"]).stem, 1,
        )  # fmt: skip
        assert line["match"]["confidence"] > 0.9
    # Delivered, the node has no file of them any more: shown is what the PACS has.
    assert node.files() == []
    drawn = sorted((tmp_path / "shown").iterdir())
    assert len(drawn) == len(SLICES)
    for path in drawn:
        both = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        half = (both.shape[1] - 12) // 2
        assert np.corrcoef(both[:, :half].ravel(), both[:, -half:].ravel())[0, 1] > 0.99
