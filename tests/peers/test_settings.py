"""Settings of the network: what a peer sees of each.

Those that have a test of their own elsewhere are not here; ``[watermark]`` is in
tests/unit/cli/test_watermark_settings.py.
"""

import signal
import struct
import time
from pathlib import Path

import auditors
import pytest
import verifying
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage, Verification
from spooled import put
from verify_faults import checking_workers

from dicom_node.config import parse
from dicom_node.dimse import StoreRequest

pytestmark = pytest.mark.peer


def associate(port):
    ae = AE("MODALITY")
    ae.add_requested_context(Verification)
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    return ae.associate("127.0.0.1", port)


def begin_store(assoc, data_bytes):
    """Send a C-STORE request and the beginning of its data set, in one PDU."""
    [context] = [c for c in assoc.accepted_contexts if c.abstract_syntax == CTImageStorage]
    for control, data in ((3, StoreRequest(1, CTImageStorage, "1.2.3").encode()),
                          (0, bytes(data_bytes))):  # fmt: skip
        head = struct.pack(">BxLLBB", 4, len(data) + 6, len(data) + 2, context.context_id, control)
        assoc.dul.socket.socket.sendall(head + data)


# [node]


@pytest.mark.parametrize("max_pdu", [4096, 70000])
def test_max_pdu_is_announced_and_a_longer_one_is_not_taken(node, wait_for, max_pdu):
    one = node(node={"max_pdu": max_pdu})
    one.receive()
    assoc = associate(one.port)
    assert assoc.acceptor.maximum_length == max_pdu
    begin_store(assoc, max_pdu - 6)
    wait_for(lambda: [path for path in one.files() if path.stat().st_size >= max_pdu - 6])
    assoc.abort()
    assoc = associate(one.port)
    begin_store(assoc, 2 * max_pdu)
    wait_for(lambda: assoc.is_aborted, 10)
    assert one.jobs() == []


def test_max_associations_are_open_at_a_time(node):
    one = node(node={"max_associations": 2})
    one.receive()
    first, second, third = (associate(one.port) for _ in range(3))
    assert [each.is_established for each in (first, second, third)] == [True, True, False]
    assert third.is_rejected
    for each in (first, second):
        each.release()


def test_a_peer_silent_for_association_timeout_s_is_aborted(node, wait_for):
    one = node(node={"association_timeout_s": 1.0})
    one.receive()
    assoc, began = associate(one.port), time.monotonic()
    wait_for(lambda: assoc.is_aborted, 10)
    assert time.monotonic() - began > 0.8


@pytest.mark.parametrize("timeout_s", [0.5, 4.0])
def test_a_transfer_in_hand_is_cut_shutdown_timeout_s_after_sigterm(node, wait_for, timeout_s):
    one = node(node={"shutdown_timeout_s": timeout_s, "association_timeout_s": 60})
    child = one.receive()
    assoc = associate(one.port)
    begin_store(assoc, 16000)
    wait_for(lambda: [path for path in one.files() if path.stat().st_size >= 16000])
    began = time.monotonic()
    child.process.send_signal(signal.SIGTERM)
    assert child.process.wait(20) == 0
    assert timeout_s <= time.monotonic() - began < timeout_s + 10


# [[destination]]


def test_the_first_retry_waits_retry_initial_s(node, pacs, make_ct, wait_for):
    one = node([{"port": pacs(None).port, "retry_initial_s": 40.0, "retry_max_s": 300.0}])
    put(one, make_ct())
    one.forward()
    [delivery] = wait_for(lambda: [d for d in one.deliveries() if d.reason])
    # Half to all of it, so that those who failed together do not return together.
    assert 20 - 5 < delivery.due_at - time.time() <= 40
    assert delivery.attempts == 1


def test_no_retry_waits_longer_than_retry_max_s(node, pacs, make_ct, wait_for):
    one = node([{"port": pacs(None).port, "retry_initial_s": 0.1, "retry_max_s": 0.2}])
    put(one, make_ct())
    one.forward()
    # Doubling on would take the ninth attempt a quarter of a minute.
    wait_for(lambda: [d for d in one.deliveries() if d.attempts >= 9], 10)


@pytest.mark.parametrize("associations", [1, 3])
def test_associations_are_used_side_by_side(node, pacs, make_ct, wait_for, associations):
    peer = pacs("hang")
    one = node([{"port": peer.port, "associations": associations, "timeout_s": 60}])
    for _ in range(5):
        put(one, make_ct())
    one.forward()

    def connections():
        table = Path("/proc/net/tcp").read_text().splitlines()[1:]
        port = f":{peer.port:04X}"
        return [row for row in table if row.split()[2].endswith(port) and row.split()[3] == "01"]

    def sending():
        return [d for d in one.deliveries() if d.state == "sending"]

    wait_for(lambda: len(sending()) == len(connections()) == associations)
    time.sleep(0.5)
    assert len(sending()) == len(connections()) == associations
    peer.stop()


