"""The receiver against storescu, echoscu and pynetdicom's own SCU."""

import hashlib
import os
import signal
import socket
import struct
import subprocess
import time
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE, _config

from dicom_node.dimse import StoreAssociation, StoreRequest, encode_file_meta, read_file_meta

pytestmark = pytest.mark.peer

DATA = b"\x08\x00\x18\x00\x08\x00\x00\x00../../x\0"
CT = "1.2.840.10008.5.1.4.1.1.2"
SYNTAXES = {
    "implicit": "1.2.840.10008.1.2", "explicit": "1.2.840.10008.1.2.1",
    "deflated": "1.2.840.10008.1.2.1.99", "big endian": "1.2.840.10008.1.2.2",
    "RLE": "1.2.840.10008.1.2.5", "JPEG baseline": "1.2.840.10008.1.2.4.50",
    "JPEG extended": "1.2.840.10008.1.2.4.51", "JPEG lossless": "1.2.840.10008.1.2.4.57",
    "JPEG lossless SV1": "1.2.840.10008.1.2.4.70", "JPEG-LS": "1.2.840.10008.1.2.4.80",
    "JPEG-LS near": "1.2.840.10008.1.2.4.81", "JPEG 2000": "1.2.840.10008.1.2.4.90",
    "JPEG 2000 lossy": "1.2.840.10008.1.2.4.91", "HTJ2K": "1.2.840.10008.1.2.4.201",
    "HTJ2K RPCL": "1.2.840.10008.1.2.4.202", "HTJ2K lossy": "1.2.840.10008.1.2.4.203",
    "JPEG XL": "1.2.840.10008.1.2.4.110", "JPEG XL lossy": "1.2.840.10008.1.2.4.112",
    "MPEG-2": "1.2.840.10008.1.2.4.100", "MPEG-4": "1.2.840.10008.1.2.4.102",
    "HEVC": "1.2.840.10008.1.2.4.107", "retired JPEG": "1.2.840.10008.1.2.4.53",
}  # fmt: skip


def data_set(path):
    with path.open("rb") as file:
        file.seek(read_file_meta(file).data_set_offset)
        return file.read()


def associate(port, contexts, calling_ae="MODALITY"):
    ae = AE(calling_ae)
    for sop_class, syntax in contexts:
        ae.add_requested_context(sop_class, syntax)
    return ae.associate("127.0.0.1", port)


@pytest.fixture
def raw_sending(monkeypatch):
    """Let pynetdicom send the data set bytes of a file as they are."""
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", True)


def test_echoscu_is_answered(node, dcmtk):
    one = node()
    one.receive()
    assert dcmtk("echoscu", "-aec", one.ae_title, "127.0.0.1", one.port).returncode == 0


def test_storescu_succeeds_only_when_the_instance_is_spooled(node, dcmtk, make_ct):
    one = node()
    one.receive()
    path = make_ct(size=512)
    result = dcmtk("storescu", "-aet", "SCANNER1", "127.0.0.1", one.port, path)
    assert result.returncode == 0, result.stderr
    [job] = one.jobs()
    received = pydicom.dcmread(job.path)
    assert received.PixelData == pydicom.dcmread(path).PixelData
    assert received.file_meta.SourceApplicationEntityTitle == "SCANNER1"
    assert received.file_meta.TransferSyntaxUID == job.transfer_syntax_uid
    assert received.file_meta.MediaStorageSOPInstanceUID == received.SOPInstanceUID
    assert (job.calling_ae, job.called_ae) == ("SCANNER1", one.ae_title)


def test_every_transfer_syntax_is_received_byte_for_byte(node, tmp_path, raw_sending):
    one = node()
    one.receive()
    assoc = associate(one.port, [(CT, syntax) for syntax in SYNTAXES.values()])
    assert len(assoc.accepted_contexts) == len(SYNTAXES)
    sent = {}
    for number, syntax in enumerate(SYNTAXES.values()):
        uid = f"1.2.3.{number}"
        content = os.urandom(20000 + 2 * number)
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(encode_file_meta(CT, uid, syntax, "") + content)
        assert assoc.send_c_store(path).Status == 0x0000
        sent[uid] = (syntax, content)
    assoc.release()
    jobs = one.jobs()
    got = {job.sop_instance_uid: (job.transfer_syntax_uid, data_set(job.path)) for job in jobs}
    assert got == sent
    digests = [hashlib.blake2b(data_set(job.path), digest_size=32).digest() for job in jobs]
    assert [job.digest for job in jobs] == digests


