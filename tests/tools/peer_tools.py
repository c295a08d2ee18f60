"""Programs that tests run beside ours: skipped loudly where missing, failed where required."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

import dicom_node

PACKAGES = str(Path(dicom_node.__file__).parents[1])
"""Where the package under test was imported from; children get it on their PYTHONPATH."""
SYSTEM = "/usr/sbin:/usr/local/sbin"
_PORTS = range(16384, 32768)


def needed(
    tool: str, unchecked: str = "its tests do not run; `make peers` installs it",
    beside: str = SYSTEM,
) -> str:  # fmt: skip
    """Return the path of a program on PATH or `beside`; without it the test ends in `missing`."""
    path = shutil.which(tool) or shutil.which(tool, path=beside)
    return path or missing(f"{tool.upper()} IS MISSING: {unchecked}")


def missing(said: str) -> NoReturn:
    """Skip, or fail with DICOM_NODE_REQUIRE_PEERS=1."""
    if os.environ.get("DICOM_NODE_REQUIRE_PEERS"):
        pytest.fail(said)
    pytest.skip(said)


def free_port() -> int:
    """Return a free TCP port of this machine, none twice and none of another test process.

    Linux takes the ports of connections from 32768 upwards, so that none takes this one before
    the program starts that it is for.
    """
    for port in _ports:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:  # another program's
                continue
            return port
    raise AssertionError("the ports of this test process are used up")


def _own_ports() -> Iterator[int]:
    """Yield the ports of this test process: each of several (xdist) has every n-th."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    own = _PORTS[number :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))]
    first = os.getpid() % len(own)  # two runs on one machine begin apart
    return itertools.chain(own[first:], own[:first])


_ports = _own_ports()
