"""Files that went missing: what the journal still promises, and what can stand in for them."""

from __future__ import annotations

import sqlite3
from typing import Any

from dicom_node.spool.journal import Journal
from dicom_node.spool.outbox import Outbox

LOST_RECEIVED = "received file is missing"
LOST_MARKED = "marked file is missing; it is marked anew from the file as received"


class LostFiles(Outbox):
    """The received file gives the marked one again, bit for bit; a second arrival gives both."""

    def _holds_source(self, row: sqlite3.Row) -> bool:
        """Whether a job's received file is there in its full size: cheap enough for a lock."""
        return self._files.size_of(self._files.received(row["name"])) == int(row["size"])

    def _lacks_result(self, row: sqlite3.Row) -> bool:
        name = row["result_name"]
        return bool(name) and self._files.size_of(self._files.marked(name)) is None

    def _damaged(self, values: dict[str, Any]) -> int | None:
        """Return the held job of the same bytes whose file holds other bytes by now.

        The file is read through, so outside any transaction.
        """
        for row in self._journal.rows("same_uid", sop_instance_uid=values["sop_instance_uid"])[:1]:
            if row["state"] == "held" and row["digest"] == values["digest"]:
                digest = self._files.digest_of(self._files.received(row["name"]))
                return None if digest == values["digest"] else int(row["id"])
        return None

    def _take_in(self, journal: Journal, row: sqlite3.Row, values: dict[str, Any]) -> None:
        """Put an instance that came again in the place of a job's lost file; let the job go on."""
        self._files.replace_received(values["name"], row["name"])
        journal.rows("take_in", id=row["id"], size=values["size"], now=values["now"])
        if self._lacks_result(row) or not journal.rows("deliveries_of", job_id=row["id"]):
            self._mark_anew(journal, row, "", values["now"])
            return
        # A result that is there was never in doubt: only what waited for this file goes on.
        reason = LOST_RECEIVED if row["result_name"] else None
        again = journal.rows(
            "release_deliveries", job_id=row["id"], reason=reason, now=values["now"]
        )
        if again:
            journal.rows("resume_job", id=row["id"], now=values["now"])

    def _mark_anew(self, journal: Journal, row: sqlite3.Row, reason: str, now: float) -> bool:
        """Give a job back to the mark workers; who has its result already keeps it."""
        again = journal.rows(
            "mark_anew", id=row["id"], result_name=row["result_name"], reason=reason, now=now
        )
        if again:
            journal.rows("forget_deliveries", job_id=row["id"])
        return bool(again)
