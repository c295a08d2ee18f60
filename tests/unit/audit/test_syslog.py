"""Messages reach a real collector, in order and once, and nobody waits while it is away."""

import contextlib
import json
import re
import socket
import ssl
import subprocess
import threading
import time
from datetime import UTC, datetime
from xml.etree import ElementTree as Xml

import audit_schema
import harness
import pytest
from peer_tools import needed

from dicom_node.audit.checking import check_log
from dicom_node.audit.events import Marked
from dicom_node.audit.log import AuditLog
from dicom_node.audit.reading import end_of
from dicom_node.audit.recording import AuditTrail, sending
from dicom_node.audit.syslog import TlsCollector, UdpCollector, collector_at, format_message
from dicom_node.config import parse
from dicom_node.errors import AuditError, ConfigError
from dicom_node.keys import KeyRing

AT = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)
HEADER = re.compile(rb'<85>1 (\S+Z) (\S+) dicom-node (\d+) (\S+) \[meta sequenceId="(\d+)"\] ')


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Return (certificate, key) of a collector on 127.0.0.1 that signs itself."""
    needed("openssl", "nothing is sent over TLS")
    folder = tmp_path_factory.mktemp("certificate")
    names = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext",
         "subjectAltName=IP:127.0.0.1", "-out", names[0], "-keyout", names[1]],
        check=True, capture_output=True,
    )  # fmt: skip
    return names


class TlsServer:
    """A collector that reads octet-counted messages; `accepts` more than one connection."""

    def __init__(self, certificate, port=0):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        self.listener = socket.create_server(("127.0.0.1", port))
        self.port = self.listener.getsockname()[1]
        self.received = []
        self.problems = []
        self.context = context
        self.connections = []
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while True:
            try:
                plain, _ = self.listener.accept()
            except OSError:
                return
            try:
                connection = self.context.wrap_socket(plain, server_side=True)
            except OSError as error:
                self.problems.append(error)
                continue
            self.connections.append(connection)
            with contextlib.suppress(OSError):
                self.read(connection.makefile("rb"))

    def read(self, stream):
        while True:
            size = b""
            while not size.endswith(b" "):
                byte = stream.read(1)
                if not byte:
                    return
                size += byte
            message = stream.read(int(size))
            assert len(message) == int(size)
            self.received.append(message)

    def close(self):
        # close() alone does not wake an accept() in another thread.
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self.thread.join(5)


@pytest.fixture
def server(certificate):
    servers = []

    def start(port=0):
        servers.append(TlsServer(certificate, port))
        return servers[-1]

    yield start
    for each in servers:
        each.close()


@pytest.fixture
def node(tmp_path):
    """Return a function that opens the trail of a node with a collector."""
    ring = KeyRing.open(tmp_path / "keys", owner="TESTS", create=True)
    trails = []

    def start(url, ca="", sends=True):
        config = parse(
            f'[spool]\ndirectory = "{tmp_path}"\n[watermark]\nowner = "TESTS"\n'
            f'[audit]\nsyslog = "{url}"\nsyslog_ca = "{ca}"\ncheckpoint_every = 10\n', "test",
        )  # fmt: skip
        trails.append(AuditTrail.open(config, ring, sends=sends))
        return trails[-1]

    start.folder, start.ring = tmp_path / "audit", ring
    yield start
    for trail in trails:
        trail.close()


def event(number):
    return Marked(at=AT, sop_instance_uid=f"1.2.{number}", study_instance_uid="1.2.9",
                  action="untouched", source_ae="CT1")  # fmt: skip


def instances(messages):
    """Return the numbers of the instances that some messages name, each checked for its form."""
    found = []
    for message in messages:
        head = HEADER.match(message)
        assert head, message[:200]
        content = message[head.end() :]
        assert content.startswith(b"\xef\xbb\xbf")
        if head[4] == b"DICOM+RFC3881":
            assert audit_schema.problems(content[3:]) == []
            found += [int(each.get("UID")[4:]) for each in Xml.fromstring(content[3:]).iter(
                "Instance")]  # fmt: skip
    return found


def sent_up_to(folder):
    """Return the number of the last entry that the node has noted as sent."""
    return json.loads((folder / "syslog.json").read_text("ascii"))["seq"]


def test_a_message_has_the_form_of_rfc_5424():
    message = format_message(b"<x/>", AT, 2**31, host="häuschen im wald")
    assert re.fullmatch(
        rb"<85>1 2026-11-22T03:00:00\.000000Z huschenimwald dicom-node \d+ DICOM\+RFC3881 "
        rb'\[meta sequenceId="1"\] \xef\xbb\xbf<x/>',
        message,
    )


def test_events_reach_a_tls_collector_in_order(node, server, certificate):
    collector = server()
    trail = node(f"tls://127.0.0.1:{collector.port}", certificate[0])
    for start in range(0, 90, 30):
        trail.record([(event(k), "") for k in range(start, start + 30)])
    harness.wait_for(lambda: len(instances(collector.received)) >= 90, 20)
    assert instances(collector.received) == list(range(90))


def test_what_is_recorded_while_the_collector_is_away_is_sent_later(node, server, certificate):
    first = server()
    trail = node(f"tls://127.0.0.1:{first.port}", certificate[0])
    trail.record([event(0)])
    harness.wait_for(lambda: instances(first.received) == [0], 20)
    # Until the node has noted that it was sent it may send it once more.
    harness.wait_for(lambda: sent_up_to(node.folder) == end_of(node.folder).seq, 20)
    first.close()
    began = time.monotonic()
    for k in range(1, 40):
        trail.record([event(k)])
    assert time.monotonic() - began < 10
    second = server(first.port)
    harness.wait_for(lambda: len(set(instances(second.received))) >= 39, 30)
    # What was under way when it went may come twice; nothing is missing, nothing out of order.
    assert list(dict.fromkeys(instances(second.received))) == list(range(1, 40))


def test_the_next_start_goes_on_where_the_last_one_ended(node, server, certificate):
    collector = server()
    url = f"tls://127.0.0.1:{collector.port}"
    node("", sends=False).record([event(99)])
    trail = node(url, certificate[0])
    trail.record([event(0)])
    harness.wait_for(lambda: instances(collector.received) == [0], 20)
    trail.close()
    node("", sends=False).record([event(1), event(2)])
    trail = node(url, certificate[0])
    harness.wait_for(lambda: len(instances(collector.received)) >= 3, 20)
    assert instances(collector.received) == [0, 1, 2]


def test_what_other_processes_record_is_sent_by_the_one_sender(node, server, certificate):
    collector = server()
    url = f"tls://127.0.0.1:{collector.port}"
    sender, second = node(url, certificate[0]), node(url, certificate[0])
    harness.wait_for(lambda: (node.folder / "syslog.json").exists(), 10)
    node(url, certificate[0], sends=False).record([event(7)])
    harness.wait_for(lambda: instances(collector.received) == [7], 20)
    sender.close()
    second.record([event(8)])
    harness.wait_for(lambda: instances(collector.received) == [7, 8], 20)


def test_a_process_with_a_log_of_its_own_sends_meanwhile(node, server, certificate):
    collector = server()
    url, ca = f"tls://127.0.0.1:{collector.port}", certificate[0]
    folder = node.folder.parent
    config = parse(
        f'[spool]\ndirectory = "{folder}"\n[audit]\nsyslog = "{url}"\nsyslog_ca = "{ca}"\n', "x"
    )
    with sending(config):
        harness.wait_for(lambda: (node.folder / "syslog.json").exists(), 10)
        log = AuditLog.open(node.folder, node.ring)
        log.append_many([(event(1), "outbox:1"), (event(2), "outbox:2")])
        harness.wait_for(lambda: instances(collector.received) == [1, 2], 20)
    log.close()
    with sending(parse(f'[spool]\ndirectory = "{folder}"\n', "x")):
        assert len([each for each in threading.enumerate() if each.name == "audit-sender"]) == 0


def test_the_collectors_copies_of_checkpoints_show_a_trail_cut_back(node, server, certificate):
    collector = server()
    trail = node(f"tls://127.0.0.1:{collector.port}", certificate[0])
    trail.record([(event(k), "") for k in range(25)])

    def copies():
        lines = [message.partition(b"\xef\xbb\xbf") for message in collector.received]
        return [line for head, _, line in lines if b"dicom-node+checkpoint" in head]

    harness.wait_for(lambda: len(copies()) == 2, 20)
    log, kept = node.folder / "00000001.jsonl", node.folder / "checkpoints.jsonl"
    assert copies() == kept.read_bytes().splitlines()
    whole = log.read_bytes().splitlines(keepends=True), kept.read_bytes()
    log.write_bytes(b"".join(whole[0][:12]))
    kept.write_bytes(whole[1].splitlines(keepends=True)[0])
    assert check_log(node.folder, node.ring).broken is None
    assert check_log(node.folder, node.ring, elsewhere=copies()).broken.kind == "truncated"


def test_a_collector_that_nobody_vouches_for_gets_nothing(server, certificate):
    collector = server()
    stranger = TlsCollector(("127.0.0.1", collector.port))
    with pytest.raises(AuditError, match="certificate"):
        stranger.send([b"secret"])
    named = TlsCollector(("localhost", collector.port), str(certificate[0]))
    with pytest.raises(AuditError, match=r"certificate|[Hh]ostname"):
        named.send([b"secret"])
    harness.wait_for(lambda: len(collector.problems) == 2, 10)
    assert collector.received == []


def test_datagrams_reach_a_udp_collector(node):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as collector:
        collector.bind(("127.0.0.1", 0))
        collector.settimeout(20)
        trail = node(f"udp://127.0.0.1:{collector.getsockname()[1]}")
        trail.record([event(4)])
        assert instances([collector.recv(65536)]) == [4]


@pytest.fixture
def away():
    """Return the address of a UDP port that is closed."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()