# [verify]


class Archive(verifying.FakePacs):
    """Notes how it is called and whom it is told to send to."""

    def __init__(self, files, **options):
        self.called, self.move_destinations = set(), set()
        super().__init__(files, **options)
        self.server.bind(evt.EVT_REQUESTED, self._note)

    def _note(self, event):
        self.called.add(event.assoc.requestor.primitive.called_ae_title.strip())

    def _move(self, event):
        self.move_destinations.add(event.move_destination)
        yield from super()._move(event)


@pytest.fixture(scope="module")
def marks(tmp_path_factory):
    return verifying.Marks(tmp_path_factory.mktemp("marks"))


@pytest.fixture
def archive(marks):
    one = Archive([marked for _, marked in marks.study(1, 1, size=128)])
    yield one
    one.stop()


def find(config):
    """Ask a service with this configuration for every study; return the status."""
    one = verifying.Service(config).start()
    try:
        return auditors.find(one, verifying.keys(StudyInstanceUID=""))[1].Status
    finally:
        one.end()


STUDY = verifying.keys(StudyInstanceUID="1.2.3.1")
# An address of this machine on which nobody listens.
ELSEWHERE = "127.0.0.9"


@pytest.mark.parametrize("key", ["pacs", "pacs_ae_title", "pacs_host", "pacs_port"])
def test_the_archive_asked_is_the_one_that_verify_names(tmp_path, marks, archive, key):
    value = {"pacs": '"archive"', "pacs_ae_title": '"QUERY"', "pacs_host": '"127.0.0.1"',
             "pacs_port": archive.port}[key]  # fmt: skip
    where = "127.0.0.1" if key in ("pacs_ae_title", "pacs_port") else ELSEWHERE
    port = verifying.refusing_port() if key == "pacs_port" else archive.port

    def config(line=""):
        text = verifying.config_text(tmp_path, marks.keys, port, retrieve="get")
        text = text.replace('host = "127.0.0.1"', f'host = "{where}"')
        text = text.replace("[verify]\n", f"[verify]\n{line}\n")
        text += '[[destination]]\nname = "archive"\nae_title = "SECOND"\nhost = "127.0.0.1"\n'
        return parse(text + f"port = {archive.port}\ntimeout_s = 10\n", "test")

    called = {"pacs": {"SECOND"}, "pacs_ae_title": {"QUERY"}}.get(key, {"ORTHANC"})
    assert find(config(f"{key} = {value}")) == 0x0000
    assert archive.called == called
    archive.called.clear()
    without = find(config())
    assert (without == 0x0000) is (key == "pacs_ae_title")
    assert archive.called != called


def test_the_archive_is_told_to_move_to_fetch_ae_title(tmp_path, marks):
    fetch_port = verifying.refusing_port()
    files = [marked for _, marked in marks.study(1, 1, size=128)]
    archive = Archive(files, get=False, fetch_port=fetch_port)
    text = verifying.config_text(tmp_path, marks.keys, archive.port, fetch_port=fetch_port,
                                 fetch_ae_title="HERE")  # fmt: skip
    one = verifying.Service(parse(text, "test")).start()
    try:
        assert len(auditors.get(one, STUDY)[0]) == 1
        assert archive.move_destinations == {"HERE"}
    finally:
        one.end()
        archive.stop()


@pytest.mark.parametrize(("policy", "given"), [("as-is", 1), ("restored", 0)])
def test_policy_is_what_clients_without_one_of_their_own_are_given(
    tmp_path, marks, archive, policy, given
):
    text = verifying.config_text(tmp_path, marks.keys, archive.port, policy=policy)
    one = verifying.Service(parse(text, "test")).start()
    try:
        [came], _, _ = auditors.get(one, STUDY)
    finally:
        one.end()
    [pair] = marks.study(1, 1, size=128)
    assert came.PixelData == verifying.pydicom.dcmread(pair[given]).PixelData


@pytest.mark.parametrize("workers", [1, 3])
def test_as_many_processes_check_as_workers_says(tmp_path, marks, wait_for, workers):
    archive = Archive([marked for _, marked in marks.study(2, 6, size=128)])
    before = set(checking_workers())

    def started():
        return len({*checking_workers()} - before)

    text = verifying.config_text(tmp_path, marks.keys, archive.port, workers=workers)
    one = verifying.Service(parse(text, "test")).start()
    try:
        # They start when there is something to check.
        assert len(auditors.get(one, verifying.keys(StudyInstanceUID="1.2.3.2"))[0]) == 6
        wait_for(lambda: started() == workers, 20, lambda: f"{started()} processes")
    finally:
        one.end()
        archive.stop()
