"""Real peers on free loopback ports, started by fixtures and ended by them.

A missing tool skips its tests, loudly; with DICOM_NODE_REQUIRE_PEERS=1 it fails them.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from peer_tools import PACKAGES, free_port, needed
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from dicom_node.config import Config, load
from dicom_node.spool import Spool

CHILDREN = Path(__file__).with_name("children.py")
CT = "1.2.840.10008.5.1.4.1.1.2"


def wait_for(condition, timeout_s=60.0, message="it did not happen"):
    """Wait until `condition()` is true and return its value."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, message() if callable(message) else message
        time.sleep(0.02)
    return value


def tool(name):
    """Return the path of an installed peer, or skip (fail where peers are required)."""
    return needed(name)


def run_tool(name, *arguments, timeout_s=60):
    """Run a DCMTK program as a modality would, and return its completed process."""
    return subprocess.run(
        [tool(name), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env={**os.environ, "TCP_NODELAY": "1"},
    )


@pytest.fixture(name="wait_for")
def _wait_for():
    return wait_for


@pytest.fixture
def dcmtk():
    """Return a function that runs a DCMTK program: ``dcmtk("storescu", host, port, path)``."""
    return run_tool


class Child:
    """A child process with its output in a file."""

    def __init__(self, command, log, env=None):
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                list(map(str, command)),
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": PACKAGES, **(env or {})},
            )

    @property
    def output(self):
        return self.log.read_text(errors="replace")

    def end(self, timeout_s=25):
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def kill(self):
        self.process.kill()
        self.process.wait()


@dataclass
class Node:
    """A receiver and forwarders as processes of their own, around one spool."""

    folder: Path
    config_path: Path
    config: Config
    children: list = field(default_factory=list)

    @property
    def port(self):
        return self.config.node.port

    @property
    def ae_title(self):
        return self.config.node.ae_title

    def _start(self, *arguments):
        log = self.folder / f"{'-'.join([arguments[0], *arguments[2:]])}-{len(self.children)}.log"
        child = Child([sys.executable, CHILDREN, *arguments], log)
        self.children.append(child)
        return child

    def receive(self):
        child = self._start("receive", str(self.config_path))
        wait_for(lambda: "ready" in child.output or child.process.poll() is not None)
        assert "ready" in child.output, child.output
        return child

    def forward(self, name="pacs"):
        return self._start("forward", str(self.config_path), name)

    @contextlib.contextmanager
    def spool(self):
        with Spool(self.config.spool) as spool:
            yield spool

    def jobs(self):
        with self.spool() as spool:
            return spool.jobs()

    def deliveries(self):
        with self.spool() as spool:
            return [d for job in spool.jobs() for d in spool.deliveries(job.id)]

    def files(self):
        """Every instance file and temporary file below the spool."""
        return [
            path
            for path in self.config.spool.directory.rglob("*")
            if path.is_file() and "journal" not in path.name and path.name != "alive"
        ]

    def output(self):
        return "\n".join(child.output for child in self.children)


@pytest.fixture
def node(tmp_path):
    """Return a function that makes a `Node`: ``node(destinations=[...], node={...}, ...)``."""
    made = []

    def make(destinations=(), marking=False, **sections):
        folder = tmp_path / f"node{len(made)}"
        folder.mkdir()
        settings = {
            "node": {"bind": "127.0.0.1", "port": free_port(), "association_timeout_s": 10},
            "spool": {"directory": str(folder / "spool"), "min_free_mib": 16},
            "watermark": {"enabled": marking},
        }
        for name, values in sections.items():
            settings[name] |= values
        lines = []
        for name, values in settings.items():
            lines += [
                f"[{name}]",
                *(f"{key} = {json.dumps(value)}" for key, value in values.items()),
            ]
        for destination in destinations:
            defaults = {
                "name": "pacs",
                "ae_title": "PACS",
                "host": "127.0.0.1",
                "timeout_s": 5,
                "retry_initial_s": 0.2,
                "retry_max_s": 1.0,
            }
            values = defaults | destination
            lines += ["[[destination]]", *(f"{k} = {json.dumps(v)}" for k, v in values.items())]
        path = folder / "node.toml"
        path.write_text("\n".join(lines) + "\n")
        one = Node(folder, path, load(path))
        made.append(one)
        return one

    yield make
    for one in made:
        for child in one.children:
            child.end()