def received(address, count):
    """Return what arrives at an address until so many instances were named, and a little longer."""
    messages = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as collector:
        collector.bind(address)
        collector.settimeout(20)
        while len(set(instances(messages))) < count:
            messages.append(collector.recv(65536))
        collector.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while True:
                messages.append(collector.recv(65536))
    return instances(messages)


def test_a_closed_udp_port_is_noticed_by_a_single_datagram_every_time(away):
    collector = UdpCollector(away)
    for _ in range(4):
        with pytest.raises(AuditError, match="refused"):
            collector.send([b"hello"])
    collector.close()


def test_a_udp_collector_that_goes_is_noticed_by_a_single_datagram_and_back_gets_all(away):
    collector = UdpCollector(away)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
        there.bind(away)
        collector.send([b"one"])
        assert there.recv(10) == b"one"
    with pytest.raises(AuditError, match="refused"):
        collector.send([b"two"])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
        there.bind(away)
        there.settimeout(5)
        collector.send([b"two", b"three"])
        assert [there.recv(10) for _ in range(2)] == [b"two", b"three"]
    collector.close()


def test_one_event_while_the_udp_collector_is_away_arrives_when_it_is_back(node, away):
    trail = node(f"udp://127.0.0.1:{away[1]}")
    trail.record([event(1)])
    # Longer than the first tries and the pauses between them take.
    time.sleep(3)
    assert received(away, 1) == [1]
    trail.close()


