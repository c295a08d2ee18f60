"""A file of the spool vanishes while the node runs: what it answered 0x0000 reaches the PACS."""

import harness
import pytest
from harness import ct

pytestmark = [pytest.mark.fault, pytest.mark.peer]


@pytest.mark.parametrize("kinds", [("marked",), ("received", "marked")])
def test_an_instance_whose_files_vanish_arrives_after_release_or_when_it_is_sent_again(
    running_node, tmp_path, kinds
):
    scp = harness.StoreSCP(tmp_path)
    scp.child.kill()
    node = running_node([{"port": scp.port, "ae_title": "STORESCP"}])
    data_set = ct()
    path = harness.save(data_set, tmp_path / "one.dcm")
    try:
        assert harness.storescu(node, path).returncode == 0
        harness.wait_for(lambda: node.tally() == {"marked": 1}, message=lambda: node.output)
        for kind in kinds:
            [file] = (node.config.spool.directory / kind).rglob("*.dcm")
            file.unlink()
        # The forwarder is the first to miss it.
        harness.wait_for(lambda: node.tally() == {"held": 1}, message=lambda: node.output)
        scp.restart()
        if "received" in kinds:
            assert node.cli("queue", "release", 1).returncode == 3
            assert harness.storescu(node, path).returncode == 0
        else:
            assert node.cli("queue", "release", 1).returncode == 0
        [job] = node.settled()
        assert job.state == "delivered"
        assert set(scp.stored()) == {str(data_set.SOPInstanceUID)}
    finally:
        scp.child.kill()
