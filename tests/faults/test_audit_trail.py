"""A running node keeps its audit trail: what was marked and delivered is in it, nothing else."""

import json

import harness
import pytest

from dicom_node.audit.reading import entries

pytestmark = pytest.mark.peer


def told(node, *options):
    shown = node.cli("audit-log", "show", "--json", *options)
    assert shown.returncode == 0, shown.stderr
    return [json.loads(line) for line in shown.stdout.splitlines()]


def kinds(node):
    return [entry.kind for entry, _ in entries(node.config.audit_directory)]


def test_what_the_node_did_is_in_its_trail(running_node, orthanc, tmp_path):
    node = running_node([{"ae_title": "ORTHANC", "port": orthanc.port}])
    files = [
        harness.save(harness.ct(size=128, seed=k, InstanceNumber=k), tmp_path / f"{k}.dcm")
        for k in range(6)
    ]
    sent = harness.storescu(node, *files)
    assert sent.returncode == 0, sent.stderr
    uids = {job.sop_instance_uid for job in node.settled()}
    assert len(uids) == 6

    harness.wait_for(lambda: kinds(node).count("forwarded") == 6, 30, lambda: node.output[-3000:])
    assert node.stop() == 0
    marked = told(node, "--kind", "marked")
    assert {event["sop_instance_uid"] for event in marked} == uids
    assert {event["source_ae"] for event in marked} == {"MODALITY"}
    assert {event["key_id"] for event in marked} == {node.ring().current.key_id.hex()}
    delivered = told(node, "--kind", "forwarded")
    assert {event["sop_instance_uid"] for event in delivered} == uids
    assert {event["ae_title"] for event in delivered} == {"ORTHANC"}
    checked = node.cli("audit-log", "verify", "--json")
    assert checked.returncode == 0, checked.stdout
    assert json.loads(checked.stdout)["unsigned"] == 0
    for path in node.config.audit_directory.iterdir():
        content = path.read_bytes()
        assert b"DOE" not in content
        assert b"P77" not in content


def test_what_a_pacs_refuses_is_in_the_trail(running_node, pacs, tmp_path):
    peer = pacs("C000")
    node = running_node([{"port": peer.port}])
    sent = harness.storescu(node, harness.save(harness.ct(size=128), tmp_path / "a.dcm"))
    assert sent.returncode == 0, sent.stderr
    harness.wait_for(lambda: "refused" in kinds(node), 40, lambda: node.output[-3000:])
    [event] = told(node, "--kind", "refused")
    assert (event["stage"], event["outcome"]) == ("forward", "held")
    assert event["reason"]
