"""A PACS with marked studies in it, and the verification service in front of it."""

import contextlib
import copy
import json
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

import harness
import pydicom
from harness import Child, free_port, peers, tool, wait_for
from pydicom.dataset import Dataset
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import CTImageStorage

from dicom_node.config import parse
from dicom_node.dimse.commands import StoreRequest
from dicom_node.dimse.messages import _pdu_header
from dicom_node.inference import open_engine
from dicom_node.keys import KeyRing
from dicom_node.marking import Marker
from dicom_node.registry.records import DeliveryEntry, MarkedInstance
from dicom_node.registry.registry import Registry
from dicom_node.verify.check import check_instance
from dicom_node.verify.service import run_verifier

STUDY_FIND, STUDY_MOVE, STUDY_GET = (f"1.2.840.10008.5.1.4.1.2.2.{n}" for n in (1, 2, 3))
PATIENT_FIND = "1.2.840.10008.5.1.4.1.2.1.1"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
MARKED_AT = datetime(2026, 1, 1, 9, tzinfo=UTC)


class QueryOrthanc(harness.Orthanc):
    """An Orthanc that answers queries and moves to the verification service."""

    def __init__(self, folder, *, get=True):
        self.verify_port, self.fetch_port = free_port(), free_port()
        self.folder = folder / "orthanc"
        self.folder.mkdir(parents=True)
        self.port, self.http = free_port(), free_port()
        settings = {
            "StorageDirectory": str(self.folder), "IndexDirectory": str(self.folder),
            "HttpPort": self.http, "DicomPort": self.port, "DicomAet": "ORTHANC",
            "DicomCheckCalledAet": False, "AuthenticationEnabled": False, "Plugins": [],
            "UnknownSopClassAccepted": True, "OverwriteInstances": True,
            "DicomAlwaysAllowFind": True, "DicomAlwaysAllowMove": True,
            "DicomAlwaysAllowGet": get,
            "DicomModalities": {
                "verify": ["DICOMVERIFY", "127.0.0.1", self.verify_port],
                "fetch": ["DICOMFETCH", "127.0.0.1", self.fetch_port],
            },
        }  # fmt: skip
        path = self.folder / "orthanc.json"
        path.write_text(json.dumps(settings))
        self.child = Child([tool("Orthanc"), path], folder / "orthanc.log", {"TCP_NODELAY": "1"})
        wait_for(self._up, message=lambda: self.child.output)

    def store(self, *paths):
        result = peers.run_tool(
            "storescu", "-xe", "-aec", "ORTHANC", "127.0.0.1", self.port, *paths
        )
        assert result.returncode == 0, result.stderr

    def upload(self, path):
        """Store a file as it is coded; storescu would decompress it."""
        harness.urllib.request.urlopen(
            harness.urllib.request.Request(
                f"http://127.0.0.1:{self.http}/instances", path.read_bytes()
            ),
            timeout=30,
        ).close()

    def empty(self):
        """Delete every study."""
        for identifier in self.get("/studies"):
            harness.delete(self, f"/studies/{identifier}")


class Marks:
    """Marks real-looking CT slices with keys of its own; marked files are made once."""

    def __init__(self, folder):
        self.folder = folder
        self.keys = folder / "keys"
        self.ring = KeyRing.open(self.keys, owner="TEST-HOSPITAL", create=True)
        settings = parse('[watermark]\nowner = "TEST-HOSPITAL"\nengine = "onnx"', "test")
        self._engine = open_engine("onnx")
        self._marker = Marker(settings.watermark, self.ring, self._engine)

    def study(self, number, slices=4, *, size=192, **attributes):
        """Return ``[(original, marked)]`` of a study: UIDs 1.2.3.<number>..."""
        return [self.slice(number, n, size=size, **attributes) for n in range(1, slices + 1)]

    def mark(self, original):
        """Mark a file as it is coded and return the marked one."""
        marked = self.folder / f"marked-{original.name}"
        done = self._marker.mark(original, marked, marked_at=MARKED_AT)
        assert done.action == "marked", done.reason
        return marked

    def verdict(self, path):
        """Return the verdict on a file."""
        return check_instance(path, self.ring, self._engine).verdict

    def slice(self, number, index, *, size=192, **attributes):
        """Return ``(original, marked)`` of one slice of a study."""
        uid = f"1.2.3.{number}.1.{index}"
        original, marked = self.folder / f"{uid}-original.dcm", self.folder / f"{uid}.dcm"
        if not marked.exists():
            ds = harness.ct(uid, size=size, seed=number * 1000 + index, **attributes)
            ds.StudyInstanceUID, ds.SeriesInstanceUID = f"1.2.3.{number}", f"1.2.3.{number}.1"
            ds.InstanceNumber, ds.StudyDate, ds.StudyID = index, "20260101", str(number)
            ds.StudyTime = "090000"
            harness.save(ds, original)
            done = self._marker.mark(original, marked, marked_at=MARKED_AT)
            assert done.action == "marked", done.reason
        return original, marked


