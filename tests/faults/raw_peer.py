"""A peer made of bytes, and a Storage SCP in a thread before it."""

import contextlib
import resource
import socket
import struct
import threading
import time

from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE

from dicom_node.dimse import StorageSCP
from dicom_node.dimse.commands import encode_command

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
