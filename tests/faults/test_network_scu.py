"""What a destination can do to a forwarder's association: raw bytes answer instead of a PACS."""

import contextlib
import socket
import struct
import threading
import time
from io import BytesIO

import pytest
from raw_peer import CT, item

from dicom_node.dimse import StoreAssociation, StoreResponse, encode_file_meta, read_file_meta
from dicom_node.errors import AssociationLost, AssociationRejected, ContextRefused

pytestmark = pytest.mark.fault

IMPLICIT = "1.2.840.10008.1.2"
J2K = "1.2.840.10008.1.2.4.90"
ABORT = struct.pack(">BxLBBBB", 7, 4, 0, 0, 2, 0)
RELEASE_RQ = struct.pack(">BxL4x", 5, 4)


def accept(results=(0,), max_pdu=16384, syntax=IMPLICIT):
    """Return an A-ASSOCIATE-AC PDU (PS3.8 9.3.3) with these presentation context results."""
    items = item(0x10, b"1.2.840.10008.3.1.1.1")
    for number, result in enumerate(results):
        items += item(0x21, bytes([2 * number + 1, 0, result, 0]) + item(0x40, syntax.encode()))
    items += item(0x50, item(0x51, struct.pack(">L", max_pdu)) + item(0x52, b"1.2.3"))
    body = struct.pack(">HH", 1, 0) + b"PACS".ljust(16) + b"NODE".ljust(16) + bytes(32) + items
    return struct.pack(">BxL", 2, len(body)) + body


def answer(message_id, status=0):
    command = StoreResponse(message_id, status).encode()
    body = struct.pack(">LBB", len(command) + 2, 1, 3) + command
    return struct.pack(">BxL", 4, len(body)) + body


class Destination:
    """A listener that plays one script: a function of the peer's first connection."""

    def __init__(self, script):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(script,))
        self.thread.start()

    def _run(self, script):
        with contextlib.suppress(OSError):
            self.peer, _ = self.listener.accept()
            self.peer.settimeout(10)
            script(self)
            self.done.wait(10)

    def pdu(self):
        kind, length = struct.unpack(">BxL", self._exactly(6))
        return kind, self._exactly(length)

    def _exactly(self, count):
        data = b""
        while len(data) < count:
            more = self.peer.recv(count - len(data))
            if not more:
                raise ConnectionError("the forwarder closed")
            data += more
        return data

    def message(self):
        """Read one C-STORE request; return its PDUs' lengths and the data set."""
        lengths, data = [], b""
        while True:
            kind, body = self.pdu()
            if kind != 4:
                raise ConnectionError(f"PDU type {kind} inside a message")
            lengths.append(len(body))
            if not body[5] & 1:
                data += body[6:]
                if body[5] & 2:
                    return lengths, data

    def send(self, data):
        self.peer.sendall(data)

    def end(self):
        self.done.set()
        self.listener.close()
        with contextlib.suppress(AttributeError, OSError):
            self.peer.close()
        self.thread.join()


@pytest.fixture
def destination():
    made = []

    def make(script):
        made.append(Destination(script))
        return made[-1]

    yield make
    for one in made:
        one.end()


def connect(port, timeout_s=2.0, pairs=((CT, IMPLICIT),)):
    return StoreAssociation.open(
        "pacs",
        ("127.0.0.1", port),
        called_ae="PACS",
        calling_ae="NODE",
        pairs=pairs,
        timeout_s=timeout_s,
    )


def store(assoc, size=1000, syntax=IMPLICIT):
    file = BytesIO(encode_file_meta(CT, "1.2.3", syntax, "") + b"x" * size)
    return assoc.store(file, read_file_meta(file))


def test_instances_are_stored_one_after_another(destination):
    def script(peer):
        peer.pdu()
        peer.send(accept())
        for number in (1, 2, 3):
            peer.message()
            peer.send(answer(number, 0xB000 if number == 2 else 0))

    assoc = connect(destination(script).port)
    assert [store(assoc).status for _ in range(3)] == [0, 0xB000, 0]
    assert assoc.alive


@pytest.mark.parametrize(
    ("announced", "largest"),
    [(16384, 16384), (4096, 4096), (200, 200), (1, 128), (0, 131072), (2**32 - 1, 131072)],
)
def test_fragments_fit_what_the_peer_announced_and_memory(destination, announced, largest):
    seen = []

    def script(peer):
        peer.pdu()
        peer.send(accept(max_pdu=announced))
        for number in (1, 2):
            seen.append(peer.message())
            peer.send(answer(number))

    assoc = connect(destination(script).port)
    assert store(assoc, 300_000).status == 0
    assert store(assoc, 0).status == 0
    lengths, data = seen[0]
    assert data == b"x" * 300_000
    assert max(lengths) == largest
    assert seen[1][1] == b""


@pytest.mark.parametrize("kind", [2, 4, 7, 9])
def test_an_answer_of_announced_4_gib_is_a_lost_association(destination, kind):
    def script(peer):
        peer.pdu()
        peer.send(accept())
        peer.message()
        peer.send(struct.pack(">BxL", kind, 2**32 - 1) + bytes(1000))

    assoc = connect(destination(script).port, timeout_s=20)
    started = time.monotonic()
    with pytest.raises(AssociationLost):
        store(assoc)
    assert time.monotonic() - started < 5
    assert not assoc.alive


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (answer(7), "another message"),
        (ABORT, "aborted by the peer"),
        (b"", "connection lost"),
        (struct.pack(">BxL", 4, 10) + struct.pack(">LBB", 6, 1, 3) + b"junk", "protocol error"),
        (RELEASE_RQ, "asked for release instead"),
    ],
)
def test_any_other_reply_is_a_lost_association_with_its_reason(destination, reply, reason):
    def script(peer):
        peer.pdu()
        peer.send(accept())
        peer.message()
        peer.send(reply)
        peer.peer.shutdown(socket.SHUT_WR)

    assoc = connect(destination(script).port)
    with pytest.raises(AssociationLost, match=reason):
        store(assoc)
    assert not assoc.alive


