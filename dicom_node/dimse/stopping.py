"""How a process of the node is told to end."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Protocol


class StopEvent(Protocol):
    """What ends a process: a `threading.Event` or `multiprocessing.Event`."""

    def is_set(self) -> bool:
        """Return whether to end now."""


@contextlib.contextmanager
def stopped_by(stop_event: StopEvent | None) -> Iterator[StopEvent]:
    """Yield the event to watch: the caller's, or one that SIGTERM and SIGINT set."""
    if stop_event is not None:
        yield stop_event
        return
    stop = threading.Event()
    before = {s: signal.signal(s, lambda *_: stop.set()) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
