"""Refused instances in the audit trail: the first of a sender at once, the others by their number.

A PACS goes on sending for a while what was called off, and a stranger may send as fast as the
network goes: neither may fill the trail, which syncs every event.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from dicom_node.audit.events import Event, Refused
from dicom_node.dimse import Incoming

EVERY_S = 60.0
"""An address gets one event in this time, and one more that counts the rest."""


class Refusals:
    """Records refused instances; for all threads.

    Parameters
    ----------
    record
        Tells the audit trail.
    reason, status
        Why they are refused, and how that is answered.
    """

    def __init__(
        self, record: Callable[[Event], None], reason: str, status: int, every_s: float = EVERY_S
    ) -> None:
        self._record = record
        self._reason = reason
        self._status = status
        self._every_s = every_s
        self._lock = threading.Lock()
        # By address and not by AE title, of which a sender may make up any number.
        self._begun: dict[str, float] = {}
        self._counted: dict[str, Refused] = {}
        self._timer: threading.Timer | None = None

    def add(self, incoming: Incoming) -> None:
        """Record a refused instance, or count it."""
        event = Refused(
            at=datetime.now(UTC), stage="receive", outcome="rejected", reason=self._reason,
            sop_instance_uid=incoming.sop_instance_uid, sop_class_uid=incoming.sop_class_uid,
            peer_ae=incoming.calling_ae, peer_address=incoming.peer, status=self._status,
        )  # fmt: skip
        address = incoming.peer
        with self._lock:
            begun = self._begun.get(address)
            if begun is not None and time.monotonic() - begun < self._every_s:
                before = self._counted.get(address)
                # Of many no single one is named.
                event = replace(event, sop_instance_uid="", sop_class_uid="")
                self._counted[address] = replace(event, count=1 + (before.count if before else 0))
                return
            self._begun[address] = time.monotonic()
            due = self._taken(address)
            self._wait()
        self._tell(*due, event)

    def close(self) -> None:
        """Record what was counted."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            due = self._taken(*self._counted)
        self._tell(*due)

    def _wait(self) -> None:
        """Have what is counted from now on recorded when its time is over."""
        if self._timer is None or not self._timer.is_alive():
            self._timer = threading.Timer(self._every_s, self._is_over)
            self._timer.name, self._timer.daemon = "refusals", True
            self._timer.start()

    def _is_over(self) -> None:
        with self._lock:
            now = time.monotonic()
            over = [a for a, begun in self._begun.items() if now - begun >= self._every_s]
            due = self._taken(*over)
            for address in over:
                del self._begun[address]
            self._timer = None
            if self._begun:
                self._wait()
        self._tell(*due)

    def _taken(self, *addresses: str) -> list[Refused]:
        found = [self._counted.pop(each, None) for each in addresses]
        return [each for each in found if each is not None]

    def _tell(self, *events: Event) -> None:
        for event in events:
            self._record(event)
