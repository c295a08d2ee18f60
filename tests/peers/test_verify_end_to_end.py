"""The whole node with a ``[verify]`` section, an Orthanc behind it, and an auditor in front."""

from __future__ import annotations

import json
import signal
import sys

import harness
import pytest
import verifying
from harness import Child, free_port, wait_for
from pynetdicom.sop_class import CTImageStorage
from verifying import STUDY_FIND, STUDY_GET, QueryOrthanc, block_of, client, keys, verify_now

from dicom_node.config import load
from dicom_node.registry.registry import Registry

pytestmark = [pytest.mark.peer, pytest.mark.slow]


class WholeNode:
    """``dicom-node serve`` with every process."""

    def __init__(self, folder, pacs):
        text = verifying.config_text(folder, folder / "keys", pacs.port, port=pacs.verify_port,
                                     fetch_port=pacs.fetch_port)  # fmt: skip
        text = text.replace("[node]", f"[node]\nport = {free_port()}")
        text = text.replace("[watermark]", "[watermark]\nworkers = 1")
        self.path = folder / "node.toml"
        self.path.write_text(text)
        self.config = load(self.path)
        self.port = self.config.verify.port
        self.child = Child(
            [sys.executable, "-m", "dicom_node.cli.main", "serve", "--config", self.path],
            folder / "node.log",
        )
        wait_for(lambda: "ready:" in self.output or self.child.process.poll() is not None, 90,
                 lambda: self.output)  # fmt: skip
        assert self.child.process.poll() is None, self.output

    @property
    def output(self):
        return self.child.output

    def delivered(self):
        with Registry.open(self.config.registry_url) as registry:
            found = registry.instances(study_instance_uid="1.2.3.7", frames=False)
        return sum(bool(each.deliveries) for each in found)


@pytest.fixture
def pacs(tmp_path):
    one = QueryOrthanc(tmp_path)
    yield one
    one.child.end()


def test_a_study_sent_through_the_node_is_vouched_for_and_a_lost_slice_is_missed(
    tmp_path, pacs, dcmtk
):
    node = WholeNode(tmp_path, pacs)
    try:
        sent = []
        for index in range(1, 4):
            ds = harness.ct(f"1.2.3.7.1.{index}", size=192, seed=index, InstanceNumber=index)
            ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3.7", "1.2.3.7.1"
            sent.append(harness.save(ds, tmp_path / f"{index}.dcm"))
        assert dcmtk("storescu", "-xe", "-aec", "DICOMNODE", "127.0.0.1", node.config.node.port,
                     *sent).returncode == 0  # fmt: skip
        wait_for(lambda: node.delivered() == 3, 60, lambda: node.output[-4000:])

        # The service is not essential: the node is ready, and takes images, before it is.
        wait_for(lambda: '"event": "verifying"' in node.output, 60, lambda: node.output[-4000:])
        with client(node, STUDY_FIND) as assoc:
            asked = verify_now(keys(StudyInstanceUID="1.2.3.7"))
            (_, match), (last, _) = assoc.send_c_find(asked, STUDY_FIND)
        said = block_of(match)
        assert last.Status == 0x0000
        assert (said[0x10], said[0x13], said[0x16]) == ("authentic", 3, 0)
        assert json.loads(said[0x17])["transcoded"] == []

        [lost] = [i for uid, i in harness.orthanc_instances(pacs).items() if uid.endswith(".2")]
        harness.delete(pacs, f"/instances/{lost}")
        with client(node, STUDY_GET, storage=[CTImageStorage],
                    on_store=lambda event: 0x0000) as assoc:  # fmt: skip
            status, identifier = list(
                assoc.send_c_get(keys(StudyInstanceUID="1.2.3.7"), STUDY_GET)
            )[-1]
        assert (status.Status, status.NumberOfCompletedSuboperations) == (0xB000, 2)
        assert identifier.FailedSOPInstanceUIDList == "1.2.3.7.1.2"
    finally:
        node.child.process.send_signal(signal.SIGTERM)
        assert node.child.end(60) == 0, node.output[-4000:]
    assert not list((node.config.spool.directory / "fetched").rglob("*.dcm"))
