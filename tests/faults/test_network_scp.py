"""What peers can do to the listener, and what it must never do to them."""

import contextlib
import gc
import logging
import os
import resource
import socket
import ssl
import struct
import subprocess
import threading
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

from dicom_node.dimse import LOCAL_LIMIT_EXCEEDED, TEMPORARY_CONGESTION, StorageSCP
from dicom_node.dimse.commands import encode_command
from dicom_node.errors import SpoolError, SpoolFull

pytestmark = pytest.mark.fault

CT = "1.2.840.10008.5.1.4.1.1.2"
VERIFICATION = "1.2.840.10008.1.1"
ACCEPT, REJECT, P_DATA, ABORT = 2, 3, 4, 7
PEERS = []


@contextlib.contextmanager
def serving(handler=None, **options):
    received = []

    def keep(incoming, data_set):
        received.append((incoming, b"".join(bytes(fragment) for fragment in data_set)))
        return 0x0000

    options = {"silence_s": 5.0, "artim_s": 2.0} | options
    server = StorageSCP(("127.0.0.1", 0), "NODE", handler or keep, **options)
    server.received = received
    stop = threading.Event()
    thread = threading.Thread(target=server.serve, args=(stop,))
    thread.start()
    try:
        yield server
    finally:
        while PEERS:
            PEERS.pop().close()
        stop.set()
        thread.join()
        server.drain(2.0)


def wait_for(condition, timeout_s=5.0, message="it did not happen"):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, message
        time.sleep(0.01)


def echo(port):
    ae = AE("PEER")
    ae.add_requested_context(VERIFICATION)
    assoc = ae.associate("127.0.0.1", port)
    assert assoc.is_established
    assert assoc.send_c_echo().Status == 0x0000
    assoc.release()


def item(kind, body):
    return struct.pack(">BxH", kind, len(body)) + body


