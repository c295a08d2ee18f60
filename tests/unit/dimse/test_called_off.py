"""A client that calls its C-GET off, or goes away, while an instance is on its way to it."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest
from harness import wait_for

from dicom_node.dimse import encode_file_meta, read_file_meta
from dicom_node.dimse.query_commands import CANCELLED, QueryRequest, QueryResponse, encode_cancel
from dicom_node.dimse.query_scp import STUDY_ROOT, SUFFIX, Cancelled, QueryRetrieveSCP
from dicom_node.dimse.query_scu import QueryAssociation

EXPLICIT, CT, GET = "1.2.840.10008.1.2.1", "1.2.840.10008.5.1.4.1.1.2", STUDY_ROOT + SUFFIX["get"]


class Sending:
    """A query/retrieve SCP that answers every C-GET with one instance."""

    def __init__(self, path, size):
        meta = encode_file_meta(CT, "1.2.3", EXPLICIT, "US")
        with path.open("wb") as file:
            file.write(meta)
            file.truncate(len(meta) + size)
        self._path = path
        self._stop = threading.Event()
        self.server = QueryRetrieveSCP(("127.0.0.1", 0), "SCP", self._answer)
        self._thread = threading.Thread(target=self.server.serve, args=(self._stop,))
        self._thread.start()

    def _answer(self, call):
        try:
            with self._path.open("rb") as file:
                call.finish(call.store(file, read_file_meta(file), timeout_s=20.0).status)
        except Cancelled:
            call.finish(CANCELLED)

    def end(self):
        self._stop.set()
        self._thread.join()
        self.server.drain(1.0)


@pytest.fixture
def sending(tmp_path):
    with contextlib.ExitStack() as stack:

        def start(size):
            one = Sending(tmp_path / "instance.dcm", size)
            stack.callback(one.end)
            return one.server

        yield start


@contextlib.contextmanager
def client(server):
    """Associate as a client that takes CT instances; yield its messages and retrieve context."""
    assoc = QueryAssociation.open(
        "scp", ("127.0.0.1", server.port), called_ae="SCP", calling_ae="CLIENT",
        sop_classes=[GET], storage=[(CT, EXPLICIT)], store_handler=lambda *_: 0x0000, timeout_s=20,
    )  # fmt: skip
    try:
        yield assoc._assoc.queries, assoc._contexts[GET, EXPLICIT], assoc
    finally:
        assoc.abort()


def ask(queries, context, message_id):
    """Send a C-GET and return the C-STORE request that comes of it."""
    queries.send(context, QueryRequest("get", message_id, GET, "").encode(), b"\0\0")
    assert queries.read(10)
    return queries.store


def read_to_the_end(queries, store):
    """Take the data set and leave the request unanswered."""
    for _ in queries._data_set(store):
        continue
    queries.store = None


def test_an_answer_that_does_not_come_does_not_hold_a_cancelled_client_up(sending):
    with client(sending(1000)) as (queries, context, _):
        unanswered = ask(queries, context, 1)
        read_to_the_end(queries, unanswered)
        started = time.monotonic()
        queries.send(context, encode_cancel(1))
        assert queries.read(10)
        took_s = time.monotonic() - started
        response = QueryResponse.decode("get", queries.inbox.popleft().elements)
        assert (response.message_id, response.status) == (1, CANCELLED)
        assert took_s < 1.0
        # The association is as good as before, and an answer that comes late is nobody's.
        queries.send_command(unanswered.context_id, unanswered.response(0xA700).encode())
        store = ask(queries, context, 2)
        read_to_the_end(queries, store)
        queries.send_command(store.context_id, store.response(0x0000).encode())
        assert queries.read(10)
        response = QueryResponse.decode("get", queries.inbox.popleft().elements)
        assert (response.message_id, response.status) == (2, 0x0000)


def test_a_client_that_answers_after_its_c_cancel_has_its_answer_counted(sending):
    with client(sending(1000)) as (queries, context, _):
        store = ask(queries, context, 1)
        read_to_the_end(queries, store)
        queries.send(context, encode_cancel(1))
        queries.send_command(store.context_id, store.response(0x0000).encode())
        assert queries.read(10)
        assert QueryResponse.decode("get", queries.inbox.popleft().elements).status == 0x0000


@pytest.mark.parametrize("how", ["cancel", "abort"])
def test_a_client_that_takes_no_more_of_an_instance_is_let_go_of(sending, how):
    server = sending(64 << 20)  # more than two socket buffers hold
    with client(server) as (queries, context, assoc):
        ask(queries, context, 1)
        time.sleep(0.3)
        assert server.associations == 1
        started = time.monotonic()
        if how == "cancel":
            queries.send(context, encode_cancel(1))
        else:
            assoc.abort()
        wait_for(lambda: not server._open, 10, "the association is still there")
        assert time.monotonic() - started < 2.0


def test_a_client_that_reads_slowly_is_let_go_of_once_it_has_called_off(sending):
    server = sending(256 << 20)
    with client(server) as (queries, context, _):
        store = ask(queries, context, 1)
        pieces = queries._data_set(store)
        next(pieces)
        queries.send(context, encode_cancel(1))
        started = time.monotonic()
        with contextlib.suppress(Exception):  # it is cut in the middle
            for _ in pieces:
                time.sleep(0.01)
        assert not store.complete
        assert time.monotonic() - started < 5.0
        wait_for(lambda: not server._open, 10, "the association is still there")


