"""Fetch and check at once: files come in, verdicts come out, and few of either wait in between."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from dicom_node.dimse import Incoming
from dicom_node.dimse.query_scu import QueryAssociation
from dicom_node.errors import NodeError
from dicom_node.verify.checking import Checked, Task
from dicom_node.verify.checking_pool import CheckingPool
from dicom_node.verify.fetching import Fetched, Fetcher, FetchRefused
from dicom_node.verify.pacs import Planned, Wanted

_TICK_S = 0.1
# What the PACS has to heed a C-CANCEL before it is cut: our client waits a second at most.
_PATIENCE_S = 0.4
_IN_FLIGHT = 96
"""Fetched files that are not done with yet; more wait in the PACS."""


class CalledOff(NodeError):
    """The fetch was called off from our side."""


class Pace:
    """Lets no more than so many instances a second through, a second's worth at once."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._lock = threading.Lock()
        self._credit = max(1.0, per_s)
        self._at = time.monotonic()

    def wait(self, stop: threading.Event) -> None:
        """Wait for the next one's turn, or until `stop`."""
        with self._lock:
            now = time.monotonic()
            self._credit = min(self._credit + (now - self._at) * self._per_s, max(1.0, self._per_s))
            self._at = now
            self._credit -= 1.0
            delay_s = -self._credit / self._per_s
        if delay_s > 0:
            stop.wait(delay_s)


@dataclass(frozen=True)
class Arrival:
    """One instance, fetched and checked; its files are removed when the next one is asked for.

    Attributes
    ----------
    path
        As it came.
    original
        The exact original, where that was asked for and possible.
    """

    checked: Checked
    path: Path
    incoming: Incoming
    original: Path | None = None


class CheckedFetch:
    """What is wanted of a study, fetched by one thread and checked by a pool.

    Use it as a context: however it is left, the fetch has ended and its files are gone. Iterating
    yields arrivals in the order in which their checks end, and None whenever none did for a tenth
    of a second, so that the consumer can look after its own peer.

    Parameters
    ----------
    restore
        Write originals, too.
    keep
        Leave the files of arrivals: the consumer removes them.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        pool: CheckingPool,
        wanted: Wanted,
        planned: Sequence[Planned],
        *,
        restore: bool = False,
        keep: bool = False,
        pace: Pace | None = None,
    ) -> None:
        self._fetcher, self._pool, self._wanted, self._planned = fetcher, pool, wanted, planned
        self._restore, self._keep, self._pace = restore, keep, pace
        self._slots = threading.Semaphore(_IN_FLIGHT)
        self._done: queue.SimpleQueue[tuple[Task, Incoming, Future[Checked]] | None]
        self._done = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._files: set[Path] = set()
        self._waiting = 0
        self._stop = threading.Event()
        self._over = False
        self._assoc: QueryAssociation | None = None
        self._failure: BaseException | None = None
        self.fetched: Fetched | None = None
        """How the fetch ended; None while it goes on, and where it failed."""
        self.error: NodeError | None = None
        """Why it failed."""
        self._thread = threading.Thread(target=self._fetch, name="fetch", daemon=True)

    def __enter__(self) -> CheckedFetch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._stop.set()
        self._thread.join(_PATIENCE_S)
        while self._thread.is_alive():  # it waits inside an instance, or for the PACS to let go
            if self._assoc is not None:
                self._assoc.cut()
            self._thread.join(_TICK_S)
        with self._lock:
            left, self._files, self._over = self._files, set(), True
        for path in left:
            path.unlink(missing_ok=True)

    def __iter__(self) -> Iterator[Arrival | None]:
        fetching = True
        while fetching or self._waiting:
            try:
                item = self._done.get(timeout=_TICK_S)
            except queue.Empty:
                yield None
                continue
            if item is None:
                fetching = False
                if self._failure is not None:
                    raise self._failure
                continue
            task, incoming, future = item
            handed_over = False
            try:
                checked = future.result()
                original = task.restore_to if checked.exact else None
                handed_over = True
                yield Arrival(checked, task.path, incoming, original)
            finally:
                self._release(task, keep=self._keep and handed_over)

    @property
    def shortfall(self) -> Fetched | None:
        """What the PACS says it failed to send; None where it says nothing of the kind."""
        said = self.error.fetched if isinstance(self.error, FetchRefused) else self.fetched
        return said if said is not None and said.reason else None

    def _release(self, task: Task, *, keep: bool = False) -> None:
        with self._lock:
            self._waiting -= 1
            mine = {task.path} | ({task.restore_to} if task.restore_to else set())
            self._files -= mine
        if not keep:
            for path in mine:
                path.unlink(missing_ok=True)
        self._slots.release()

    def _fetch(self) -> None:
        try:
            self.fetched = self._fetcher.fetch(
                self._wanted, self._planned, self._take, self._watch, self._opened
            )
        except NodeError as error:
            self.error = error
        except BaseException as error:  # noqa: BLE001 - raised again by the consumer
            self._failure = error
        finally:
            self._done.put(None)

    def _opened(self, assoc: QueryAssociation) -> None:
        self._assoc = assoc
        self._watch()

    def _watch(self) -> bool:
        if self._stop.is_set():
            raise CalledOff("the fetch was called off")
        return False

    def _take(self, path: Path, incoming: Incoming) -> None:
        """Hand a file in to be checked; waits while too many are on their way."""
        try:
            if self._pace is not None:
                self._pace.wait(self._stop)
            while not self._slots.acquire(timeout=_TICK_S):
                self._watch()
            self._watch()
            task = Task(path, path.with_suffix(".original.dcm") if self._restore else None)
            self._count_in(task)
            try:
                future = self._pool.check(task, self._watch)
            except NodeError:
                self._release(task)
                raise
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            raise
        future.add_done_callback(lambda done: self._checked(task, incoming, done))

    def _count_in(self, task: Task) -> None:
        with self._lock:
            if self._over:  # it came over the inner Storage SCP meanwhile
                raise CalledOff("the fetch was called off")
            self._files |= {task.path} | ({task.restore_to} if task.restore_to else set())
            self._waiting += 1

    def _checked(self, task: Task, incoming: Incoming, done: Future[Checked]) -> None:
        self._done.put((task, incoming, done))
        with self._lock:
            over = self._over
        if over and task.restore_to is not None:
            task.restore_to.unlink(missing_ok=True)  # written after the others were removed
