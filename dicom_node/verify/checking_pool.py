"""Checks in worker processes: as many at once as there are cores, and none that can end ours.

Each worker is a child of ours with a thread that talks to it. A worker that dies over an instance
costs that instance's check a verdict (``unreadable``, with the reason) and is started anew. What is
handed in beyond a few tasks a worker waits outside: memory stays flat however many instances come.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType

import structlog

from dicom_node.child import Child, ChildEnded
from dicom_node.errors import EngineError, NodeError
from dicom_node.verify.checking import Checked, Setup, Task, unreadable

log = structlog.get_logger(__name__)

_IN_LINE = 4
_WORKER = "dicom_node.verify.checking_worker"
_CHECK_S = 900.0
"""Longest check of one instance; an enhanced object of thousands of frames takes minutes."""
_END_S = 10.0

_Job = tuple[Task, "Future[Checked]"]


class CheckingPool:
    """A few processes that check files.

    Parameters
    ----------
    workers
        0: one per usable core.

    Raises
    ------
    EngineError
        If the first worker cannot open keys or networks.
    """

    def __init__(self, setup: Setup, workers: int = 0) -> None:
        self.workers = workers or len(os.sched_getaffinity(0))
        self._setup = setup
        self._jobs: queue.Queue[_Job | None] = queue.Queue(maxsize=_IN_LINE * self.workers)
        self._closed = threading.Event()
        first = Child(_WORKER, setup)
        first.await_ready()
        self._alive: set[Child] = {first}
        self._threads = [
            threading.Thread(target=self._run, args=(worker,), name=f"check-{index}", daemon=True)
            for index, worker in enumerate([first, *(None for _ in range(self.workers - 1))])
        ]
        for thread in self._threads:
            thread.start()

    def check(self, task: Task, watch: Callable[[], object] = lambda: None) -> Future[Checked]:
        """Hand in one file; waits while too many are in line, and asks `watch`, which may raise.

        Raises
        ------
        EngineError
            If the pool is closed.
        """
        done: Future[Checked] = Future()
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._jobs.put((task, done), timeout=0.2)
                return done
            watch()
        raise _closing()

    def close(self) -> None:
        """End the workers; checks that are not done fail with an EngineError."""
        self._closed.set()
        self._drop_waiting()
        for worker in list(self._alive):
            worker.kill()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(_END_S)
        self._drop_waiting()

    def _drop_waiting(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is not None and job[1].set_running_or_notify_cancel():
                    job[1].set_exception(_closing())

    def __enter__(self) -> CheckingPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def _run(self, worker: Child | None) -> None:
        """Give one worker its tasks, one after another."""
        while (job := self._jobs.get()) is not None:
            task, done = job
            if not done.set_running_or_notify_cancel():
                continue
            try:
                if worker is None:
                    worker = self._started()
                done.set_result(_checked(worker, task))
            except ChildEnded as error:
                self._ended(worker)
                worker = None
                if self._closed.is_set():
                    done.set_exception(_closing())
                    continue
                reason = f"the check {error}"
                log.warning("checking worker ended", reason=reason)
                done.set_result(unreadable(task, reason))
            except NodeError as error:
                self._ended(worker)
                worker = None
                done.set_exception(error)
        self._ended(worker)

    def _started(self) -> Child:
        worker = Child(_WORKER, self._setup)
        self._alive.add(worker)
        if self._closed.is_set():
            worker.kill()
        worker.await_ready()
        return worker

    def _ended(self, worker: Child | None) -> None:
        if worker is not None:
            self._alive.discard(worker)
            worker.end()


def _checked(worker: Child, task: Task) -> Checked:
    checked = worker.ask(task, _CHECK_S)
    assert isinstance(checked, Checked), "a worker answers a task with its outcome"
    return checked


def _closing() -> EngineError:
    return EngineError("no more checks: shutting down")