def entry_of(path, destination="pacs"):
    """Return a registry record of a marked file, delivered to a destination."""
    ds = pydicom.dcmread(path, stop_before_pixels=True)
    delivered = (DeliveryEntry(destination, 0, MARKED_AT.timestamp()),) if destination else ()
    return MarkedInstance(
        str(ds.SOPInstanceUID), str(ds.SeriesInstanceUID), str(ds.StudyInstanceUID),
        str(ds.SOPClassUID), str(ds.file_meta.TransferSyntaxUID), "marked", bytes(32),
        path.name.encode().ljust(32, b"\0")[:32], bytes(8), int(MARKED_AT.timestamp()),
        MARKED_AT.timestamp(), "MODALITY", str(ds.Modality), int(ds.InstanceNumber), 1,
        deliveries=delivered,
    )  # fmt: skip


def tampered(path, out, *, row=40, column=60):
    """Write a copy of a marked file with one pixel changed by one step."""
    ds = pydicom.dcmread(path)
    pixels = ds.pixel_array.copy()
    pixels[row, column] += 1
    ds.PixelData = pixels.tobytes()
    ds.save_as(out)
    return out


def retold(path, out, **attributes):
    """Write a copy of a marked file with attributes changed and its pixels left alone."""
    ds = pydicom.dcmread(path)
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    ds.save_as(out)
    return out


