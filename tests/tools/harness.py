"""A whole node as an administrator starts it, real peers beside it, and what they agree on.

Shared by tests/faults and tests/peers; `all_objects.py` beside it is also a command of its own.
"""

import contextlib
import importlib.util
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pydicom
from peer_tools import PACKAGES, free_port
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import pixel_array
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, _config

from dicom_node.config import load
from dicom_node.dimse import FileMeta, StoreAssociation, encode_file_meta, read_file_meta
from dicom_node.instance.frames import open_instance
from dicom_node.keys import KeyRing
from dicom_node.spool import Spool

ROOT = Path(__file__).parents[2]
SETTLED = ("delivered", "held", "rejected", "dropped")
CT = "1.2.840.10008.5.1.4.1.1.2"
MAX_PIXELS = 1 << 28
_CODING = ("(0028,0004)", "(0028,0006)")
_PIXEL_TAGS = {0x7FE00001, 0x7FE00002, 0x7FE00008, 0x7FE00009, 0x7FE00010}


def _peers():
    spec = importlib.util.spec_from_file_location(
        "peers_conftest", ROOT / "tests" / "peers" / "conftest.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


peers = _peers()
Child, Orthanc, Pacs = peers.Child, peers.Orthanc, peers.Pacs
tool, wait_for, run_tool = peers.tool, peers.wait_for, peers.run_tool


def write_config(folder, destinations=(), **sections):
    """Write ``node.toml`` below `folder` for a small test node and return its path."""
    settings = {
        "node": {"bind": "127.0.0.1", "port": free_port(), "association_timeout_s": 10,
                 "shutdown_timeout_s": 10},
        "spool": {"directory": str(folder / "spool"), "min_free_mib": 16},
        "keys": {"directory": str(folder / "keys")},
        "watermark": {"owner": "TEST-HOSPITAL", "workers": 1, "engine": "onnx"},
    }  # fmt: skip
    for name, values in sections.items():
        settings[name] |= values
    tables = [(f"[{name}]", values) for name, values in settings.items()]
    for destination in destinations:
        defaults = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "timeout_s": 10,
                    "retry_initial_s": 0.2, "retry_max_s": 1.0}  # fmt: skip
        tables.append(("[[destination]]", defaults | destination))
    lines = [
        line for head, values in tables
        for line in (head, *(f"{key} = {json.dumps(value)}" for key, value in values.items()))
    ]  # fmt: skip
    path = folder / "node.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


