"""An embedded PACS that is not ours: Orthanc where it is installed, else pynetdicom's qrscp."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dicom_node.demo.children import Child, StepFailed, wait_until
from dicom_node.demo.network import Peer, answers_echo

Choice = Literal["auto", "orthanc", "qrscp"]

_START_S = 60.0


@dataclass(frozen=True)
class Pacs:
    """A running PACS that answers C-ECHO, C-STORE, C-FIND and C-MOVE."""

    name: str
    peer: Peer
    child: Child


def start_pacs(
    choice: Choice, folder: Path, port: int, auditor: Peer, node_ae: str, started: list[Child]
) -> Pacs:
    """Start a PACS with its own configuration and an empty store below `folder`.

    Parameters
    ----------
    auditor
        The move destination it has to know.
    node_ae
        AE title that will store to it.
    started
        The child is appended here before anything can go wrong with it.

    Raises
    ------
    StepFailed
        If neither is installed, or it does not answer.
    """
    orthanc = _orthanc()
    if choice == "orthanc" and orthanc is None:
        raise StepFailed("Orthanc is not installed: apt-get install orthanc, or use --pacs qrscp")
    folder.mkdir()
    if orthanc is not None and choice != "qrscp":
        peer = Peer("ORTHANC", port)
        name, command = _configure_orthanc(orthanc, folder, peer, auditor, node_ae)
    else:
        peer = Peer("QRSCP", port)
        name, command = _configure_qrscp(folder, peer, auditor)
    # Without it, Nagle and our delayed ACK stall both peers about 50 ms per instance.
    child = Child(name, command, folder.parent / "pacs.log", extra={"TCP_NODELAY": "1"})
    started.append(child)
    wait_until(lambda: answers_echo(peer), _START_S, f"{name} answers C-ECHO", [child])
    return Pacs(name, peer, child)


def _orthanc() -> str | None:
    # Debian keeps it where only root's PATH leads.
    return shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")


def _configure_orthanc(
    program: str, folder: Path, peer: Peer, auditor: Peer, node_ae: str
) -> tuple[str, list[str]]:
    settings = {
        "Name": "dicom-node demo",
        "StorageDirectory": str(folder / "store"),
        "IndexDirectory": str(folder / "store"),
        "DicomAet": peer.ae_title,
        "DicomPort": peer.port,
        "HttpServerEnabled": False,
        "Plugins": [],
        "DicomCheckCalledAet": True,
        # On loopback, and for the two of us only.
        "DicomAlwaysAllowStore": False,
        "DicomCheckModalityHost": True,
        "DicomModalities": {
            "auditor": [auditor.ae_title, auditor.host, auditor.port],
            "node": [node_ae, "127.0.0.1", 104],
        },
    }
    path = folder / "orthanc.json"
    path.write_text(json.dumps(settings, indent=1), "utf-8")
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    version = re.search(r"\d+\.\d+\.\d+", said.stdout)
    return f"Orthanc {version.group() if version else ''}".strip(), [program, str(path)]


def _configure_qrscp(folder: Path, peer: Peer, auditor: Peer) -> tuple[str, list[str]]:
    if importlib.util.find_spec("sqlalchemy") is None:
        raise StepFailed(
            "no PACS to show: Orthanc is not installed, and pynetdicom's qrscp needs sqlalchemy; "
            "apt-get install orthanc, or pip install sqlalchemy"
        )
    path = folder / "qrscp.ini"
    path.write_text(
        f"""[DEFAULT]
ae_title: {peer.ae_title}
port: {peer.port}
bind_address: {peer.host}
max_pdu: 131072
acse_timeout: 30
dimse_timeout: 30
network_timeout: 30
instance_location: {folder / "store"}
database_location: {folder / "index.sqlite"}

[{auditor.ae_title}]
address: {auditor.host}
port: {auditor.port}
""",
        "utf-8",
    )
    command = [sys.executable, "-m", "pynetdicom", "qrscp", "--config", str(path)]
    return "pynetdicom's qrscp", command