def associate_rq(contexts, padding=0):
    """Return an A-ASSOCIATE-RQ PDU for (abstract, transfer syntax) pairs; PS3.8 9.3.2."""
    items = item(0x10, b"1.2.840.10008.3.1.1.1")
    for number, (abstract, transfer) in enumerate(contexts):
        names = item(0x30, abstract.encode()) + item(0x40, transfer.encode())
        items += item(0x20, bytes([2 * number + 1, 0, 0, 0]) + names)
    items += item(0x50, item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3"))
    body = struct.pack(">HH", 1, 0) + b"NODE".ljust(16) + b"RAW".ljust(16) + bytes(32) + items
    return struct.pack(">BxL", 1, len(body) + padding) + body


class Raw:
    """A peer made of bytes."""

    def __init__(self, port, contexts=((CT, ExplicitVRLittleEndian),)):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        PEERS.append(self)
        if contexts:
            self.socket.sendall(associate_rq(contexts))
            assert self.read()[0] == ACCEPT

    def read(self):
        """Return (type, body) of the next PDU, (None, b"") at the end of the connection."""
        try:
            header = self.socket.recv(6, socket.MSG_WAITALL)
        except ConnectionResetError:
            return None, b""
        if len(header) < 6:
            return None, b""
        kind, length = struct.unpack(">BxL", header)
        return kind, self.socket.recv(length, socket.MSG_WAITALL) if length else b""

    def send_pdv(self, control, data, context_id=1):
        body = struct.pack(">LBB", len(data) + 2, context_id, control) + data
        self.socket.sendall(struct.pack(">BxL", P_DATA, len(body)) + body)

    def status(self):
        kind, body = self.read()
        assert kind == P_DATA
        ds = {}
        position = 6
        while position < len(body):
            _, element, length = struct.unpack_from("<HHL", body, position)
            ds[element] = body[position + 8 : position + 8 + length]
            position += 8 + length
        return struct.unpack("<H", ds[0x0900])[0], ds.get(0x0902, b"").decode()

    def close(self):
        self.socket.close()


def store_command(message_id=1, sop_class=CT, sop_instance="1.2.3", data_set_type=1):
    elements = {0x0100: b"\1\0", 0x0700: b"\0\0", 0x0800: struct.pack("<H", data_set_type)}
    if message_id is not None:
        elements[0x0110] = struct.pack("<H", message_id)
    for element, value in ((0x0002, sop_class), (0x1000, sop_instance)):
        if value is not None:
            encoded = value if isinstance(value, bytes) else value.encode()
            elements[element] = encoded + b"\0" * (len(encoded) % 2)
    return encode_command(elements)


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# Lengths and garbage


@pytest.mark.parametrize("associated", [False, True])
@pytest.mark.parametrize("kind", [1, 2, 3, 4, 5, 6, 7, 8, 0x47])
def test_a_pdu_that_announces_4_gib_is_refused_before_memory_is_taken(kind, associated):
    with serving() as server:
        peer = Raw(server.port, ((CT, ExplicitVRLittleEndian),) if associated else ())
        before = peak_mib()
        peer.socket.sendall(struct.pack(">BxL", kind, 0xFFFFFFFF) + b"x" * 4096)
        started = time.monotonic()
        assert peer.read()[0] == ABORT
        assert peer.read()[0] is None
        assert time.monotonic() - started < 4
        assert peak_mib() - before < 16
        peer.close()
        wait_for(lambda: server.associations == 0)
        echo(server.port)


def test_an_association_request_over_the_cap_is_refused():
    with serving() as server:
        peer = Raw(server.port, ())
        peer.socket.sendall(associate_rq([(CT, ExplicitVRLittleEndian)], padding=1 << 20))
        assert peer.read()[0] == ABORT


def test_128_contexts_with_long_names_are_accepted():
    contexts = [(f"1.2.3.{number}".ljust(64, "7"), ExplicitVRLittleEndian) for number in range(128)]
    with serving() as server:
        Raw(server.port, contexts).close()


def test_garbage_instead_of_dicom_ends_that_connection_only():
    with serving() as server:
        peer = Raw(server.port, ())
        peer.socket.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert peer.read()[0] == ABORT
        echo(server.port)


@pytest.mark.parametrize(
    "fragments",
    [
        [(3, b"\0\0\0\0\xff\xff\xff\xffgarbage")],
        [(3, b"short")],
        [(2, b"a data set without a command")],
        [(3, store_command()), (3, store_command())],
        [(3, store_command(message_id=None))],
        [(1, b"x" * 16000)] * 8,
        [(3, encode_command({0x0100: b"\x77\x77", 0x0800: b"\1\1"}))],
    ],
)
def test_a_message_that_is_none_is_aborted(fragments):
    with serving() as server:
        peer = Raw(server.port)
        with contextlib.suppress(ConnectionError):
            for control, data in fragments:
                peer.send_pdv(control, data)
        assert peer.read()[0] in (ABORT, None)
        wait_for(lambda: server.associations == 0)
        assert server.received == []
        echo(server.port)


def test_a_presentation_context_that_was_not_accepted_is_aborted():
    with serving() as server:
        peer = Raw(server.port)
        peer.send_pdv(3, store_command(), context_id=99)
        assert peer.read()[0] == ABORT


# Commands


@pytest.mark.parametrize("sop_instance", [None, b"", b"1" * 66, b"1.\xe9"])
def test_a_store_without_usable_uid_is_answered_c000_and_the_next_is_stored(sop_instance):
    with serving() as server:
        peer = Raw(server.port)
        peer.send_pdv(3, store_command(sop_instance=sop_instance))
        peer.send_pdv(2, b"data")
        status, comment = peer.status()
        assert status == 0xC000
        assert "SOP Instance UID" in comment
        peer.send_pdv(3, store_command(2))
        peer.send_pdv(2, b"data")
        assert peer.status()[0] == 0x0000
        assert [data for _, data in server.received] == [b"data"]


def test_a_store_without_a_sop_class_is_stored_under_its_context_s():
    with serving() as server:
        peer = Raw(server.port)
        peer.send_pdv(3, store_command(sop_class=None))
        peer.send_pdv(2, b"data")
        assert peer.status()[0] == 0x0000
        [(incoming, _)] = server.received
        assert incoming.sop_class_uid == CT


def test_a_store_without_a_data_set_is_answered_c000():
    with serving() as server:
        peer = Raw(server.port)
        peer.send_pdv(3, store_command(data_set_type=0x0101))
        assert peer.status()[0] == 0xC000
        assert server.received == []


def test_command_and_data_set_may_share_one_pdu_and_fragments_may_be_empty():
    with serving() as server:
        peer = Raw(server.port)
        command = store_command()
        fragments = [(1, command[:20]), (3, command[20:]), (0, b"ab"), (0, b""), (2, b"cd")]
        body = b"".join(
            struct.pack(">LBB", len(data) + 2, 1, control) + data for control, data in fragments
        )
        peer.socket.sendall(struct.pack(">BxL", P_DATA, len(body)) + body)
        assert peer.status()[0] == 0x0000
        [(_, data)] = server.received
        assert data == b"abcd"


# Refusals


@pytest.mark.parametrize("consume", [0, 1, None])
def test_a_full_spool_answers_a700_with_its_reason_and_keeps_the_association(consume):
    def full(_incoming, data_set):
        if consume is None:
            for _ in data_set:
                pass
        elif consume:
            next(iter(data_set))
        raise SpoolFull("12 MiB free, spool.min_free_mib = 2048")

    with serving(full) as server:
        peer = Raw(server.port)
        for number in (1, 2):
            peer.send_pdv(3, store_command(number))
            for _ in range(3):
                peer.send_pdv(0, b"x" * 10000)
            peer.send_pdv(2, b"x")
            assert peer.status() == (0xA700, "12 MiB free, spool.min_free_mib = 2048")


def test_a_fault_of_ours_is_never_answered_with_success():
    def broken(_incoming, _data_set):
        raise RuntimeError("DOE^JOHN")

    with serving(broken) as server, structlog.testing.capture_logs() as logs:
        peer = Raw(server.port)
        peer.send_pdv(3, store_command())
        peer.send_pdv(2, b"data")
        assert peer.read()[0] == ABORT
        wait_for(lambda: server.associations == 0)
    assert "RuntimeError" in str(logs)
    assert "DOE" not in str(logs)


def test_no_room_rejects_new_associations_as_transient():
    with serving(refuse=lambda: TEMPORARY_CONGESTION) as server:
        peer = Raw(server.port, ())
        peer.socket.sendall(associate_rq([(CT, ExplicitVRLittleEndian)]))
        kind, body = peer.read()
        assert (kind, tuple(body[1:])) == (REJECT, TEMPORARY_CONGESTION)


def test_the_association_limit_holds_and_recovers_from_aborted_and_lost_associations():
    with serving(max_associations=3) as server:
        peers = [Raw(server.port) for _ in range(3)]
        late = Raw(server.port, ())
        late.socket.sendall(associate_rq([(CT, ExplicitVRLittleEndian)]))
        kind, body = late.read()
        assert (kind, tuple(body[1:])) == (REJECT, LOCAL_LIMIT_EXCEEDED)
        for _ in range(5):
            peers[0].socket.sendall(struct.pack(">BxLBBBB", ABORT, 4, 0, 0, 0, 0))
            reset = struct.pack("ii", 1, 0)
            peers[1].socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            peers[1].close()
            peers[2].send_pdv(3, store_command())
            peers[2].send_pdv(0, b"cut")
            peers[2].close()
            wait_for(lambda: server.associations == 0)
            peers = [Raw(server.port) for _ in range(3)]
        assert server.associations == 3
        assert server.received == []


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