class RunningNode:
    """``dicom-node serve`` in a folder of its own."""

    def __init__(self, folder, destinations=(), **sections):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.config_path = write_config(folder, destinations, **sections)
        self.config = load(self.config_path)
        self.log = folder / "node.log"
        self.child = None

    @property
    def port(self):
        return self.config.node.port

    @property
    def output(self):
        return self.child.output

    def start(self, timeout_s=60):
        self._starts_at = self.log.stat().st_size if self.log.exists() else 0
        command = [sys.executable, "-m", "dicom_node.cli.main", "serve", "--config"]
        self.child = Child([*command, self.config_path], self.log)

        def up():
            return "ready:" in self._since_start() or self.child.process.poll() is not None

        wait_for(up, timeout_s, lambda: self.output)
        assert self.child.process.poll() is None, self.output
        return self

    def _since_start(self):
        return self.log.read_bytes()[self._starts_at :].decode(errors="replace")

    def stop(self, timeout_s=40):
        """Stop as systemd would; return the exit code."""
        return self.child.end(timeout_s) if self.child else 0

    def kill_all(self):
        """End it and its processes at once, whatever state they are in."""
        if self.child is None:
            return
        roles = self.processes().values()
        self.child.kill()
        for pid in roles:
            kill(pid)

    def processes(self):
        """Return the process id of every living role, ``{"mark-0": 4711, ...}``."""
        started = re.findall(r"(\{.*process_started.*\})", self._since_start())
        known = {line["role"]: line["pid"] for line in map(json.loads, started)}
        return {role: pid for role, pid in known.items() if alive(pid) and is_role(pid)}

    @contextlib.contextmanager
    def spool(self):
        with Spool(self.config.spool) as spool:
            yield spool

    def jobs(self):
        with self.spool() as spool:
            return spool.jobs()

    def tally(self):
        with self.spool() as spool:
            return {state: count for state, count in spool.tally().items() if count}

    def ring(self):
        return KeyRing.open(self.config.keys.directory)

    def settled(self, timeout_s=60, refusals=None):
        """Wait until no job is on its way any more; return all jobs.

        With `refusals`, an instance the PACS has failed to take so often counts as settled.
        """
        with self.spool() as spool:

            def on_its_way(job):
                if job.state in SETTLED:
                    return False
                waiting = [d for d in spool.deliveries(job.id) if d.state in ("waiting", "sending")]
                return not (refusals and waiting and all(d.attempts >= refusals for d in waiting))

            def done():
                tally = spool.tally()
                if not any(n for state, n in tally.items() if state not in SETTLED):
                    return True
                if refusals is None or tally["received"] or tally["marking"]:
                    return False
                return not any(map(on_its_way, spool.jobs(state="marked")))

            wait_for(done, timeout_s, lambda: f"{spool.tally()}\n{self.output[-4000:]}")
            return spool.jobs()

    def cli(self, *arguments, timeout_s=60):
        """Run a command of the node with its configuration; return the completed process."""
        return subprocess.run(
            [sys.executable, "-m", "dicom_node.cli.main", *map(str, arguments),
             "--config", str(self.config_path)],
            capture_output=True, text=True, timeout=timeout_s, check=False,
            env={**os.environ, "PYTHONPATH": PACKAGES},
        )  # fmt: skip

    def files(self):
        """Every instance file and temporary file below the spool."""
        root = self.config.spool.directory
        return [
            path for path in root.rglob("*")
            if path.is_file() and "journal" not in path.name and path.name != "alive"
            # What outlives instances: the registry with its hashes, and the audit trail.
            and not (path.parent == root and path.name.startswith("registry."))
            and self.config.audit_directory not in path.parents
        ]  # fmt: skip


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def is_role(pid):
    """Whether a process is one of a node's: numbers are used again."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return b"multiprocessing" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def kill(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def storescu(node, *paths, options=("-xe",), timeout_s=120):
    """Send files as a modality would; return the completed process of the real storescu."""
    return run_tool(
        "storescu", *options, "-aet", "MODALITY", "-aec", node.config.node.ae_title,
        "127.0.0.1", node.port, *paths, timeout_s=timeout_s,
    )  # fmt: skip


def orthanc_instances(orthanc):
    """Return ``{SOP Instance UID: Orthanc's id}``."""
    instances = orthanc.get("/instances?expand")
    return {each["MainDicomTags"]["SOPInstanceUID"]: each["ID"] for each in instances}


def fetch(orthanc, identifier, path):
    """Write the file that Orthanc stores under its id to `path`."""
    path.write_bytes(orthanc.get(f"/instances/{identifier}/file"))
    return path


def differences(original, restored):
    """Say how two files differ in a stored sample or an attribute; [] if they do not.

    The samples are compared as our decoder sees them and, where it can, as pydicom does.
    """
    found = []
    a, b = (open_instance(path, max_pixels=MAX_PIXELS) for path in (original, restored))
    with contextlib.closing(a), contextlib.closing(b):
        for number, (x, y) in enumerate(zip(a.frames(), b.frames(), strict=True), 1):
            if not np.array_equal(x.values, y.values):
                found.append(f"frame {number}: {int((x.values != y.values).sum())} samples")
            if not _equal(x.high_bits, y.high_bits):
                found.append(f"frame {number}: bits above Bits Stored")
        same_coding = a.transfer_syntax_uid == b.transfer_syntax_uid
    if same_coding:
        return found + _other_decoder(original, restored) + header_differences(original, restored)
    # What stood for the old coding may stand for the new one.
    return found + [
        line for line in header_differences(original, restored) if line[:11] not in _CODING
    ]


def _equal(x, y):
    if x is None or y is None:
        return x is y
    return np.array_equal(x, y)


def _other_decoder(original, restored):
    try:
        before = pixel_array(original, raw=True)
    except Exception:  # noqa: BLE001 - pydicom does not decode what ours does
        return []
    after = pixel_array(restored, raw=True)
    return [] if np.array_equal(before, after) else ["pixels, as pydicom decodes them"]


def header_differences(original, restored):
    """Return the attributes that differ, pixel data and File Meta Information aside."""
    a, b = (pydicom.dcmread(path, force=True) for path in (original, restored))
    found = []
    for tag in sorted({*a.keys(), *b.keys()} - _PIXEL_TAGS):
        if tag.element == 0:
            continue  # group lengths are retired, and say nothing
        if tag not in a or tag not in b:
            found.append(f"{tag} {'added' if tag in b else 'removed'}")
        elif _value(a, tag) != _value(b, tag):
            found.append(f"{tag} {_value(a, tag)!r} became {_value(b, tag)!r}"[:200])
    return found


def _value(ds, tag):
    try:
        if isinstance(ds[tag].value, bytes):
            value = ds[tag].value
            return ds[tag].VR, value + bytes(len(value) % 2)  # senders pad odd lengths
        return ds[tag].VR, ds[tag].to_json_dict(None, 0)
    except Exception:  # noqa: BLE001 - malformed values are compared as they lie in the file
        return ds.get_item(tag).value


def send_bytes(node, data_set, *, sop_class, sop_instance_uid, syntax):
    """Let pynetdicom send data set bytes as they are, under any UIDs; return the status."""
    path = node.folder / "to-send.dcm"
    path.write_bytes(encode_file_meta(sop_class, sop_instance_uid, syntax, "") + data_set)
    ae = AE("MODALITY")
    ae.add_requested_context(sop_class, syntax)
    assoc = ae.associate("127.0.0.1", node.port)
    assert assoc.is_established
    before, _config.STORE_SEND_CHUNKED_DATASET = _config.STORE_SEND_CHUNKED_DATASET, True
    try:
        return assoc.send_c_store(path).get("Status")
    finally:
        _config.STORE_SEND_CHUNKED_DATASET = before
        assoc.release()


def dciodvfy_errors(path):
    """Return dciodvfy's errors, without what only says where in the file they are."""
    done = run_tool("dciodvfy", path)
    lines = (done.stdout + done.stderr).splitlines()
    found = [re.sub(r"\s+", " ", line).strip() for line in lines if line.startswith("Error")]
    return {re.sub(r"Item \d+", "Item", line) for line in found}


def data_set_bytes(path):
    """Return what follows the File Meta Information of a file."""
    with path.open("rb") as file:
        file.seek(read_file_meta(file).data_set_offset)
        return file.read()


class StoreSCP:
    """DCMTK's storescp: takes every class in every transfer syntax and writes it bit for bit."""

    def __init__(self, folder, *options):
        self.options = options
        self.folder = folder / "storescp"
        self.folder.mkdir(parents=True)
        self.log = folder / "storescp.log"
        self.port = free_port()
        self.restart()

    def restart(self):
        options = ["+xa", "-pm", "+B", "+uf", "-od", self.folder, *self.options]
        self.child = Child([tool("storescp"), *options, self.port], self.log, {"TCP_NODELAY": "1"})
        wait_for(self._up, message=lambda: self.child.output)

    def _up(self):
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", self.port)).close()
            return True
        return False

    def stored(self):
        """Return ``{SOP Instance UID of the request: [files]}``."""
        found = {}
        for path in sorted(self.folder.iterdir()):
            with path.open("rb") as file:
                found.setdefault(read_file_meta(file).sop_instance_uid, []).append(path)
        return found


def ct(uid=None, *, size=64, seed=0, **attributes):
    """Return a small CT of smooth real-looking tissue."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CT, uid or generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3.1", "1.2.3.1.1"
    ds.PatientName, ds.PatientID, ds.Modality = "DOE^JANE", "P77", "CT"
    ds.Rows = ds.Columns = size
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
    ds.PixelRepresentation, ds.SamplesPerPixel = 0, 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    ds.WindowCenter, ds.WindowWidth = 40, 400
    y, x = np.mgrid[:size, :size]
    noise = np.random.default_rng(seed).normal(0, 8, (size, size))
    pixels = 1060 + 60 * np.sin(x / 9) * np.cos(y / 7) + noise
    ds.add_new(0x7FE00010, "OW", np.clip(pixels, 0, 4095).astype("<u2").tobytes())
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def save(ds, path, syntax=ExplicitVRLittleEndian):
    """Write a data set as a DICOM file and return its path."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(path, enforce_file_format=True)
    return path


def encoded(ds, *, implicit=False, little=True):
    stream = pydicom.filebase.DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = implicit, little
    pydicom.filewriter.write_dataset(stream, ds)
    return stream.getvalue()


@contextlib.contextmanager
def association(node):
    """Keep one association open; yields ``send(ds, sop_instance_uid=None) -> status``."""
    opened = StoreAssociation.open(
        "node", ("127.0.0.1", node.port), called_ae=node.config.node.ae_title,
        calling_ae="MODALITY", pairs=[(CT, ExplicitVRLittleEndian)], timeout_s=30,
    )  # fmt: skip

    def send(ds, sop_instance_uid=None):
        uid = str(ds.SOPInstanceUID) if sop_instance_uid is None else sop_instance_uid
        meta = FileMeta(CT, uid, ExplicitVRLittleEndian, 0)
        return opened.store(io.BytesIO(encoded(ds)), meta).status

    try:
        yield send
    finally:
        opened.release()


def delete(orthanc, path):
    """Remove something from an Orthanc."""
    request = urllib.request.Request(f"http://127.0.0.1:{orthanc.http}{path}", method="DELETE")
    urllib.request.urlopen(request, timeout=10).close()


def post(orthanc, path, body):
    """Post text to an Orthanc and return what it answers."""
    request = urllib.request.Request(f"http://127.0.0.1:{orthanc.http}{path}", body.encode())
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())
