"""What connections of peers can do to the listener: none stops it, costs much, or is told of."""

import contextlib
import gc
import logging
import os
import resource
import socket
import ssl
import subprocess
import time
from io import BytesIO

import pytest
import structlog
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from raw_peer import (
    ABORT,
    CT,
    VERIFICATION,
    Raw,
    associate_rq,
    echo,
    peak_mib,
    serving,
    store_command,
    wait_for,
)

from dicom_node.errors import SpoolError

pytestmark = pytest.mark.fault


# Connections that are none


def test_200_half_open_connections_do_not_stop_a_modality():
    with serving(max_associations=2, artim_s=30.0) as server:
        strangers = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
        started = time.monotonic()
        echo(server.port)
        assert time.monotonic() - started < 15.0
        for stranger in strangers:
            stranger.close()


def test_a_silent_connection_is_closed_after_the_artim_time():
    with serving(artim_s=0.5) as server:
        peer = Raw(server.port, ())
        started = time.monotonic()
        assert peer.read()[0] is None
        assert 0.3 < time.monotonic() - started < 8


def test_a_request_that_drips_in_byte_by_byte_is_closed_after_the_artim_time():
    with serving(artim_s=0.8) as server:
        peer = Raw(server.port, ())
        started = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for byte in associate_rq([(CT, ExplicitVRLittleEndian)]):
                peer.socket.sendall(bytes([byte]))
                time.sleep(0.05)
        assert time.monotonic() - started < 8
        assert server.associations == 0


def test_a_peer_silent_inside_an_association_is_aborted():
    with serving(silence_s=0.5) as server:
        peer = Raw(server.port)
        assert peer.read()[0] == ABORT
        wait_for(lambda: server.associations == 0)


def test_a_peer_silent_inside_a_data_set_leaves_nothing_behind():
    taken, gone = [], []

    def handler(_incoming, data_set):
        try:
            taken.extend(len(fragment) for fragment in data_set)
        finally:
            gone.append(True)
        return 0x0000

    with serving(handler, silence_s=0.5) as server:
        peer = Raw(server.port)
        peer.send_pdv(3, store_command())
        peer.send_pdv(0, b"x" * 1000)
        assert peer.read()[0] in (ABORT, None)
        wait_for(lambda: gone and server.associations == 0)


def certificate(folder):
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=x",
         "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def test_an_idle_connection_does_not_block_a_tls_listener(tmp_path):
    with serving(ssl_context=certificate(tmp_path), artim_s=20.0) as server:
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        ae = AE("PEER")
        ae.add_requested_context(VERIFICATION)
        started = time.monotonic()
        assoc = ae.associate("127.0.0.1", server.port, tls_args=(client, "x"))
        assert assoc.is_established
        assert assoc.send_c_echo().Status == 0x0000
        assoc.release()
        assert time.monotonic() - started < 10
        for stranger in idle:
            stranger.close()


def test_file_descriptors_beyond_1024_work():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2400:
        pytest.skip(f"this machine allows only {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2400), hard))
    blockers = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        with serving() as server:
            peer = Raw(server.port)
            assert peer.socket.fileno() > 1024
            peer.send_pdv(3, store_command())
            peer.send_pdv(2, b"data")
            assert peer.status()[0] == 0x0000
    finally:
        for blocker in blockers:
            os.close(blocker)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Cost and secrecy


def test_an_instance_takes_no_more_memory_than_its_fragments():
    seen = []

    def handler(_incoming, data_set):
        seen.append(sum(map(len, data_set)))
        return 0x0000

    with serving(handler, max_pdu=131072) as server:
        peer = Raw(server.port)
        peer.send_pdv(3, store_command())
        peer.send_pdv(0, b"x" * 100)
        gc.collect()
        before = peak_mib()
        chunk = bytes(131000)
        for _ in range(1000):
            peer.send_pdv(0, chunk)
        peer.send_pdv(2, b"")
        assert peer.status()[0] == 0x0000
        assert seen == [100 + 131000 * 1000]
        assert peak_mib() - before < 24


def test_nothing_of_a_patient_reaches_a_log(caplog):
    caplog.set_level(logging.DEBUG)
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("pynetdicom"):
            logging.getLogger(name).setLevel(logging.DEBUG)

    def refuse(_incoming, _data_set):
        raise SpoolError("the disk is gone")

    ds = Dataset()
    ds.PatientName, ds.PatientID = "DOE^JOHN", "SECRET77"
    ds.SOPClassUID, ds.SOPInstanceUID = CT, "1.2.3"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    with structlog.testing.capture_logs() as logs, serving(refuse) as server:
        ae = AE("PEER")
        ae.add_requested_context(CT, ExplicitVRLittleEndian)
        ae.add_requested_context(VERIFICATION)
        assoc = ae.associate("127.0.0.1", server.port)
        assert assoc.send_c_store(ds).Status == 0xA700
        # A message our side cannot handle, with an identifier.
        find = C_STORE()
        find.MessageID, find.Priority = 5, 0
        find.AffectedSOPClassUID, find.AffectedSOPInstanceUID = CT, "1.2.4"
        find.DataSet = BytesIO(encode(ds, False, True))
        message = C_STORE_RQ()
        message.primitive_to_message(find)
        message.command_set.CommandField = 0x0020
        peer = Raw(server.port)
        peer.send_pdv(3, encode(message.command_set, True, True))
        peer.send_pdv(2, encode(ds, False, True))
        assert peer.read()[0] in (ABORT, None)
        assoc.release()
    text = caplog.text + str(logs)
    assert "DOE" not in text
    assert "SECRET77" not in text
    assert "the disk is gone" in text
