"""Run child processes and keep them running: start, restart with backoff, drain.

Knows nothing of DICOM; `node` says which roles there are.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_any
from types import FrameType
from typing import Any, Protocol

import structlog

from dicom_node import logging
from dicom_node.errors import ConfigError, NodeError

_log = structlog.get_logger(__name__)

EXIT_CONFIG = 2
EXIT_FAILED = 3

_TICK_S = 0.25
_BACKOFF_INITIAL_S = 0.25
_BACKOFF_MAX_S = 10.0
_STABLE_S = 10.0
_RECYCLED_S = 1.0
_START_TRIES = 4


class StopEvent(Protocol):
    """What a role looks at between two steps; `threading.Event` fits."""

    def is_set(self) -> bool:
        """Say whether to stop now."""


@dataclass(frozen=True)
class Role:
    """One kind of work for one child process.

    `target` is called as ``target(*args, stop=Event, ready=function)`` in a fresh interpreter; it
    calls ``ready()`` when it works and returns soon after `stop` is set. A role that returns by
    itself is started again. With `retry_start`, a failing first start is tried again a few times (a
    port may still be held by the process that was killed before us). One that is not `essential` is
    not waited for, and tried again for ever: images pass without it. `longest_backoff_s` is the
    longest it waits between two tries.
    """

    name: str
    target: Callable[..., None]
    args: tuple[Any, ...] = ()
    retry_start: bool = False
    essential: bool = True
    longest_backoff_s: float = _BACKOFF_MAX_S


@dataclass
class _Child:
    role: Role
    process: Any = None
    pipe: Connection | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    failures: int = 0
    ready: bool = False
    was_ready: bool = False
    problem: tuple[int, str] | None = field(default=None)


class Supervisor:
    """Starts every role in a process of its own and looks after them until told to stop.

    Parameters
    ----------
    environment
        Environment variables of the children.
    shutdown_timeout_s
        How long a drain may take before what is left is killed.
    on_death
        Called after a child ended unasked, before it is started again.
    on_kill
        Called once, after a drain that had to kill children; before the first is killed `on_death`
        is called, so that what ended by itself can be told from what we ended.
    on_ready
        Called once, when every essential role is ready for the first time.
    """

    def __init__(
        self,
        roles: Sequence[Role],
        *,
        environment: Mapping[str, str],
        shutdown_timeout_s: float,
        on_death: Callable[[], None] = lambda: None,
        on_kill: Callable[[], None] = lambda: None,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._children = [_Child(role) for role in roles]
        self._environment = dict(environment)
        self._shutdown_timeout_s = shutdown_timeout_s
        self._on_death = on_death
        self._on_kill = on_kill
        self._on_ready = on_ready
        self._signals = 0
        self._announced = False

    def run(self) -> int:
        """Supervise until SIGTERM or SIGINT, or until a role cannot start; return the exit code."""
        before = {s: signal.signal(s, self._signalled) for s in (signal.SIGTERM, signal.SIGINT)}
        os.environ.update(self._environment)
        code = 0
        try:
            while not self._signals and not code:
                for child in self._children:
                    if child.process is None and time.monotonic() >= child.start_at:
                        self._start(child)
                self._listen()
                code = self._reap()
        finally:
            self._drain()
            for number, handler in before.items():
                signal.signal(number, handler)
        return code

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        self._signals += 1

    def _start(self, child: _Child) -> None:
        # spawn: a forked child would share locks, connections and the random state with us.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        child.process = context.Process(
            target=_child_main, args=(child.role, theirs), name=child.role.name, daemon=True
        )
        child.process.start()
        theirs.close()
        child.pipe, child.started_at, child.ready = ours, time.monotonic(), False
        _log.info("process_started", role=child.role.name, pid=child.process.pid)

    def _listen(self) -> None:
        running = [child for child in self._children if child.process is not None]
        watched = [c.process.sentinel for c in running] + [c.pipe for c in running if c.pipe]
        wait_any(watched, timeout=_TICK_S)
        for child in running:
            while child.pipe is not None and child.pipe.poll():
                try:
                    message = child.pipe.recv()
                except (EOFError, OSError):
                    child.pipe.close()
                    child.pipe = None
                    break
                if message == "ready":
                    child.ready = child.was_ready = True
                else:
                    child.problem = message
        needed = [child for child in self._children if child.role.essential] or self._children
        if not self._announced and all(child.ready for child in needed):
            self._announced = True
            self._on_ready()

    def _reap(self) -> int:
        """Take note of children that ended; return an exit code if the node cannot go on."""
        for child in self._children:
            if child.process is None or child.process.is_alive():
                continue
            ended = child.process.exitcode
            lived_s = time.monotonic() - child.started_at
            child.process = None
            if self._signals:
                continue
            fine = lived_s > (_RECYCLED_S if ended == 0 else _STABLE_S)
            child.failures = 0 if fine else child.failures + 1
            delay_s = 0.0
            if child.failures:
                # Bounded before it is raised: failures have no end.
                doubled_s = _BACKOFF_INITIAL_S * 2.0 ** min(child.failures - 1, 20)
                delay_s = min(child.role.longest_backoff_s, doubled_s)
            child.start_at = time.monotonic() + delay_s
            code, reason = child.problem or (EXIT_FAILED, "")
            child.problem = None
            _log.warning(
                "process_ended",
                role=child.role.name,
                exit_code=ended,
                reason=reason,
                restart_in_s=delay_s,
            )
            self._on_death()
            tries = _START_TRIES if child.role.retry_start else 1
            given_up = child.role.essential or len(self._children) == 1
            if given_up and not child.was_ready and ended != 0 and child.failures >= tries:
                _log.error("cannot_start", role=child.role.name, reason=reason)
                return code
        return 0

    def _drain(self) -> None:
        """Ask every child to finish what it has in hand; kill what does not end in time."""
        running = [child for child in self._children if child.process is not None]
        for child in running:
            child.process.terminate()
        deadline = time.monotonic() + self._shutdown_timeout_s
        asked = self._signals
        while any(child.process.is_alive() for child in running):
            if time.monotonic() > deadline or self._signals > max(asked, 1):
                break
            wait_any([c.process.sentinel for c in running if c.process.is_alive()], _TICK_S)
        late = [child for child in running if child.process.is_alive()]
        if late:
            self._on_death()
        for child in late:
            _log.error("process_killed", role=child.role.name, pid=child.process.pid)
            child.process.kill()
        for child in running:
            child.process.join()
        if late:
            self._on_kill()


def _child_main(role: Role, pipe: Connection) -> None:
    """Be one role in a fresh interpreter."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    logging.configure()
    structlog.contextvars.bind_contextvars(role=role.name)

    def follow_parent() -> None:
        # End of file: the supervisor is gone, and nobody would ever stop us.
        try:
            pipe.recv()
        except (EOFError, OSError):
            stop.set()

    def report(message: object) -> None:
        try:
            pipe.send(message)
        except OSError:
            stop.set()

    threading.Thread(target=follow_parent, daemon=True).start()
    try:
        role.target(*role.args, stop=stop, ready=lambda: report("ready"))
    except NodeError as error:
        _log.error("process_failed", reason=str(error))
        code = EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_FAILED
        report((code, str(error)))
        sys.exit(code)
    except Exception:  # noqa: BLE001 - the last line of the process
        _log.exception("process_failed")
        sys.exit(EXIT_FAILED)


def notify_systemd(state: str) -> None:
    """Tell systemd, if it asked to be told (sd_notify(3)): ``READY=1`` or ``STOPPING=1``."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        try:
            channel.connect(address)
            channel.sendall(state.encode())
        except OSError as error:
            _log.warning("systemd_not_notified", reason=error.strerror)
