"""Child processes of the demonstration: started with a log each, and ended in every case."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import dicom_node
from dicom_node.config import environment
from dicom_node.errors import NodeError

_POLL_S = 0.05
_STOP_S = 30.0  # the node may take 20 s to drain


class StepFailed(NodeError):
    """A step of the demonstration did not hold; the message says what was seen instead."""


class Child:
    """One process in a session of its own, its output in a file.

    Parameters
    ----------
    name
        What the reader calls it.
    log
        File that gets standard output and standard error.

    Raises
    ------
    StepFailed
        If it cannot be started.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        *,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = log
        try:
            with log.open("wb") as output:
                # Its own session: Ctrl-C reaches us alone, and we end the others in order.
                self._process = subprocess.Popen(
                    list(command), stdin=subprocess.DEVNULL, stdout=output,
                    stderr=subprocess.STDOUT, cwd=log.parent, start_new_session=True,
                    env=_child_environment() | dict(extra or {}),
                )  # fmt: skip
        except OSError as error:
            raise StepFailed(f"{name} cannot be started: {error.strerror or error}") from error

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def output(self) -> str:
        """Return what it has printed so far."""
        return self.log.read_text("utf-8", "replace")

    def stop(self) -> int:
        """Ask it to end, kill it if it does not, with whatever it started; return its exit code."""
        deadline = time.monotonic() + _STOP_S
        self._process.terminate()
        while self._process.returncode is None:
            # Looked at but not reaped: until then nobody else can get the number of its group.
            ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None and time.monotonic() < deadline:
                time.sleep(_POLL_S)
                continue
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        return self._process.returncode


def wait_until(
    reached: Callable[[], bool], timeout_s: float, what: str, children: Sequence[Child] = ()
) -> None:
    """Wait until `reached()` is true.

    Raises
    ------
    StepFailed
        After `timeout_s`, or at once when one of `children` has ended.
    """
    deadline = time.monotonic() + timeout_s
    while not reached():
        for child in children:
            if not child.running:
                raise StepFailed(f"{child.name} ended while waiting until {what}")
        if time.monotonic() > deadline:
            raise StepFailed(f"waited {timeout_s:g} s in vain until {what}")
        time.sleep(_POLL_S)


def free_ports(count: int) -> list[int]:
    """Return loopback TCP ports that were free a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _child_environment() -> dict[str, str]:
    """Return an environment in which a child imports this very package."""
    here = str(Path(dicom_node.__file__).parents[1])
    known = os.environ.get("PYTHONPATH")
    return environment() | {"PYTHONPATH": f"{here}{os.pathsep}{known}" if known else here}
