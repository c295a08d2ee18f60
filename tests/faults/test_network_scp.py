"""What a message of a peer can be, and what the listener must never answer to it."""

import contextlib
import socket
import struct
import time

import pytest
import structlog
from pydicom.uid import ExplicitVRLittleEndian
from raw_peer import (
    ABORT,
    CT,
    P_DATA,
    REJECT,
    Raw,
    associate_rq,
    echo,
    peak_mib,
    serving,
    store_command,
    wait_for,
)

from dicom_node.dimse import LOCAL_LIMIT_EXCEEDED, TEMPORARY_CONGESTION
from dicom_node.dimse.commands import encode_command
from dicom_node.errors import SpoolFull

pytestmark = pytest.mark.fault


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