def test_storescu_sends_real_ct_in_each_transfer_syntax_it_knows(node, dcmtk, shared):
    one = node()
    one.receive()
    options = {
        "1.2.840.10008.1.2.4.50": "-xy", "1.2.840.10008.1.2.4.51": "-xx",
        "1.2.840.10008.1.2.4.70": "-xs", "1.2.840.10008.1.2.4.80": "-xt",
        "1.2.840.10008.1.2.4.81": "-xu", "1.2.840.10008.1.2.4.90": "-xv",
        "1.2.840.10008.1.2.4.91": "-xw", "1.2.840.10008.1.2.5": "-xr",
        "1.2.840.10008.1.2.1.99": "-xd", "1.2.840.10008.1.2.2": "-xb",
        "1.2.840.10008.1.2.1": "-xe", "1.2.840.10008.1.2": "-xi",
    }  # fmt: skip
    folder = shared / "dicom" / "ct_transfer_syntaxes"
    seen = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in sorted(folder.glob("*.dcm")):
            syntax = pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID
            if syntax not in options:
                continue
            result = dcmtk("storescu", "-R", options[syntax], "127.0.0.1", one.port, path)
            if "missing SOP class" in result.stderr:
                continue  # malformed: DCMTK cannot read it, so nothing was sent
            assert result.returncode == 0, result.stderr
            job = one.jobs()[-1]
            assert job.transfer_syntax_uid == syntax
            assert pydicom.dcmread(job.path).PixelData == pydicom.dcmread(path).PixelData
            seen.add(syntax)
    assert len(seen) >= 8, seen


def test_a_private_storage_class_is_received(node, dcmtk, make_ct, raw_sending):
    one = node()
    one.receive()
    path = make_ct(sop_class="1.3.6.1.4.1.9999.1.1")
    assoc = associate(one.port, [("1.3.6.1.4.1.9999.1.1", pydicom.uid.ExplicitVRLittleEndian)])
    assert assoc.send_c_store(path).Status == 0x0000
    assoc.release()
    [job] = one.jobs()
    assert job.sop_class_uid == "1.3.6.1.4.1.9999.1.1"
    assert data_set(job.path) == data_set(path)


def test_a_private_transfer_syntax_is_received(node, tmp_path):
    one = node()
    one.receive()
    private = "1.3.6.1.4.1.9999.2.2"
    path = tmp_path / "private.dcm"
    path.write_bytes(encode_file_meta(CT, "1.2.3", private, "") + DATA)
    assoc = StoreAssociation.open(
        "node", ("127.0.0.1", one.port), called_ae="ANY", calling_ae="US", pairs=[(CT, private)]
    )
    with path.open("rb") as file:
        assert assoc.store(file, read_file_meta(file)).status == 0x0000
    assoc.release()
    [job] = one.jobs()
    assert (job.transfer_syntax_uid, data_set(job.path)) == (private, DATA)


def test_a_uid_that_climbs_folders_stays_in_the_spool(node, tmp_path, raw_sending):
    one = node()
    one.receive()
    path = tmp_path / "evil.dcm"
    path.write_bytes(encode_file_meta(CT, "../../x", ImplicitVRLittleEndian, "") + DATA)
    assoc = associate(one.port, [(CT, ImplicitVRLittleEndian)])
    assert assoc.send_c_store(path).Status == 0x0000
    assoc.release()
    [job] = one.jobs()
    assert job.sop_instance_uid == "../../x"
    assert job.path.resolve().is_relative_to(one.config.spool.directory.resolve())
    assert data_set(job.path) == DATA


