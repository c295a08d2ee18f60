"""The forwarder against Orthanc, storescp, and a PACS (pynetdicom's own SCP) that misbehaves."""

import hashlib
import json
import os
import signal
import threading
import time
from io import BytesIO
from pathlib import Path

import harness
import pydicom
import pytest
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    generate_uid,
)

from dicom_node.dimse import NeverHeard, StoreAssociation, encode_file_meta, read_file_meta
from dicom_node.errors import AssociationLost, SpoolFull
from dicom_node.forward import run_forwarder

pytestmark = pytest.mark.peer

CT = "1.2.840.10008.5.1.4.1.1.2"


def data_set(path):
    with path.open("rb") as file:
        file.seek(read_file_meta(file).data_set_offset)
        return file.read()


def put(one, path, destinations=("pacs",)):
    """Spool a file as the receiver does, for these destinations."""
    with path.open("rb") as file:
        meta = read_file_meta(file)
    with one.spool() as spool:
        spool.receive(
            encode_file_meta(
                meta.sop_class_uid, meta.sop_instance_uid, meta.transfer_syntax_uid, "MODALITY"
            ),
            data_set(path),
            sop_class_uid=meta.sop_class_uid,
            sop_instance_uid=meta.sop_instance_uid,
            transfer_syntax_uid=meta.transfer_syntax_uid,
            deliver_to=destinations,
        )
    return meta.sop_instance_uid


def sha(path):
    return hashlib.sha256(data_set(path)).hexdigest()


def settled(one):
    deliveries = one.deliveries()
    return deliveries if all(d.state in ("delivered", "held") for d in deliveries) else None


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


def test_one_association_carries_many_transfer_syntaxes(node, pacs, tmp_path, wait_for):
    peer = pacs()
    one = node([{"port": peer.port}])
    syntaxes = [
        "1.2.840.10008.1.2",
        "1.2.840.10008.1.2.1.99",
        "1.2.840.10008.1.2.2",
        "1.2.840.10008.1.2.5",
        "1.2.840.10008.1.2.4.70",
        "1.2.840.10008.1.2.4.80",
        "1.2.840.10008.1.2.4.90",
        "1.2.840.10008.1.2.4.201",
        "1.2.840.10008.1.2.4.110",
    ]
    for number, syntax in enumerate(syntaxes):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(encode_file_meta(CT, f"1.2.3.{number}", syntax, "") + os.urandom(5000))
        put(one, path)
    one.forward()
    wait_for(lambda: settled(one))
    assert [(uid, syntax) for uid, syntax, _ in peer.stored()] == [
        (f"1.2.3.{number}", syntax) for number, syntax in enumerate(syntaxes)
    ]


def test_a_class_first_seen_later_gets_a_new_association(node, pacs, make_ct, wait_for):
    peer = pacs()
    one = node([{"port": peer.port}])
    one.forward()
    classes = [CT, "1.2.840.10008.5.1.4.1.1.4", "1.3.6.1.4.1.9999.1.1", CT]
    for number, sop_class in enumerate(classes, 1):
        put(one, make_ct(sop_class=sop_class))
        wait_for(lambda: len(peer.stored()) == number)  # noqa: B023 - called at once
    assert len(wait_for(lambda: settled(one))) == 4


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


def test_a_refused_transfer_syntax_is_held_and_the_rest_delivered(
    node, pacs, tmp_path, make_ct, wait_for
):
    peer = pacs("native")
    one = node([{"port": peer.port}])
    odd = tmp_path / "odd.dcm"
    odd.write_bytes(encode_file_meta(CT, "1.2.3.7", "1.2.840.10008.1.2.4.90", "") + bytes(100))
    put(one, odd)
    uid = put(one, make_ct(syntax=ImplicitVRLittleEndian))
    one.forward()
    wait_for(lambda: settled(one))
    states = {d.sop_instance_uid: d for d in one.deliveries()}
    assert states[uid].state == "delivered"
    assert states["1.2.3.7"].state == "held"
    assert "no presentation context" in states["1.2.3.7"].reason
    assert "1.2.840.10008.1.2.4.90" in states["1.2.3.7"].reason


