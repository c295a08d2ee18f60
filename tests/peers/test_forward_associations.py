"""The forwarder's associations: used again, lost, cut and ended without losing an instance."""

import os
import signal
import threading
import time
from io import BytesIO
from pathlib import Path

import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from spooled import CT, put, settled, sha

from dicom_node.dimse import NeverHeard, StoreAssociation, encode_file_meta, read_file_meta
from dicom_node.errors import AssociationLost
from dicom_node.forward import run_forwarder

pytestmark = pytest.mark.peer


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
