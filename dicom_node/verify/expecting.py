"""Somebody who waits for instances that a PACS is going to send."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dicom_node.dimse import Incoming
from dicom_node.verify.pacs import Wanted

Take = Callable[[Path, Incoming], None]
"""Given each instance's file, which is the taker's to remove; may wait, and then the PACS does."""


class Expected:
    """Somebody who waits for instances; `received` counts them."""

    def __init__(self, wanted: Wanted, take: Take) -> None:
        self.wanted = wanted
        self.take = take
        self.received = 0
        self.seen: set[tuple[str, str]] = set()
