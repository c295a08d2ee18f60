"""A registry that may be away, or hang: nobody waits for it longer than he is willing to.

Every question is asked in another thread. Whoever asks looks up ten times a second, so that a
client that calls its request off is let go while a connection hangs. After a failure the registry
counts as away for a while: only one question then finds out whether it still is.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import structlog

from dicom_node.errors import NodeError, RegistryError
from dicom_node.registry.registry import Registry

log = structlog.get_logger(__name__)

ANSWER_S = 10.0
"""A registry that takes longer to answer is away."""
AWAY_S = 30.0
"""So long after a failure it is not asked again."""
_STEP_S = 0.1

_Found = TypeVar("_Found")


class RegistryAccess:
    """The registry at a URL, opened when it is first asked; for all threads."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()  # held by threads of questions only, also while they connect
        self._registry: Registry | None = None
        self._closed = threading.Event()
        self._idle: list[_Asker] = []
        self._turn = threading.Lock()
        self._away_until = 0.0
        self._reason = ""

    def ask(
        self,
        question: Callable[[Registry], _Found],
        *,
        watch: Callable[[], object] = lambda: None,
        within_s: float | None = None,
    ) -> _Found:
        """Return what the registry answers.

        Parameters
        ----------
        watch
            Called while the answer is waited for; may raise to give it up. A write may go on then.
        within_s
            How long that may be; None: `ANSWER_S`.

        Raises
        ------
        RegistryError
            If it cannot be asked, does not answer in time, or was found away a moment ago.
        ConfigError
            If its URL cannot be used.
        """
        self._require_hope()
        asked = _Asked(lambda: self._answer(question))
        self._asker().inbox.put(asked)
        limit_s = ANSWER_S if within_s is None else within_s
        deadline = time.monotonic() + limit_s
        while not asked.done.wait(_STEP_S):
            if time.monotonic() > deadline:
                error = RegistryError(f"the registry did not answer within {limit_s:g} s")
                self._is_away(error)
                raise error
            watch()
        return asked.answer()

    def close(self) -> None:
        """Close every connection; one that is being made is closed when it is there."""
        self._closed.set()
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().inbox.put(None)
        if self._registry is not None:
            self._registry.close()

    def _asker(self) -> _Asker:
        """Return a thread that has nothing to do, or a new one."""
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        made = _Asker(self._idle, self._closed)
        made.start()
        return made

    def _answer(self, question: Callable[[Registry], _Found]) -> _Found:
        """Ask in the question's thread, and note how it went even where nobody waits any more."""
        try:
            answer = question(self._opened())
        except RegistryError as error:
            self._is_away(error)
            raise
        self._is_there()
        return answer

    def _opened(self) -> Registry:
        with self._lock:
            if self._registry is None:
                made = Registry.open(self._url)
                if self._closed.is_set():
                    made.close()
                    raise RegistryError("the registry was closed")
                self._registry = made
            return self._registry

    def _require_hope(self) -> None:
        """Refuse while it is away; the first to come after that tries, the others still do not."""
        with self._turn:
            now = time.monotonic()
            if now < self._away_until:
                raise RegistryError(self._reason)
            if self._reason:
                self._away_until = now + AWAY_S

    def _is_away(self, error: NodeError) -> None:
        with self._turn:
            known, self._reason = self._reason, str(error)
            self._away_until = time.monotonic() + AWAY_S
        if not known:
            log.error("registry not reached", reason=str(error), away_s=AWAY_S)

    def _is_there(self) -> None:
        with self._turn:
            known, self._reason, self._away_until = self._reason, "", 0.0
        if known:
            log.info("registry reached again")


class _Asked(Generic[_Found]):
    """One question on its way."""

    def __init__(self, question: Callable[[], _Found]) -> None:
        self.done = threading.Event()
        self._question = question
        self._answer: _Found
        self._failure: BaseException | None = None

    def __call__(self) -> None:
        """Ask, and keep the answer or why there is none."""
        try:
            self._answer = self._question()
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            self._failure = error

    def answer(self) -> _Found:
        """Return the answer; what failed is raised."""
        if self._failure is not None:
            raise self._failure
        return self._answer


class _Asker(threading.Thread):
    """Asks one question after another; nobody joins it, as it may hang with its connection."""

    def __init__(self, idle: list[_Asker], closed: threading.Event) -> None:
        super().__init__(name="registry question", daemon=True)
        self.inbox: queue.SimpleQueue[_Asked[Any] | None] = queue.SimpleQueue()
        self._idle, self._closed = idle, closed

    def run(self) -> None:
        """Ask until told to end, by None, or until nobody asks any more."""
        while (asked := self.inbox.get()) is not None:
            asked()
            self._idle.append(self)
            asked.done.set()
            if self._closed.is_set():
                return
            del asked  # its answer may be large