def test_all_events_while_the_udp_collector_is_away_arrive_once_when_it_is_back(node, away):
    trail = node(f"udp://127.0.0.1:{away[1]}")
    for number in range(12):
        trail.record([event(number)])
        time.sleep(0.2)
    assert received(away, 12) == list(range(12))
    trail.close()


def test_urls_that_name_no_collector_are_refused(tmp_path):
    for url in ("tcp://a:1", "tls://a", "udp://:5"):
        with pytest.raises(ConfigError, match=r"audit\.syslog"):
            collector_at(url)
    with pytest.raises(ConfigError, match="syslog_ca"):
        collector_at("tls://a:1", str(tmp_path / "nowhere.pem"))


RSYSLOG = """
module(load="imtcp" StreamDriver.Name="gtls" StreamDriver.Mode="1" StreamDriver.AuthMode="anon")
global(DefaultNetstreamDriver="gtls" DefaultNetstreamDriverCAFile="{certificate}"
       DefaultNetstreamDriverCertFile="{certificate}" DefaultNetstreamDriverKeyFile="{key}"
       workDirectory="{folder}" maxMessageSize="64k")
template(name="json" type="list") {{
  property(name="pri" format="jsonf" outname="pri") constant(value=" ")
  property(name="msgid") constant(value=" ") property(name="structured-data") constant(value=" ")
  property(name="app-name") constant(value=" ") property(name="msg") constant(value="\\n")
}}
input(type="imtcp" port="{port}" address="127.0.0.1")
action(type="omfile" file="{folder}/got.log" template="json")
"""


@pytest.mark.peer
def test_rsyslog_understands_what_we_send(node, certificate, tmp_path):
    program = harness.tool("rsyslogd")
    port = harness.free_port()
    config = tmp_path / "rsyslog.conf"
    config.write_text(RSYSLOG.format(certificate=certificate[0], key=certificate[1],
                                     folder=tmp_path, port=port))  # fmt: skip
    command = [program, "-n", "-f", config, "-i", tmp_path / "pid"]
    child = harness.Child(command, tmp_path / "rsyslog.log")
    try:
        trail = node(f"tls://127.0.0.1:{port}", certificate[0])
        trail.record([(event(k), "") for k in range(3)])
        got = tmp_path / "got.log"
        harness.wait_for(lambda: got.exists() and got.stat().st_size > 0, 30,
                         lambda: child.output)  # fmt: skip
        line = got.read_text("utf-8-sig").splitlines()[0]
        assert line.startswith('"pri":"85" DICOM+RFC3881 [meta sequenceId="4"] dicom-node ')
        xml = line[line.index("<?xml") :]
        assert audit_schema.problems(xml.encode()) == []
        uids = [each.get("UID") for each in Xml.fromstring(xml).iter("Instance")]
        assert uids == ["1.2.0", "1.2.1", "1.2.2"]
    finally:
        child.end()


def test_a_place_that_cannot_be_read_is_said_and_stops_nothing(node, server, certificate):
    collector = server()
    url = f"tls://127.0.0.1:{collector.port}"
    node.folder.mkdir()
    (node.folder / "syslog.json").write_text(json.dumps({"collector": url, "segment": "?"}))
    trail = node(url, certificate[0])
    assert trail.record([event(1)]) == 1
    trail.close()
    assert collector.received == []
