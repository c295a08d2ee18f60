"""Pass the trail on to a collector as DICOM audit messages: one thread, beside the node's work.

The trail itself is the store of what was not sent yet, so nothing is dropped while the collector is
away and nobody waits for it. Where the sender is, is in ``syslog.json`` beside the trail; a crash
between sending and noting that repeats a few messages. Checkpoints are sent, too, as they are: the
collector's copies show a trail that was cut back here (``audit-log verify --checkpoints``).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Final

import structlog

from dicom_node.audit.entries import CHECKPOINT, SEGMENT, Entry
from dicom_node.audit.events import Event, event_of
from dicom_node.audit.message_xml import Node
from dicom_node.audit.messages import messages_of
from dicom_node.audit.reading import Place, end_of, entries
from dicom_node.audit.segments import translated
from dicom_node.audit.syslog import CHECKPOINT_MSGID, Collector, format_message
from dicom_node.errors import AuditError

_log = structlog.get_logger(__name__)

_BATCH: Final = 500
_POLL_S: Final = 1.0
_BACKOFF_S: Final = (1.0, 60.0)
_PLACE: Final = "syslog.json"


@dataclass
class _Batch:
    """What is sent together, and where the trail goes on behind it."""

    place: Place
    count: int = 0
    messages: list[bytes] = field(default_factory=list)


class Sender:
    """Sends what the trail holds, from where it was left, until stopped.

    Parameters
    ----------
    url
        Which collector: another one is not sent what the one before has got.
    node
        Named as the source of the messages.
    """

    def __init__(self, directory: Path, url: str, collector: Collector, node: Node) -> None:
        self._directory = directory
        self._url = url
        self._collector = collector
        self._node = node
        self._wake = threading.Event()
        self._stopping = False
        self._until = 0.0
        self._failing = False
        self._start = end_of(directory)
        self._thread = threading.Thread(target=self._run, name="audit-sender", daemon=True)

    def start(self) -> None:
        """Begin to send. The first time for a collector, what is older than now is left out."""
        self._thread.start()

    def wake(self) -> None:
        """Tell that there is something new; it would be found within a second anyway."""
        self._wake.set()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Send what there is, if the collector takes it, and end."""
        self._until = time.monotonic() + timeout_s
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout_s)

    # -- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with self._alone() as alone:
                while alone:
                    delay = self._round()
                    if self._stopping:
                        return
                    self._wake.wait(delay)
                    self._wake.clear()
        except AuditError as error:
            _log.error("audit_sender_stopped", error=str(error))
        finally:
            self._collector.close()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Hold the sender's lock; False if stopped while another process of the node sends."""
        path = self._directory / "syslog.lock"
        with translated(path):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not self._stopping:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    yield True
                    return
                self._wake.wait(_POLL_S)
                self._wake.clear()
            yield False
        finally:
            os.close(handle)

    def _round(self) -> float:
        """Send all there is; return how long to wait before the next look."""
        delay = _BACKOFF_S[0]
        while True:
            if self._stopping and time.monotonic() > self._until:
                return 0.0
            batch = self._next(self._place())
            if batch.count == 0:
                return _POLL_S
            try:
                self._collector.send(batch.messages)
            except AuditError as error:
                if not self._failing:
                    _log.warning("audit_collector_away", error=str(error))
                self._failing = True
                if self._stopping or self._paused(delay):
                    return 0.0
                delay = min(2 * delay, _BACKOFF_S[1])
                continue
            if self._failing:
                _log.info("audit_collector_back")
            self._failing = False
            self._keep(batch.place)

    def _paused(self, delay: float) -> bool:
        """Wait before the next try, however much news comes; True if stopped meanwhile."""
        for _ in range(max(1, round(delay / 0.1))):
            if self._stopping:
                return True
            # Not on the event: every new entry sets it, and would hammer a collector that is away.
            time.sleep(0.1)
        return self._stopping

    def _next(self, place: Place) -> _Batch:
        batch = _Batch(place)
        pending: list[Event] = []
        for entry, behind in islice(entries(self._directory, place), _BATCH):
            batch.count, batch.place = batch.count + 1, behind
            if entry.kind == CHECKPOINT:
                self._flush(batch, pending, entry.seq)
                batch.messages.append(self._checkpoint(entry))
            elif entry.kind != SEGMENT:
                with contextlib.suppress(AuditError):
                    # An entry nobody understands stays in the trail; its neighbours are sent.
                    pending.append(event_of(entry.event))
        self._flush(batch, pending, batch.place.seq)
        return batch

    def _flush(self, batch: _Batch, pending: list[Event], seq: int) -> None:
        batch.messages += [
            format_message(message.xml, message.at, seq, host=self._node.host)
            for message in messages_of(pending, self._node)
        ]
        pending.clear()

    def _checkpoint(self, entry: Entry) -> bytes:
        at = datetime.fromisoformat(entry.time)
        return format_message(
            entry.line, at, entry.seq, host=self._node.host, msgid=CHECKPOINT_MSGID
        )

    # -- where we are -------------------------------------------------------------------------

    def _place(self) -> Place:
        path = self._directory / _PLACE
        try:
            said = json.loads(path.read_text("ascii"))
            if said["collector"] == self._url:
                return Place(int(said["segment"]), int(said["offset"]), int(said["seq"]))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AuditError(f"{path}: {error}; remove it to send from now on") from error
        self._keep(self._start)
        return self._start

    def _keep(self, place: Place) -> None:
        path = self._directory / _PLACE
        part = path.with_suffix(".part")
        said = {"collector": self._url} | asdict(place)
        with translated(path):
            part.write_text(json.dumps(said), "ascii")
            part.replace(path)
