"""The forwarder against Orthanc and a PACS with faults: what each answer makes of a delivery."""

from io import BytesIO

import pydicom
import pytest
from spooled import put, settled, sha

pytestmark = pytest.mark.peer


def test_orthanc_gets_what_storescu_sent_and_the_spool_is_empty_after(
    node, orthanc, dcmtk, make_ct, wait_for
):
    one = node([{"port": orthanc.port, "ae_title": "ORTHANC"}])
    one.receive()
    one.forward()
    paths = {f"1.2.3.{number}": make_ct(f"1.2.3.{number}", size=128) for number in range(20)}
    assert dcmtk("storescu", "127.0.0.1", one.port, *paths.values()).returncode == 0
    wait_for(lambda: orthanc.count() == 20 and settled(one))
    for instance in orthanc.get("/instances"):
        uid = orthanc.get(f"/instances/{instance}")["MainDicomTags"]["SOPInstanceUID"]
        stored = pydicom.dcmread(BytesIO(orthanc.get(f"/instances/{instance}/file")))
        assert stored.PixelData == pydicom.dcmread(paths.pop(uid)).PixelData
    assert paths == {}
    assert {job.state for job in one.jobs()} == {"delivered"}
    assert one.files() == []


def test_bytes_arrive_unchanged_and_each_once(node, pacs, make_ct, wait_for):
    peer = pacs()
    one = node([{"port": peer.port, "associations": 3}])
    paths = [make_ct(size=50 + 2 * n) for n in range(30)]
    sent = {(put(one, path), sha(path)) for path in paths}
    one.forward()
    wait_for(lambda: settled(one))
    assert sorted((uid, digest) for uid, _, digest in peer.stored()) == sorted(sent)


@pytest.mark.parametrize("status", ["0000", "B000", "B006", "B007"])
def test_success_and_warnings_are_delivered_with_their_status(
    node, pacs, make_ct, wait_for, status
):
    peer = pacs(status)
    one = node([{"port": peer.port}])
    put(one, make_ct())
    one.forward()
    [delivery] = wait_for(lambda: settled(one))
    assert (delivery.state, delivery.status) == ("delivered", int(status, 16))


@pytest.mark.parametrize("status", ["C000", "A900", "0122", "B123"])
def test_other_failures_are_held_with_their_reason_and_come_back_on_release(
    node, pacs, make_ct, wait_for, status
):
    peer = pacs(status)
    one = node([{"port": peer.port}])
    path = make_ct()
    put(one, path)
    one.forward()
    [delivery] = wait_for(lambda: settled(one))
    assert (delivery.state, delivery.status) == ("held", int(status, 16))
    assert f"0x{status}" in delivery.reason
    peer.stop()
    peer.start("ok")
    with one.spool() as spool:
        spool.release(delivery.job_id)
    wait_for(lambda: len(peer.stored()) == 1)


def test_out_of_resources_is_retried_until_it_is_taken(node, pacs, make_ct, wait_for):
    peer = pacs("A700")
    one = node([{"port": peer.port}])
    uids = [put(one, make_ct()) for _ in range(3)]
    one.forward()
    tried = wait_for(lambda: [d for d in one.deliveries() if d.attempts >= 2])
    assert "0xA700" in tried[0].reason
    assert tried[0].status == 0xA700
    assert not any(d.state == "delivered" for d in one.deliveries())
    peer.stop()
    peer.start("ok")
    wait_for(lambda: settled(one))
    assert sorted(uid for uid, _, _ in peer.stored()) == sorted(uids)


def test_a_pacs_that_is_down_gets_everything_once_it_is_up(node, pacs, make_ct, wait_for):
    peer = pacs(None)
    one = node([{"port": peer.port}])
    uids = [put(one, make_ct()) for _ in range(5)]
    one.forward()
    waiting = wait_for(lambda: [d for d in one.deliveries() if d.reason])
    assert "no connection" in waiting[0].reason or "refused" in waiting[0].reason
    peer.start("ok")
    wait_for(lambda: settled(one))
    assert sorted(uid for uid, _, _ in peer.stored()) == sorted(uids)


def test_a_pacs_that_rejects_associations_is_tried_again_with_its_reason(
    node, pacs, make_ct, wait_for
):
    peer = pacs("reject")
    one = node([{"port": peer.port}])
    put(one, make_ct())
    one.forward()
    [delivery] = wait_for(lambda: [d for d in one.deliveries() if d.reason])
    assert "reject" in delivery.reason.lower()
    assert "Calling AE title not recognised" in delivery.reason
    peer.stop()
    peer.start("ok")
    wait_for(lambda: settled(one))


@pytest.mark.parametrize("mode", ["abort", "crash"])
def test_a_pacs_that_goes_away_in_mid_transfer_gets_it_again(node, pacs, make_ct, wait_for, mode):
    peer = pacs(mode)
    one = node([{"port": peer.port}])
    uids = [put(one, make_ct(size=512)) for _ in range(3)]
    one.forward()
    failed = wait_for(lambda: [d for d in one.deliveries() if d.reason])
    assert "no answer" in failed[0].reason
    peer.stop()
    peer.start("ok")
    wait_for(lambda: settled(one))
    assert {uid for uid, _, _ in peer.stored()} == set(uids)


def test_a_pacs_that_hangs_times_out_and_its_association_is_not_used_again(
    node, pacs, make_ct, wait_for
):
    peer = pacs("hang")
    one = node([{"port": peer.port, "timeout_s": 1.0}])
    put(one, make_ct())
    one.forward()
    [delivery] = wait_for(lambda: [d for d in one.deliveries() if d.reason])
    assert "silent for 1 s" in delivery.reason
    peer.stop()
    peer.start("ok")
    wait_for(lambda: settled(one))
    assert len(peer.stored()) == 1


def test_an_instance_that_breaks_every_association_does_not_stop_the_others(
    node, pacs, make_ct, wait_for
):
    peer = pacs("poison:1.2.3.666")
    one = node([{"port": peer.port}])
    put(one, make_ct("1.2.3.666"))
    good = {put(one, make_ct()) for _ in range(10)}
    one.forward()
    wait_for(lambda: {uid for uid, _, _ in peer.stored()} == good)
    [bad] = [d for d in one.deliveries() if d.sop_instance_uid == "1.2.3.666"]
    assert bad.state in ("waiting", "sending")


def test_a_missing_file_is_held_and_not_retried(node, pacs, make_ct, wait_for):
    peer = pacs()
    one = node([{"port": peer.port}])
    put(one, make_ct())
    one.jobs()[0].path.unlink()
    one.forward()
    [delivery] = wait_for(lambda: settled(one))
    assert delivery.state == "held"
    assert "cannot be read" in delivery.reason