def test_storescp_gets_the_transfer_syntax_it_prefers_only_if_it_is_ours(
    node, make_ct, wait_for, tmp_path, dcmtk_storescp
):
    port, folder = dcmtk_storescp("+xs")
    one = node([{"port": port, "ae_title": "STORESCP"}])
    path = make_ct()
    put(one, path)
    one.forward()
    [delivery] = wait_for(lambda: settled(one))
    assert delivery.state == "delivered"
    [stored] = folder.glob("CT*")
    assert pydicom.dcmread(stored).PixelData == pydicom.dcmread(path).PixelData


def test_400_instances_under_load_never_lose_an_answer(node, pacs, make_ct, wait_for):
    peer = pacs()
    one = node([{"port": peer.port, "associations": 2}])
    template = make_ct("1.2.3.0000").read_bytes()
    uids = []
    with one.spool() as spool:
        for number in range(400):
            content = template.replace(b"1.2.3.0000", b"1.2.3.%04d" % number)
            meta = read_file_meta(BytesIO(content))
            uids.append(meta.sop_instance_uid)
            spool.receive(
                content[: meta.data_set_offset],
                content[meta.data_set_offset :],
                sop_class_uid=meta.sop_class_uid,
                sop_instance_uid=meta.sop_instance_uid,
                transfer_syntax_uid=meta.transfer_syntax_uid,
                deliver_to=["pacs"],
            )
    one.forward()
    deliveries = wait_for(lambda: settled(one), 60)
    assert {d.attempts for d in deliveries} == {1}
    assert sorted(uid for uid, _, _ in peer.stored()) == uids


def test_a_refused_syntax_is_transcoded_only_then(node, pacs, make_ct, wait_for, tmp_path):
    peer = pacs("native")
    one = node([{"port": peer.port}])
    explicit, implicit = make_ct(), make_ct(syntax=ImplicitVRLittleEndian)
    uids = [put(one, explicit), put(one, implicit)]
    asked = []

    def transcode(path, accepted, _still_at_it):
        asked.append(accepted)
        ds = pydicom.dcmread(path)
        ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        copy = tmp_path / "recoded.dcm"
        ds.save_as(copy, implicit_vr=True, little_endian=True, enforce_file_format=True)
        return copy

    stop = threading.Event()
    forwarder = threading.Thread(target=run_forwarder, args=(one.config, "pacs", stop, transcode))
    forwarder.start()
    try:
        wait_for(lambda: settled(one))
    finally:
        stop.set()
        forwarder.join()
    assert asked == [(str(ImplicitVRLittleEndian),)]
    assert [(uid, syntax) for uid, syntax, _ in peer.stored()] == [
        (uid, str(ImplicitVRLittleEndian)) for uid in uids
    ]
    assert not (tmp_path / "recoded.dcm").exists()
    assert {d.state for d in one.deliveries()} == {"delivered"}
    with one.spool() as spool:
        told = {row.sop_instance_uid: row for row in spool.outbox() if row.kind == "delivered"}
    assert {row.delivered_syntax_uid for row in told.values()} == {str(ImplicitVRLittleEndian)}
    assert told[uids[0]].transfer_syntax_uid == str(ExplicitVRLittleEndian)


def test_a_copy_that_finds_no_room_is_made_later_and_its_instance_not_held(
    node, pacs, make_ct, wait_for, tmp_path
):
    peer = pacs("native")
    one = node([{"port": peer.port}])
    put(one, make_ct())
    asked = []

    def transcode(path, _accepted, _still_at_it):
        asked.append(path)
        if len(asked) == 1:
            raise SpoolFull("no space left for the copy")
        ds = pydicom.dcmread(path)
        ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        copy = tmp_path / "recoded.dcm"
        ds.save_as(copy, implicit_vr=True, little_endian=True, enforce_file_format=True)
        return copy

    stop = threading.Event()
    forwarder = threading.Thread(target=run_forwarder, args=(one.config, "pacs", stop, transcode))
    forwarder.start()
    try:
        [delivery] = wait_for(lambda: settled(one))
    finally:
        stop.set()
        forwarder.join()
    assert (delivery.state, delivery.attempts) == ("delivered", 2)