def test_a_peer_that_never_answers_is_aborted_after_the_time_out_and_not_used_again(destination):
    kinds = []

    def script(peer):
        peer.pdu()
        peer.send(accept())
        peer.message()
        kinds.append(peer.pdu()[0])

    one = destination(script)
    assoc = connect(one.port, timeout_s=0.5)
    started = time.monotonic()
    with pytest.raises(AssociationLost, match=r"silent for 0\.5 s"):
        store(assoc)
    assert time.monotonic() - started < 3
    assert not assoc.alive
    one.thread.join(0.5)
    assert kinds == [7]


def test_a_peer_that_stops_reading_is_given_up_after_the_time_out(destination):
    def script(peer):
        peer.pdu()
        peer.send(accept())

    assoc = connect(destination(script).port, timeout_s=0.5)
    started = time.monotonic()
    with pytest.raises(AssociationLost):
        store(assoc, 64 << 20)
    assert time.monotonic() - started < 5


def test_an_abort_in_mid_transfer_is_named(destination):
    def script(peer):
        peer.pdu()
        peer.send(accept())
        peer.pdu()
        peer.send(ABORT)
        peer.peer.shutdown(socket.SHUT_RDWR)

    assoc = connect(destination(script).port)
    with pytest.raises(AssociationLost, match=r"abort|lost|reset|Broken"):
        store(assoc, 16 << 20)
    assert not assoc.alive


def test_a_release_while_idle_is_answered_and_noticed(destination):
    kinds = []

    def script(peer):
        peer.pdu()
        peer.send(accept())
        peer.message()
        peer.send(answer(1))
        peer.send(RELEASE_RQ)
        kinds.append(peer.pdu()[0])

    one = destination(script)
    assoc = connect(one.port)
    assert store(assoc).status == 0
    deadline = time.monotonic() + 5
    while assoc.alive:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    one.thread.join(0.5)
    assert kinds == [6]


def test_contexts_are_refused_one_by_one_or_all_together(destination):
    for results, refused in (((0, 4), J2K), ((3, 3), IMPLICIT)):

        def script(peer, results=results):
            peer.pdu()
            peer.send(accept(results))

        assoc = connect(destination(script).port, pairs=((CT, IMPLICIT), (CT, J2K)))
        assert assoc.proposed((CT, J2K))
        with pytest.raises(ContextRefused, match=refused):
            store(assoc, syntax=refused)
        assert assoc.accepted_syntaxes(CT) == ((IMPLICIT,) if 0 in results else ())
        assert assoc.alive is (0 in results)
        assoc.release()


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (struct.pack(">BxLBBBB", 3, 4, 0, 2, 3, 2), "Local limit exceeded"),
        (struct.pack(">BxLBBBB", 3, 4, 0, 1, 1, 7), "Called AE title not recognised"),
        (ABORT, "aborted by the peer"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "protocol error"),
        (b"", "connection lost"),
        (struct.pack(">BxL", 2, 2**32 - 1), "protocol error"),
    ],
)
def test_an_association_that_is_not_accepted_says_why(destination, reply, reason):
    def script(peer):
        peer.pdu()
        peer.send(reply)
        peer.peer.shutdown(socket.SHUT_WR)

    with pytest.raises(AssociationRejected, match=reason):
        connect(destination(script).port)


def test_a_request_that_is_never_answered_times_out(destination):
    started = time.monotonic()
    with pytest.raises(AssociationRejected, match="no answer"):
        connect(destination(lambda peer: peer.pdu()).port, timeout_s=0.5)
    assert time.monotonic() - started < 4


def test_nobody_there_is_said_so():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(AssociationRejected, match=f"port {port}"):
        connect(port)


def test_an_unknown_host_is_said_so():
    with pytest.raises(AssociationRejected, match="no-such-host"):
        StoreAssociation.open(
            "pacs",
            ("no-such-host.invalid", 104),
            called_ae="PACS",
            calling_ae="NODE",
            pairs=[(CT, IMPLICIT)],
        )


def test_a_transfer_can_be_cut_from_another_thread(destination):
    def script(peer):
        peer.pdu()
        peer.send(accept())

    assoc = connect(destination(script).port, timeout_s=30)
    threading.Timer(0.3, assoc.cut).start()
    started = time.monotonic()
    with pytest.raises(AssociationLost):
        store(assoc)
    assert time.monotonic() - started < 5


def test_calling_a_transfer_off_inside_a_message_ends_the_association(destination):
    def script(peer):
        peer.pdu()
        peer.send(accept())
        peer.message()

    assoc = connect(destination(script).port)
    file = BytesIO(encode_file_meta(CT, "1.2.3", IMPLICIT, "") + bytes(2 << 20))

    def stop():
        raise KeyError("called off")

    with pytest.raises(KeyError):
        assoc.store(file, read_file_meta(file), stop)
    assert not assoc.alive