def test_a_truncated_data_set_is_kept_as_it_came(node, make_ct, tmp_path, raw_sending):
    one = node()
    one.receive()
    whole = make_ct(size=256).read_bytes()
    path = tmp_path / "cut.dcm"
    path.write_bytes(whole[:-50001])
    assoc = associate(one.port, [(CT, pydicom.uid.ExplicitVRLittleEndian)])
    assert assoc.send_c_store(path).Status == 0x0000
    assoc.release()
    [job] = one.jobs()
    assert data_set(job.path) == data_set(path)


def test_the_same_instance_twice_is_one_job(node, dcmtk, make_ct):
    one = node(marking=True)
    one.receive()
    path = make_ct()
    for _ in range(2):
        assert dcmtk("storescu", "127.0.0.1", one.port, path).returncode == 0
    [job] = one.jobs()
    assert job.coalesced == 1
    assert len(one.files()) == 1


def test_other_content_under_the_same_uid_is_a_job_of_its_own_and_is_reported(node, dcmtk, make_ct):
    one = node(marking=True)
    child = one.receive()
    first, second = make_ct("1.2.3.4.5"), make_ct("1.2.3.4.5")
    for path in (first, second):
        assert dcmtk("storescu", "127.0.0.1", one.port, path).returncode == 0
    jobs = one.jobs()
    assert [job.conflicts_with for job in jobs] == [None, jobs[0].id]
    assert [pydicom.dcmread(job.path).PixelData for job in jobs] == [
        pydicom.dcmread(path).PixelData for path in (first, second)
    ]
    assert "other content under a known SOP Instance UID" in child.output


def test_below_min_free_associations_are_rejected_as_transient(node, dcmtk, make_ct):
    one = node(spool={"min_free_mib": 1 << 30})
    one.receive()
    result = dcmtk("storescu", "-v", "127.0.0.1", one.port, make_ct())
    assert result.returncode != 0
    assert "Rejected Transient" in result.stderr
    assert "Temporary Congestion" in result.stderr
    assert one.jobs() == []


def test_a_backlog_that_fills_up_inside_an_association_is_answered_a700(node, make_ct):
    one = node(marking=True, spool={"max_backlog": 2})
    one.receive()
    assoc = associate(one.port, [(CT, pydicom.uid.ExplicitVRLittleEndian)])
    answers = [assoc.send_c_store(make_ct()) for _ in range(4)]
    assoc.release()
    assert [answer.Status for answer in answers] == [0x0000, 0x0000, 0xA700, 0xA700]
    assert "max_backlog" in answers[2].ErrorComment
    assert len(one.jobs()) == len(one.files()) == 2


def begin_transfer(one, wait_for):
    """Return the socket of an association with half a data set sent, once it lies in the spool."""
    assoc = associate(one.port, [(CT, pydicom.uid.ExplicitVRLittleEndian)])
    assert assoc.is_established
    command = StoreRequest(1, CT, "1.2.3").encode()
    raw = assoc.dul.socket.socket
    for control, data in ((3, command), (0, bytes(16000)), (0, bytes(16000))):
        raw.sendall(struct.pack(">BxLLBB", 4, len(data) + 6, len(data) + 2, 1, control) + data)
    wait_for(lambda: [path for path in one.files() if path.stat().st_size > 16000])
    return raw


def test_an_association_lost_in_mid_transfer_leaves_no_file_and_no_job(node, wait_for):
    one = node()
    one.receive()
    for _ in range(3):
        begin_transfer(one, wait_for).close()
        wait_for(lambda: not one.files())
    assert one.jobs() == []


def test_a_receiver_killed_in_mid_transfer_leaves_no_job_and_its_file_is_swept(node, wait_for):
    one = node()
    child = one.receive()
    raw = begin_transfer(one, wait_for)
    child.kill()
    raw.close()
    with one.spool() as spool:
        spool.recover()
    assert one.jobs() == one.files() == []
    one.receive()