def config_text(folder, keys, pacs_port, *, move=(), clients=(), **verify):
    """Return a configuration of the service.

    `move` is ``[(ae_title, port)]``, `clients` ``[(ae_title, policy)]`` or with an address, too.
    """
    settings = {"bind": "127.0.0.1", "port": free_port(), "fetch_port": free_port(), "workers": 1}
    settings |= verify
    lines = [
        "[node]", 'bind = "127.0.0.1"', "association_timeout_s = 10", "shutdown_timeout_s = 3",
        "[spool]", f'directory = "{folder}/spool"',
        "[keys]", f'directory = "{keys}"',
        "[watermark]", 'owner = "TEST-HOSPITAL"', 'engine = "onnx"',
        "[[destination]]", 'name = "pacs"', 'ae_title = "ORTHANC"', 'host = "127.0.0.1"',
        f"port = {pacs_port}", "timeout_s = 10",
    ]  # fmt: skip
    for ae_title, port in move:
        lines += ["[[move_destination]]", f'name = "{ae_title.lower()}"',
                  f'ae_title = "{ae_title}"', 'host = "127.0.0.1"', f"port = {port}"]  # fmt: skip
    lines += ["[verify]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
    for ae_title, policy, *address in clients:
        lines += ["[[verify.client]]", f'ae_title = "{ae_title}"', f'policy = "{policy}"']
        lines += [f'address = "{each}"' for each in address]
    return "\n".join(lines) + "\n"


@dataclass
class Service:
    """``run_verifier`` in a thread."""

    config: object
    stop: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread = None
    failure: list = field(default_factory=list)

    @property
    def port(self):
        return self.config.verify.port

    def start(self):
        ready = threading.Event()

        def run():
            try:
                run_verifier(self.config, self.stop, ready.set)
            except Exception as error:  # noqa: BLE001 - shown by the test
                self.failure.append(error)

        self.thread = threading.Thread(target=run, name="service")
        self.thread.start()
        wait_for(lambda: ready.is_set() or self.failure, 60)
        assert not self.failure, self.failure
        return self

    def end(self):
        self.stop.set()
        self.thread.join(30)
        assert not self.thread.is_alive()
        assert not self.failure, self.failure

    @contextlib.contextmanager
    def registry(self):
        with Registry.open(self.config.registry_url) as registry:
            yield registry

    def register(self, *entries):
        with self.registry() as registry:
            registry.add_all(entries)

    def audit_events(self, *kinds):
        """Return the audit trail's events of these kinds, as JSON values."""
        found = []
        for segment in sorted(self.config.audit_directory.glob("0*.jsonl")):
            events = [json.loads(line)["event"] for line in segment.read_text().splitlines()]
            found += [event for event in events if event["kind"] in kinds]
        return found

    def scratch(self):
        """Return every fetched file that is still there."""
        return [p for p in (self.config.spool.directory / "fetched").rglob("*") if p.is_file()]


@contextlib.contextmanager
def client(
    service, *sop_classes, ae_title="AUDITOR", storage=(), on_store=None, storage_syntax=EXPLICIT,
    patience_s=30,
):
    """Associate as pynetdicom does it; `storage` classes are proposed in the SCP role."""
    ae = AE(ae_title)
    ae.dimse_timeout = patience_s
    for each in sop_classes:
        ae.add_requested_context(each, EXPLICIT)
    roles = []
    for each in storage:
        ae.add_requested_context(each, storage_syntax)
        roles.append(build_role(each, scp_role=True))
    handlers = [(evt.EVT_C_STORE, on_store)] if on_store else []
    assoc = ae.associate(
        "127.0.0.1", service.port, ae_title="DICOMVERIFY", ext_neg=roles, evt_handlers=handlers
    )
    assert assoc.is_established
    try:
        yield assoc
    finally:
        if assoc.is_established:
            assoc.release()


def keys(level="STUDY", **values):
    ds = Dataset()
    ds.QueryRetrieveLevel = level
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def verify_now(ds):
    """Add the private key that asks for a check first."""
    block = ds.private_block(0x0071, "DICOM-NODE WATERMARK 1.0", create=True)
    block.add_new(0x20, "CS", "YES")
    return ds


def block_of(match):
    """Return our private block of a match by element number."""
    block = match.private_block(0x0071, "DICOM-NODE WATERMARK 1.0")
    first = 0x00710000 | block.block_start
    return {tag & 0xFF: match[tag].value for tag in map(int, match.keys()) if tag & ~0xFF == first}


class FakePacs:
    """pynetdicom's own query/retrieve SCP over a few files, with faults on demand.

    Attributes
    ----------
    abort_after
        Aborts C-GET or C-MOVE after so many instances.
    delay_s
        Waits before each instance or match.
    ignores_cancel
        Goes on after C-CANCEL, as many archives do.
    unsendable
        SOP Instance UIDs that it lists and fails to send.
    fails_with
        Ends a C-GET or C-MOVE with this status after so many instances: ``(status, after)``.
    matches
        Answers a STUDY query with so many made-up studies instead.
    images
        Answers an IMAGE query with so many made-up instances of one series instead.
    stall
        Stops in the middle of the first instance: ``between PDUs`` or ``inside a PDU``; or never
        comes to its end: ``endless``. ``inside a match`` stops in the first answer to a query.
    stalled
        Set when it has stopped, cleared when the other side has ended the association.
    """

    def __init__(self, files, *, get=True, fetch_port=None):
        self.files = [pydicom.dcmread(path) for path in files]
        self.abort_after = None
        self.delay_s = 0.0
        self.ignores_cancel = False
        self.unsendable = ()
        self.fails_with = None
        self.matches = self.images = None
        self.send = None
        self.stall = None
        self.stalled = threading.Event()
        self.cancelled = []
        self.queries = 0
        self._fetch_port = fetch_port
        ae = AE("ORTHANC")
        ae.add_supported_context(STUDY_FIND, EXPLICIT)
        ae.add_supported_context(PATIENT_FIND, EXPLICIT)
        if get:
            ae.add_supported_context(STUDY_GET, EXPLICIT)
            ae.add_supported_context(CTImageStorage, EXPLICIT, scu_role=True, scp_role=True)
        if fetch_port:
            ae.add_supported_context(STUDY_MOVE, EXPLICIT)
            ae.add_requested_context(CTImageStorage, EXPLICIT)
        self.server = ae.start_server(
            ("127.0.0.1", 0), block=False,
            evt_handlers=[(evt.EVT_C_FIND, self._find), (evt.EVT_C_GET, self._get),
                          (evt.EVT_C_MOVE, self._move)],
        )  # fmt: skip
        self.port = self.server.server_address[1]

    def _find(self, event):
        self.queries += 1
        if self.stall == "inside a match":
            self._stop_inside(event.assoc, STUDY_FIND, bytes(6))
            return
        asked = event.identifier
        level = asked.QueryRetrieveLevel
        if self.matches is not None and level == "STUDY":
            found = [{"StudyInstanceUID": f"1.9.{n}"} for n in range(self.matches)]
        elif self.images is not None and level == "IMAGE":
            found = [{"StudyInstanceUID": "1.9", "SeriesInstanceUID": "1.9.1",
                      "SOPInstanceUID": f"1.9.1.{n}"} for n in range(self.images)]  # fmt: skip
        else:
            keyword = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID",
                       "IMAGE": "SOPInstanceUID"}[level]  # fmt: skip
            study = asked.get("StudyInstanceUID")
            files = [f for f in self.files if not study or f.StudyInstanceUID == study]
            found = {
                str(f[keyword].value): {
                    keyword: f[keyword].value, "StudyInstanceUID": f.StudyInstanceUID,
                    "SOPClassUID": f.SOPClassUID,
                }
                for f in files
            }.values()  # fmt: skip
        for values in found:
            if event.is_cancelled and not self.ignores_cancel:
                self.cancelled.append("find")
                yield 0xFE00, None
                return
            time.sleep(self.delay_s)
            match = keys(level, **values)
            yield 0xFF00, match

    def _instances(self, event):
        study = event.identifier.StudyInstanceUID
        files = self.send or [f for f in self.files if f.StudyInstanceUID == study]
        yield len(files)
        for index, ds in enumerate(files):
            if event.is_cancelled and not self.ignores_cancel:
                self.cancelled.append("retrieve")
                yield 0xFE00, None
                return
            if index == self.abort_after:
                event.assoc.abort()
                return
            time.sleep(self.delay_s)
            if self.fails_with is not None and self.fails_with[1] == index:
                yield self.fails_with[0], None
                return
            if ds.SOPInstanceUID in self.unsendable:
                ds = copy.deepcopy(ds)
                ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.66"  # no context has it
            yield 0xFF00, ds

    def _get(self, event):
        if self.stall:
            self._stop_inside(event.assoc, CTImageStorage)
            return
        yield from self._instances(event)

    def _move(self, event):
        if self.stall:
            ae = AE("ORTHANC")
            ae.add_requested_context(CTImageStorage, EXPLICIT)
            self._stop_inside(ae.associate("127.0.0.1", self._fetch_port), CTImageStorage)
            return
        yield "127.0.0.1", self._fetch_port
        yield from self._instances(event)

    def _stop_inside(self, assoc, sop_class, command=b""):
        """Send the beginning of a message, and wait for the other side to end the association."""
        accepted = {c.abstract_syntax: c.context_id for c in assoc.accepted_contexts}
        context = accepted[sop_class]
        command = command or StoreRequest(1, sop_class, "1.2.3.1.1.1").encode()

        def pdu(control, data):
            return _pdu_header(context, control, len(data)) + data

        send = assoc.dul.socket.send
        if self.stall == "inside a match":
            send(pdu(0x03, command)[:-3])
        else:
            send(pdu(0x03, command) + pdu(0x00, bytes(1000)))
        if self.stall == "inside a PDU":
            send(pdu(0x00, bytes(1000))[:500])
        self.stalled.set()
        deadline = time.monotonic() + 30
        while assoc.dul.state_machine.current_state == "Sta6" and time.monotonic() < deadline:
            if self.stall == "endless":
                send(pdu(0x00, bytes(20000)))
            time.sleep(0.02)
        if assoc.dul.state_machine.current_state != "Sta6":
            self.stalled.clear()

    def stop(self):
        self.server.shutdown()


def refusing_port():
    """Return a port on which nobody listens."""
    return free_port()
