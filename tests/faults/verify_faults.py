"""A client of the verification service, a port that hangs, its workers, and what it left behind."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path

from pynetdicom.sop_class import CTImageStorage
from verifying import STUDY_GET, client

_HANGING = []


def hanging_port():
    """Return a port whose connections are taken and never answered."""
    listener = socket.create_server(("127.0.0.1", 0))
    _HANGING.append(listener)
    return listener.getsockname()[1]


def left(service):
    names = ("association", "fetch", "move to")
    threads = [t.name for t in threading.enumerate() if t.name.startswith(names)]
    # pynetdicom's own threads belong to the archive and the clients of these tests.
    return threads + service.scratch()


def get(service, identifier, on_store=lambda event: 0x0000):
    with client(service, STUDY_GET, storage=[CTImageStorage], on_store=on_store) as assoc:
        answers = list(assoc.send_c_get(identifier, STUDY_GET))
    return answers[-1]


def checking_workers():
    """Return the process ids of the workers that check for a service of this process."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            command = (process / "cmdline").read_bytes()
            if int(parent) == os.getpid() and b"checking_worker" in command:
                found.append(int(process.name))
    return found
