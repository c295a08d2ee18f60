"""What the forwarder's log says of a refusal, and what only the journal keeps."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from dicom_node.config import DestinationConfig
from dicom_node.dimse import StoreResponse
from dicom_node.forward.forwarder import Lane, Pause
from dicom_node.forward.rules import Backoff
from dicom_node.spool import Delivery


class Journal:
    """Keeps the reasons it is given."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def retry_delivery(self, _: Delivery, reason: str, *__: float, **more: Any) -> None:
        self.reasons.append(reason)

    def hold_delivery(self, _: Delivery, reason: str, **more: Any) -> None:
        self.reasons.append(reason)


@pytest.mark.parametrize("status", [0xA700, 0xC001])
def test_a_pacs_s_own_words_are_in_the_journal_and_not_in_the_log(status: int) -> None:
    journal = Journal()
    destination = DestinationConfig(name="pacs", ae_title="PACS", host="127.0.0.1", port=104)
    pause = Pause(Backoff(1.0, 2.0))
    lane = Lane(0, journal, destination, "US", pause, threading.Event(), None)  # type: ignore[arg-type]
    delivery = Delivery(1, 1, "pacs", "sending", Path("x"), 1, "1.2", "1.2.3", "1.2.840.10008.1.2",
                        "CT", 0.0, 1, "", None, "", 0.0)  # fmt: skip
    response = StoreResponse(1, status, "no order for patient 4711", "1.2", "1.2.3")
    with capture_logs() as said:
        lane._settle(delivery, response, "1.2.840.10008.1.2")
    assert "4711" not in str(said)
    assert f"0x{status:04X}" in said[0]["reason"]
    [reason] = journal.reasons
    assert "patient 4711" in reason
