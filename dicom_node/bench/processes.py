"""The processes a throughput run starts: real Orthanc servers, the node, a real storescu."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dicom_node.config import environment
from dicom_node.errors import ConfigError, NodeError

_TICKS = os.sysconf("SC_CLK_TCK")
_START_S = 60.0
_STOP_S = 30.0
_PLACES = "/usr/sbin:/usr/local/sbin"  # where Debian puts Orthanc, not always on PATH
# No Delete() after it: that makes Orthanc 1.10 three times slower, and this the stronger baseline.
_AUTO_ROUTE = """
function OnStoredInstance(instanceId, tags, metadata, origin)
  SendToModality(instanceId, '{modality}')
end
"""


@dataclass(frozen=True)
class Usage:
    """What one process used: CPU seconds so far, and its largest resident memory in MiB."""

    cpu_s: float
    peak_mib: float


@dataclass
class Child:
    """A process started here, with its log."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    _last: dict[str, Usage] = field(default_factory=dict)

    def check(self) -> None:
        """Raise NodeError if it has ended."""
        code = self.process.poll()
        if code is not None:
            tail = "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-8:])
            raise NodeError(f"{self.name} ended with code {code}:\n{tail}")

    def sample(self, names: dict[int, str] | None = None) -> dict[str, Usage]:
        """Return usage by process name, of this process and of its children in `names` (by pid).

        A process that has ended keeps what it had when last seen.
        """
        for pid, name in {self.process.pid: self.name, **(names or {})}.items():
            used = usage_of(pid)
            if used is not None:
                self._last[f"{name}#{pid}"] = used
        merged: dict[str, Usage] = {}
        for key, used in self._last.items():
            name = key.partition("#")[0]
            before = merged.get(name, Usage(0.0, 0.0))
            merged[name] = Usage(
                before.cpu_s + used.cpu_s, max(before.peak_mib, used.peak_mib)
            )
        return merged

    def stop(self) -> None:
        """End it, by force if it does not end by itself; idempotent."""
        if self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def usage_of(pid: int) -> Usage | None:
    """Return what a process used so far; None if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
        status = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
    except OSError:
        return None
    # The name in brackets may hold blanks; utime and stime are fields 14 and 15 (proc(5)).
    fields = stat.rpartition(")")[2].split()
    peak = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return Usage((int(fields[11]) + int(fields[12])) / _TICKS, int(peak[0]) / 1024 if peak else 0.0)


def tool(name: str) -> str:
    """Return the path of a program that must be installed (ConfigError)."""
    found = shutil.which(name) or shutil.which(name, path=_PLACES)
    if found is None:
        raise ConfigError(f"{name} is not installed; run 'apt-get install orthanc dcmtk'")
    return found


def free_port() -> int:
    """Return a TCP port on the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Orthanc:
    """One Orthanc server with its own storage."""

    child: Child
    dicom_port: int
    http_port: int

    def count(self) -> int:
        """Return how many instances it has stored."""
        return int(self._get("/statistics")["CountInstances"])

    def files(self, most: int) -> Iterator[bytes]:
        """Yield the files of `most` of its instances, as stored."""
        for each in self._get("/instances")[:most]:
            with urllib.request.urlopen(self._url(f"/instances/{each}/file")) as reply:  # noqa: S310
                yield reply.read()

    def ready(self) -> bool:
        """Whether it answers HTTP."""
        self.child.check()
        try:
            self._get("/system")
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
        return True

    def _get(self, path: str):  # type: ignore[no-untyped-def] # whatever JSON it answers
        with urllib.request.urlopen(self._url(path), timeout=10) as reply:  # noqa: S310 - loopback
            return json.load(reply)

    def _url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http_port}{path}"