def test_a_dead_destination_does_not_delay_another(node, pacs, make_ct, wait_for):
    alive, dead, hanging = pacs(), pacs(None), pacs("hang")
    one = node(
        [
            {"name": "dead", "port": dead.port},
            {"name": "hanging", "port": hanging.port, "timeout_s": 60},
            {"name": "alive", "port": alive.port},
        ]
    )
    for _ in range(10):
        put(one, make_ct(), ("dead", "hanging", "alive"))
    for name in ("dead", "hanging", "alive"):
        one.forward(name)
    started = time.monotonic()
    wait_for(lambda: len(alive.stored()) == 10)
    assert time.monotonic() - started < 40
    assert {job.state for job in one.jobs()} == {"marked"}
    hanging.stop()


def test_an_instance_spooled_while_idle_is_sent_at_once(node, pacs, make_ct, wait_for):
    peer = pacs()
    one = node([{"port": peer.port}])
    one.forward()
    put(one, make_ct())
    wait_for(lambda: len(peer.stored()) == 1)
    taken = []
    for number in range(2, 7):
        path = make_ct()
        started = time.monotonic()
        put(one, path)
        wait_for(lambda: len(peer.stored()) == number)  # noqa: B023 - called at once
        taken.append(time.monotonic() - started)
    assert min(taken) < 0.3


def test_an_idle_association_is_released(node, pacs, make_ct, wait_for):
    peer = pacs()
    one = node([{"port": peer.port}])
    child = one.forward()
    put(one, make_ct())
    wait_for(lambda: len(peer.stored()) == 1)

    def connections():
        table = Path("/proc/net/tcp").read_text().splitlines()[1:]
        port = f":{peer.port:04X}"
        return [row for row in table if row.split()[2].endswith(port) and row.split()[3] == "01"]

    assert len(connections()) == 1
    wait_for(lambda: not connections(), 30)
    assert child.process.poll() is None


def test_a_pacs_restarted_between_two_instances_costs_no_failed_attempt(
    node, pacs, make_ct, wait_for
):
    peer = pacs()
    one = node([{"port": peer.port}])
    one.forward()
    put(one, make_ct())
    # Not only stored: killed before it has answered, it would have to get the first one again.
    wait_for(lambda: settled(one))
    peer.stop()
    peer.start("ok")
    put(one, make_ct())
    wait_for(lambda: len(peer.stored()) == 2)
    assert [d.attempts for d in one.deliveries()] == [1, 1]


def test_an_association_whose_end_shows_only_in_use_costs_no_failed_attempt(
    node, pacs, make_ct, wait_for, monkeypatch
):
    peer = pacs()
    one = node([{"port": peer.port}])
    # What the last look at the connection says when the peer goes away just after it.
    last_look = property(lambda used: used._assoc.is_established)
    monkeypatch.setattr(StoreAssociation, "alive", last_look)
    stop = threading.Event()
    forwarder = threading.Thread(target=run_forwarder, args=(one.config, "pacs", stop))
    forwarder.start()
    try:
        put(one, make_ct(size=512))
        wait_for(lambda: settled(one))
        peer.stop()
        peer.start("ok")
        put(one, make_ct(size=512))
        wait_for(lambda: settled(one))
    finally:
        stop.set()
        forwarder.join()
    assert len(peer.stored()) == 2
    assert [d.attempts for d in one.deliveries()] == [1, 1]


@pytest.mark.parametrize(("mode", "unheard"), [("ok", True), ("crash-second", False)])
def test_only_a_request_the_peer_cannot_have_read_counts_as_never_heard(
    pacs, make_ct, mode, unheard
):
    peer = pacs(mode)
    used = StoreAssociation.open(
        "pacs", ("127.0.0.1", peer.port), called_ae="PACS", calling_ae="NODE",
        pairs=[(CT, ExplicitVRLittleEndian)], timeout_s=5,
    )  # fmt: skip
    path = make_ct(size=512)
    with path.open("rb") as file:
        meta = read_file_meta(file)
        assert used.store(file, meta).status == 0x0000
        if unheard:
            peer.stop()
        with pytest.raises(AssociationLost) as caught:
            used.store(file, meta)
    assert isinstance(caught.value, NeverHeard) is unheard


