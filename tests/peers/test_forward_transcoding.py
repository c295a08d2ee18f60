"""A PACS that does not take an instance as it is coded."""

import contextlib
import json
import threading

import harness
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless, generate_uid
from spooled import CT, put, settled

from dicom_node.dimse import encode_file_meta
from dicom_node.errors import SpoolFull
from dicom_node.forward import run_forwarder
from dicom_node.transcoding import Transcoder

pytestmark = pytest.mark.peer


def recoded(path, copy):
    """Write a copy in Implicit VR Little Endian and return it."""
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    ds.save_as(copy, implicit_vr=True, little_endian=True, enforce_file_format=True)
    return copy


@contextlib.contextmanager
def forwarding(node, transcode):
    """Forward to the PACS in a thread of ours, with this way of recoding."""
    stop = threading.Event()
    forwarder = threading.Thread(target=run_forwarder, args=(node.config, "pacs", stop, transcode))
    forwarder.start()
    try:
        yield
    finally:
        stop.set()
        forwarder.join()


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


def test_a_refused_syntax_is_transcoded_only_then(node, pacs, make_ct, wait_for):
    peer = pacs("native")
    one = node([{"port": peer.port}])
    explicit, implicit = make_ct(), make_ct(syntax=ImplicitVRLittleEndian)
    uids = [put(one, explicit), put(one, implicit)]
    asked, copies = [], []

    def transcode(path, copy, accepted, _still_at_it):
        asked.append(accepted)
        copies.append(recoded(path, copy))

    with forwarding(one, transcode):
        wait_for(lambda: settled(one))
    assert asked == [(str(ImplicitVRLittleEndian),)]
    assert [(uid, syntax) for uid, syntax, _ in peer.stored()] == [
        (uid, str(ImplicitVRLittleEndian)) for uid in uids
    ]
    [copy] = copies
    assert copy.is_relative_to(one.config.spool.directory / "incoming"), "swept if we had died"
    assert not copy.parent.exists()
    assert {d.state for d in one.deliveries()} == {"delivered"}
    with one.spool() as spool:
        told = {row.sop_instance_uid: row for row in spool.outbox() if row.kind == "delivered"}
    assert {row.delivered_syntax_uid for row in told.values()} == {str(ImplicitVRLittleEndian)}
    assert told[uids[0]].transfer_syntax_uid == str(ExplicitVRLittleEndian)


def test_a_copy_that_finds_no_room_is_made_later_and_its_instance_not_held(
    node, pacs, make_ct, wait_for
):
    peer = pacs("native")
    one = node([{"port": peer.port}])
    put(one, make_ct())
    asked = []

    def transcode(path, copy, _accepted, _still_at_it):
        asked.append(path)
        if len(asked) == 1:
            raise SpoolFull("no space left for the copy")
        recoded(path, copy)

    with forwarding(one, transcode):
        [delivery] = wait_for(lambda: settled(one))
    assert (delivery.state, delivery.attempts) == ("delivered", 2)


def test_a_copy_of_another_instance_is_never_sent_in_the_place_of_one(
    node, pacs, make_ct, wait_for
):
    peer = pacs("native")
    one = node([{"port": peer.port}])
    uid, other = put(one, make_ct()), make_ct()
    asked = []

    def transcode(path, copy, _accepted, _still_at_it):
        asked.append(path)
        recoded(other if len(asked) == 1 else path, copy)

    with forwarding(one, transcode):
        [delivery] = wait_for(lambda: settled(one))
    assert (delivery.state, delivery.attempts) == ("delivered", 2)
    assert [stored for stored, _, _ in peer.stored()] == [uid]


@pytest.mark.parametrize("coded", [False, True])
def test_a_data_set_that_names_another_uid_goes_under_the_one_it_came_with(
    node, pacs, make_ct, wait_for, coded, tmp_path
):
    peer = pacs("native")
    one = node([{"port": peer.port}])
    path = make_ct()
    ds = pydicom.dcmread(path)
    if coded:
        ds.compress(JPEGLSLossless, generate_instance_uid=False)
    inside, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID, "1.2.3.9"
    odd = tmp_path / "odd.dcm"
    pydicom.dcmwrite(odd, ds, enforce_file_format=False)
    assert put(one, odd) == "1.2.3.9"
    with Transcoder(1 << 24) as transcode, forwarding(one, transcode):
        [delivery] = wait_for(lambda: settled(one))
    assert (delivery.state, delivery.attempts) == ("delivered", 1)
    [(uid, syntax, _)] = peer.stored()
    assert (uid, syntax) == ("1.2.3.9", str(ImplicitVRLittleEndian))
    assert inside != uid


def test_two_forwarders_of_one_destination_do_not_share_a_copy(node, pacs, make_ct, wait_for):
    peer = pacs("native")
    one = node([{"port": peer.port}])
    uids = {put(one, make_ct()), put(one, make_ct())}
    copies, both = [], threading.Barrier(2, timeout=30)

    def transcode(path, copy, _accepted, _still_at_it):
        copies.append(recoded(path, copy))
        both.wait()

    with forwarding(one, transcode), forwarding(one, transcode):
        wait_for(lambda: settled(one))
    assert len({copy.parent.parent for copy in copies}) == 2, "a folder of each process's own"
    assert {stored for stored, _, _ in peer.stored()} == uids


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