class Pacs:
    """pynetdicom's Storage SCP in a mode of ``children.py``."""

    def __init__(self, folder):
        self.port = free_port()
        self.folder = folder
        self.log = folder / f"pacs-{self.port}.txt"
        self.child = None
        self.starts = 0

    def start(self, mode="ok"):
        self.starts += 1
        output = self.folder / f"pacs-{self.port}-{self.starts}.log"
        command = [sys.executable, CHILDREN, "pacs", self.port, mode, self.log]
        self.child = Child(command, output)
        wait_for(lambda: "ready" in self.child.output, message=lambda: self.child.output)
        return self

    def stop(self):
        if self.child is not None:
            self.child.kill()
            self.child = None

    def stored(self):
        """Return ``(UID, transfer syntax, SHA-256 of the data set)`` in order of arrival."""
        if not self.log.exists():
            return []
        return [tuple(line.split()) for line in self.log.read_text().splitlines()]


@pytest.fixture
def pacs(tmp_path):
    """Return a function that makes a `Pacs`; ``mode=None`` leaves it down."""
    made = []

    def make(mode="ok"):
        one = Pacs(tmp_path)
        made.append(one)
        return one.start(mode) if mode else one

    yield make
    for one in made:
        one.stop()


class Orthanc:
    """A real Orthanc with its own folder."""

    def __init__(self, folder):
        self.folder = folder / "orthanc"
        self.folder.mkdir()
        self.port, self.http = free_port(), free_port()
        settings = {
            "Name": "tests",
            "StorageDirectory": str(self.folder),
            "IndexDirectory": str(self.folder),
            "HttpPort": self.http,
            "DicomPort": self.port,
            "DicomAet": "ORTHANC",
            "DicomCheckCalledAet": False,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "Plugins": [],
            "UnknownSopClassAccepted": True,
        }
        path = self.folder / "orthanc.json"
        path.write_text(json.dumps(settings))
        self.child = Child([tool("Orthanc"), path], folder / "orthanc.log", {"TCP_NODELAY": "1"})
        wait_for(self._up, message=lambda: self.child.output)

    def _up(self):
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            return self.get("/system")

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=10) as answer:
            body = answer.read()
        return json.loads(body) if "json" in answer.headers["Content-Type"] else body

    def count(self):
        return self.get("/statistics")["CountInstances"]


@pytest.fixture
def orthanc(tmp_path):
    one = Orthanc(tmp_path)
    yield one
    one.child.kill()


@pytest.fixture
def dcmtk_storescp(tmp_path):
    """Return a function that starts storescp: ``port, folder = dcmtk_storescp("+xs")``."""
    made = []

    def make(*options):
        folder = tmp_path / f"storescp{len(made)}"
        folder.mkdir()
        port = free_port()
        child = Child(
            [tool("storescp"), *options, "-od", folder, port], tmp_path / f"storescp{len(made)}.log"
        )
        made.append(child)

        def up():
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()
                return True
            return False

        wait_for(up)
        return port, folder

    yield make
    for child in made:
        child.kill()


@pytest.fixture
def make_ct(tmp_path):
    """Return a function that writes a CT of random pixels: ``make_ct(uid=None, size=64)``."""
    folder = tmp_path / "sent"
    folder.mkdir()
    random = np.random.default_rng(5)

    def make(uid=None, *, size=64, sop_class=CT, syntax=ExplicitVRLittleEndian, name=None):
        uid = uid or generate_uid()
        ds = Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID = sop_class, uid
        ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3.1", "1.2.3.1.1"
        ds.PatientName, ds.PatientID, ds.Modality = "DOE^JANE", "P77", "CT"
        ds.Rows = ds.Columns = size
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
        ds.PixelRepresentation, ds.SamplesPerPixel = 0, 1
        ds.PhotometricInterpretation = "MONOCHROME2"
        pixels = random.integers(0, 4096, (size, size), dtype=np.uint16)
        ds.add_new(0x7FE00010, "OW", pixels.tobytes())
        ds.file_meta = FileMetaDataset()
        ds.file_meta.MediaStorageSOPClassUID = sop_class
        ds.file_meta.MediaStorageSOPInstanceUID = uid
        ds.file_meta.TransferSyntaxUID = syntax
        path = folder / (name or f"{len(list(folder.iterdir())):04}.dcm")
        ds.save_as(path, enforce_file_format=True)
        return path

    return make