@contextmanager
def orthanc(
    name: str, folder: Path, route_to: tuple[str, int] | None = None
) -> Iterator[Orthanc]:
    """Run an Orthanc until the block ends.

    Parameters
    ----------
    route_to
        AE title and port of a Storage SCP: every instance is sent there by a Lua script, and kept.
    """
    folder.mkdir(parents=True)
    settings: dict[str, object] = {
        "Name": name,
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "DicomAet": name.upper(),
        "DicomPort": (dicom_port := free_port()),
        "HttpPort": (http_port := free_port()),
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomCheckCalledAet": False,
        "DicomAlwaysAllowStore": True,
        "Plugins": [],
        "LuaScripts": [],
        "SaveJobs": False,
    }
    if route_to is not None:
        script = folder / "route.lua"
        script.write_text(_AUTO_ROUTE.format(modality="pacs"), "ascii")
        settings["LuaScripts"] = [str(script)]
        settings["DicomModalities"] = {"pacs": [route_to[0], "127.0.0.1", route_to[1]]}
    configuration = folder / "orthanc.json"
    configuration.write_text(json.dumps(settings), "utf-8")
    with _started(name, [tool("Orthanc"), str(configuration)], folder / "log") as child:
        server = Orthanc(child, dicom_port, http_port)
        wait_for(server.ready, _START_S, f"{name} does not answer", every_s=0.1)
        yield server


@dataclass
class Node:
    """A running ``dicom-node serve``."""

    child: Child
    dicom_port: int

    def events(self) -> Iterator[dict[str, object]]:
        """Yield the lines of its log."""
        for line in self.child.log.read_text("utf-8", "replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                event = json.loads(line)
                if isinstance(event, dict):
                    yield event

    def roles(self) -> dict[int, str]:
        """Return the name of every process it started, by pid; numbered ones under one name."""
        started = [event for event in self.events() if event.get("event") == "process_started"]
        return {
            int(str(event["pid"])): str(event["role"]).split("-")[0] for event in started
        }

    def sample(self) -> dict[str, Usage]:
        """Return the usage of its processes by role."""
        return self.child.sample(self.roles())


@contextmanager
def node(folder: Path, pacs: Orthanc, *, marking: bool) -> Iterator[Node]:
    """Run the node in front of `pacs` until the block ends."""
    folder.mkdir(parents=True)
    port = free_port()
    configuration = folder / "node.toml"
    configuration.write_text(
        f"""
[node]
ae_title = "DICOMNODE"
bind = "127.0.0.1"
port = {port}
[spool]
directory = {json.dumps(str(folder / "spool"))}
min_free_mib = 256
[keys]
directory = {json.dumps(str(folder / "keys"))}
[watermark]
enabled = {str(marking).lower()}
[[destination]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {pacs.dicom_port}
""",
        "utf-8",
    )
    command = [sys.executable, "-m", "dicom_node.cli.main", "serve", "--config", str(configuration)]
    with _started("node", command, folder / "log") as child:
        running = Node(child, port)

        def ready() -> bool:
            child.check()
            return b"ready:" in child.log.read_bytes()

        wait_for(ready, _START_S, "the node does not become ready", every_s=0.1)
        yield running


def storescu(port: int, called_ae: str, folder: Path) -> tuple[subprocess.Popen[bytes], float]:
    """Start sending every file below `folder`; return the process and the time it began."""
    command = [tool("storescu"), "-aet", "MODALITY", "-aec", called_ae, "+sd", "+r",
               "127.0.0.1", str(port), str(folder)]  # fmt: skip
    with (folder.parent / "storescu.log").open("wb") as log:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=log, env=_peer_environment())
    return process, began


def reaped_cpu_s() -> float:
    """Return the CPU seconds of all children of this process that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime


def wait_for(
    condition: Callable[[], bool], timeout_s: float, message: str, *, every_s: float
) -> None:
    """Wait until `condition` holds (NodeError with `message` when it takes too long)."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise NodeError(f"{message} after {timeout_s:.0f} s")
        time.sleep(every_s)


@contextmanager
def _started(name: str, command: Sequence[str], log: Path) -> Iterator[Child]:
    with log.open("wb") as stream:
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
            env=_peer_environment(),
        )  # fmt: skip
    child = Child(name, process, log)
    try:
        yield child
    finally:
        child.stop()


def _peer_environment() -> dict[str, str]:
    """One thread per library, and DCMTK without Nagle's algorithm (it costs 40 ms an instance)."""
    return {**environment(), "TCP_NODELAY": "1"}