def test_a_forwarder_killed_while_sending_sends_it_again(node, pacs, make_ct, wait_for):
    peer = pacs("hang")
    one = node([{"port": peer.port, "timeout_s": 60}])
    uid = put(one, make_ct())
    child = one.forward()
    wait_for(lambda: [d for d in one.deliveries() if d.state == "sending"])
    time.sleep(0.3)
    child.kill()
    peer.stop()
    peer.start("ok")
    with one.spool() as spool:
        spool.recover()
    one.forward()
    wait_for(lambda: settled(one))
    assert [stored for stored, _, _ in peer.stored()] == [uid]


def test_sigterm_finishes_the_delivery_in_hand_and_keeps_the_rest(node, pacs, make_ct, wait_for):
    peer = pacs()
    one = node([{"port": peer.port}])
    for _ in range(60):
        put(one, make_ct(size=256))
    child = one.forward()
    wait_for(lambda: len(peer.stored()) >= 3)
    child.process.send_signal(signal.SIGTERM)
    assert child.process.wait(25) == 0
    states = [d.state for d in one.deliveries()]
    assert set(states) <= {"delivered", "waiting"}
    assert states.count("delivered") == len(peer.stored())
    one.forward()
    wait_for(lambda: settled(one))
    assert len(peer.stored()) == 60


def test_a_missing_file_is_held_and_not_retried(node, pacs, make_ct, wait_for):
    peer = pacs()
    one = node([{"port": peer.port}])
    put(one, make_ct())
    one.jobs()[0].path.unlink()
    one.forward()
    [delivery] = wait_for(lambda: settled(one))
    assert delivery.state == "held"
    assert "cannot be read" in delivery.reason


def test_a_large_instance_is_streamed(node, pacs, tmp_path, wait_for):
    peer = pacs()
    one = node([{"port": peer.port, "timeout_s": 60}])
    path = tmp_path / "large.dcm"
    header = encode_file_meta(CT, "1.2.3", ImplicitVRLittleEndian, "")
    path.write_bytes(header + os.urandom(150 << 20))
    put(one, path)
    child = one.forward()
    wait_for(lambda: settled(one), 60)
    with open(f"/proc/{child.process.pid}/status") as file:
        peak_kib = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    assert peak_kib < 120 * 1024
    assert peer.stored()[0][2] == sha(path)


@pytest.fixture(scope="module")
def implicit_only(tmp_path_factory):
    """The whole node before a storescp that takes Implicit VR Little Endian only."""
    folder = tmp_path_factory.mktemp("implicit")
    (folder / "stored").mkdir()
    port = harness.free_port()
    scp = harness.Child(
        [harness.tool("storescp"), "+xi", "-od", folder / "stored", port], folder / "scp.log"
    )
    node = harness.RunningNode(folder / "node", [{"port": port, "ae_title": "STORESCP"}])
    try:
        node.stored = folder / "stored"
        yield node.start()
    finally:
        node.kill_all()
        scp.kill()


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEGLSLossless])
def test_a_pacs_that_takes_implicit_vr_only_gets_every_image_authentic(
    implicit_only, tmp_path, syntax
):
    ds = harness.ct(generate_uid(), size=256)
    source = harness.save(ds, tmp_path / "source.dcm")
    if syntax == JPEGLSLossless:
        ds = pydicom.dcmread(source)
        ds.compress(syntax, generate_instance_uid=False)
        ds.save_as(source)
    options = ("-xt",) if syntax == JPEGLSLossless else ("-xe",)
    sent = harness.storescu(implicit_only, source, options=options)
    assert sent.returncode == 0, sent.stderr
    assert {job.state for job in implicit_only.settled()} == {"delivered"}
    [stored] = implicit_only.stored.glob(f"*{ds.SOPInstanceUID}")
    assert pydicom.dcmread(stored).file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    done = implicit_only.cli("verify", stored, "--json")
    assert done.returncode == 0, done.stdout
    line = json.loads(done.stdout)
    assert (line["verdict"], line["header"]["changed"]) == ("authentic", [])
    assert line["frames"][0]["integrity"] == "valid"
    assert line["frames"][0]["robust"]["decoded"]