def test_200_half_open_connections_and_a_port_scanner_do_not_stop_storescu(node, dcmtk, make_ct):
    one = node(node={"max_associations": 4})
    one.receive()
    strangers = []
    for number in range(200):
        stranger = socket.create_connection(("127.0.0.1", one.port))
        if number % 2:
            stranger.sendall(b"\x01\x00\x00\x00\x10\x00half")
        strangers.append(stranger)
    paths = [make_ct() for _ in range(20)]
    started = time.monotonic()
    result = dcmtk("storescu", "127.0.0.1", one.port, *paths)
    assert result.returncode == 0, result.stderr
    assert time.monotonic() - started < 40
    assert len(one.jobs()) == 20
    for stranger in strangers:
        stranger.close()


def test_a_pdu_of_announced_4_gib_costs_no_memory(node, dcmtk):
    one = node()
    child = one.receive()
    status = f"/proc/{child.process.pid}/status"

    def peak_kib():
        with open(status) as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))

    dcmtk("echoscu", "127.0.0.1", one.port)
    before = peak_kib()
    for kind in (1, 4, 7, 99):
        peer = socket.create_connection(("127.0.0.1", one.port))
        peer.settimeout(5)
        peer.sendall(struct.pack(">BxL", kind, 0xFFFFFFFF) + bytes(100_000))
        assert peer.recv(1) == b"\x07"
        peer.close()
    assert peak_kib() - before < 8 * 1024
    assert dcmtk("echoscu", "127.0.0.1", one.port).returncode == 0


def test_two_receivers_share_the_port(node, dcmtk, make_ct):
    one = node(node={"receivers": 2})
    one.receive()
    one.receive()
    paths = [make_ct() for _ in range(10)]
    for path in paths:
        assert dcmtk("storescu", "127.0.0.1", one.port, path).returncode == 0
    assert len(one.jobs()) == 10


def test_sigterm_lets_the_modality_finish(node, make_ct, dcmtk, wait_for):
    one = node(node={"shutdown_timeout_s": 60})
    child = one.receive()
    paths = [make_ct(size=512) for _ in range(40)]
    command = ["storescu", "127.0.0.1", str(one.port), *map(str, paths)]
    assert dcmtk("echoscu", "127.0.0.1", one.port).returncode == 0
    modality = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(one.jobs()) >= 2)
    child.process.send_signal(signal.SIGTERM)
    assert modality.wait(60) == 0
    assert child.process.wait(10) == 0
    assert len(one.jobs()) == len(paths)


def test_sigterm_ends_an_idle_association_and_the_process(node):
    one = node()
    child = one.receive()
    assoc = associate(one.port, [(CT, ImplicitVRLittleEndian)])
    assert assoc.is_established
    started = time.monotonic()
    child.process.send_signal(signal.SIGTERM)
    assert child.process.wait(15) == 0
    assert time.monotonic() - started < 12
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", one.port))


def test_a_large_instance_is_not_held_in_memory(node, tmp_path, raw_sending):
    one = node()
    child = one.receive()
    path = tmp_path / "large.dcm"
    with path.open("wb") as file:
        file.write(encode_file_meta(CT, "1.2.3", ImplicitVRLittleEndian, ""))
        chunk = np.random.default_rng(1).bytes(1 << 20)
        for _ in range(200):
            file.write(chunk)
    assoc = associate(one.port, [(CT, ImplicitVRLittleEndian)])
    assert assoc.send_c_store(path).Status == 0x0000
    assoc.release()
    # ru_maxrss would start from what this test process holds: it is inherited across fork.
    status = Path(f"/proc/{child.process.pid}/status").read_text("ascii")
    peak_kib = int(status.partition("VmHWM:")[2].split()[0])
    assert peak_kib / 1024 < 120


def test_no_log_line_names_the_patient(node, dcmtk, make_ct):
    one = node()
    one.receive()
    dcmtk("storescu", "127.0.0.1", one.port, make_ct())
    dcmtk("findscu", "-S", "-k", "0010,0010=DOE*", "127.0.0.1", one.port)
    assert "DOE" not in one.output()
    assert "P77" not in one.output()
