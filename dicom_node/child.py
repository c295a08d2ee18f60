"""A process for what may bring a process down: a child that does one task after another.

A codec that never returns ends its process, and a hostile image may crash one. What decodes images
that nobody has judged yet, beside anything that must go on, is done in here. A child is a fresh
interpreter behind a pipe: it reads what it needs to begin, then tasks, and answers each; it ends
when the other end is closed. What it does is a module's ``begin(setup)``, which returns what does a
task.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import structlog

from dicom_node import logging
from dicom_node.config import environment
from dicom_node.errors import EngineError, NodeError

log = structlog.get_logger(__name__)

_START_S = 120.0
_END_S = 10.0
_STEP_S = 0.25
# Sent from outside: they say nothing of the task.
_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)


class ChildEnded(NodeError):
    """A child ended or hung over a task; `killed`: from outside, which says nothing of the task."""

    def __init__(self, reason: str, *, killed: bool = False) -> None:
        super().__init__(reason)
        self.killed = killed


def main(module: str, descriptor: int) -> None:
    """Do tasks that come over a connection until it ends."""
    # The parent drains and then closes the connection; a signal to the group must not come first.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(descriptor)
    try:
        level, setup = connection.recv()
        logging.configure(level=level)
        work = _answer(lambda setup: _begun(module, setup), setup)
        if isinstance(work, NodeError):
            connection.send(str(work))
            return
        connection.send(None)
        while True:
            connection.send(_answer(work, connection.recv()))
    except (EOFError, OSError):
        return  # the parent is gone or has no more work


def _begun(module: str, setup: object) -> Any:
    try:
        return importlib.import_module(module).begin(setup)
    except NodeError as error:
        return error


def _answer(work: Callable[[Any], Any], task: object) -> Any:
    try:
        return work(task)
    except Exception:
        # Said here: a traceback would quote the data set it failed on.
        log.exception("task_failed")
        sys.exit(os.EX_SOFTWARE)


class Child:
    """One process and the pipe to it.

    Parameters
    ----------
    module
        What it runs: its ``begin`` is given the setup; a NodeError it raises is told to us.
    setup
        What it needs to begin.
    """

    def __init__(self, module: str, setup: object) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        path = os.pathsep.join(each for each in sys.path if each)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dicom_node.child", module, str(theirs.fileno())],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                env={**environment(), "PYTHONPATH": path},
            )  # fmt: skip
        self._setup = setup

    def await_ready(self) -> None:
        """Wait until it can begin (EngineError)."""
        try:
            self._pipe.send((logging.level(), self._setup))
            if not self._pipe.poll(_START_S):
                raise EngineError(f"a worker process is not ready after {_START_S:g} s")
            problem = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise EngineError(f"a worker process ended on starting: {self._how()}") from error
        if problem is not None:
            raise EngineError(str(problem))

    def ask(
        self, task: object, limit_s: float, watch: Callable[[], object] = lambda: None
    ) -> Any:
        """Return its answer to a task; `watch` is called while it works, and may raise.

        Raises
        ------
        ChildEnded
            If there is none: it ended, or took longer than `limit_s`.
        """
        deadline = time.monotonic() + limit_s
        self._hear(lambda: self._pipe.send(task))
        while not self._hear(lambda: self._pipe.poll(_STEP_S)):
            if time.monotonic() > deadline:
                raise ChildEnded(f"did not end within {limit_s:g} s")
            watch()
        return self._hear(self._pipe.recv)

    def _hear(self, speak: Callable[[], Any]) -> Any:
        try:
            return speak()
        except (EOFError, OSError) as error:
            how, killed = self._how(), self._process.returncode in _FROM_OUTSIDE
            raise ChildEnded(f"ended its process: {how}", killed=killed) from error
        except Exception as error:  # unpickling raises nearly anything
            raise ChildEnded(f"gave no answer: {type(error).__name__}") from error

    def kill(self) -> None:
        """End it at once, whatever it does; who asks it something finds out."""
        self._process.kill()

    def end(self) -> None:
        """Close the pipe, which ends an idle child; kill one that is not."""
        self._pipe.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _how(self) -> str:
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return "it does not answer"
        if code == -signal.SIGPROF:
            return "a decoder did not come back (SIGPROF)"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


class Workplace:
    """One child at a time: begun when there is something to do, another one after it ended.

    Threads may share it; each waits for its turn.

    Parameters
    ----------
    module
        What children run.
    setup
        Returns what a child needs to begin, asked for each.
    limit_s
        Longest time for one task.
    """

    def __init__(self, module: str, setup: Callable[[], object], limit_s: float) -> None:
        self._module, self._setup, self._limit_s = module, setup, limit_s
        self._turn = threading.Lock()
        self._child: Child | None = None

    def begin(self) -> None:
        """Begin a child now, to know that it can (EngineError)."""
        if self._child is None:
            child = Child(self._module, self._setup())
            try:
                child.await_ready()
            except BaseException:
                child.kill()
                child.end()
                raise
            self._child = child

    def do(self, task: object, watch: Callable[[], object] = lambda: None) -> Any:
        """Return the answer to a task; `watch` is called while that is waited for, and may raise.

        Raises
        ------
        ChildEnded
            If there is none; the next task gets another child.
        EngineError
            If none can begin.
        """
        while not self._turn.acquire(timeout=_STEP_S):
            watch()
        try:
            self.begin()
            assert self._child is not None, "begun"
            return self._child.ask(task, self._limit_s, watch)
        except ChildEnded as error:
            log.warning("worker process ended", reason=str(error))
            self._drop()
            raise
        except BaseException:
            self._drop()  # what it does now is nobody's any more
            raise
        finally:
            self._turn.release()

    def close(self) -> None:
        """End the child, whatever it does."""
        child = self._child
        if child is not None:
            child.kill()
        with self._turn:
            self._drop()

    def _drop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
