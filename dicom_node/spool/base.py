"""What the parts of the spool share: the journal, the files and the doorbells."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dicom_node.config import SpoolConfig
from dicom_node.spool.doorbell import Doorbell
from dicom_node.spool.files import Files
from dicom_node.spool.journal import Journal
from dicom_node.spool.records import Delivery, Job
from dicom_node.spool.reserve import Reserve, on_a_full_disk

MARK = "mark"


def forward_channel(destination: str) -> str:
    """Return the doorbell of one destination's forwarder."""
    return f"forward.{destination}"


class SpoolBase:
    """An open spool folder."""

    def __init__(self, settings: SpoolConfig, *, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self._clock = clock
        self._reserve = Reserve(settings.directory.absolute())
        self._files = self._open_files()
        self._journal = self._open_journal()
        self._bells: dict[str, Doorbell] = {}
        self._bells_lock = threading.Lock()

    @on_a_full_disk
    def _open_files(self) -> Files:
        return Files(self.settings.directory)

    @on_a_full_disk
    def _open_journal(self) -> Journal:
        return Journal(self._files.root / "journal.sqlite")

    def close(self) -> None:
        """Give up this process's temporary files and end; claims it still holds are requeued."""
        self._journal.close()
        self._files.close()
        for bell in self._bells.values():
            bell.close()
        self._bells.clear()

    @property
    def process(self) -> str:
        """This spool's own id, as in `Job.worker` and `Delivery.worker`."""
        return self._files.process

    @property
    def scratch(self) -> Path:
        """Folder for this process's temporary files; swept by others once it has died."""
        return self._files.scratch

    def _bell(self, channel: str) -> Doorbell:
        with self._bells_lock:
            if channel not in self._bells:
                self._bells[channel] = Doorbell(self._files.root / "bells" / channel)
            return self._bells[channel]

    def _ring(self, *channels: str) -> None:
        for channel in channels:
            self._bell(channel).ring()

    def _job(self, row: sqlite3.Row) -> Job:
        result = row["result_name"]
        return Job(
            id=row["id"],
            state=row["state"],
            path=self._files.received(row["name"]),
            size=row["size"],
            digest=row["digest"],
            sop_class_uid=row["sop_class_uid"],
            sop_instance_uid=row["sop_instance_uid"],
            transfer_syntax_uid=row["transfer_syntax_uid"],
            calling_ae=row["calling_ae"],
            called_ae=row["called_ae"],
            received_at=row["received_at"],
            due_at=row["due_at"],
            attempts=row["attempts"],
            crashes=row["crashes"],
            coalesced=row["coalesced"],
            reason=row["reason"],
            worker=row["worker"],
            marked_at=row["marked_at"],
            key_id=row["key_id"],
            repeat_of=row["repeat_of"],
            conflicts_with=row["conflicts_with"],
            differs_from_repeat=bool(row["differs_from_repeat"]),
            action=row["action"],
            result=self._files.marked(result) if result else None,
            result_digest=row["result_digest"],
            result_instance_uid=row["result_instance_uid"] or "",
            released=bool(row["released"]),
            study_instance_uid=row["study_instance_uid"],
            series_instance_uid=row["series_instance_uid"],
            updated_at=row["updated_at"],
        )

    def _delivery(self, row: sqlite3.Row) -> Delivery:
        result = row["result_name"]
        path: Path = self._files.marked(result) if result else self._files.received(row["name"])
        return Delivery(
            id=row["id"],
            job_id=row["job_id"],
            destination=row["destination"],
            state=row["state"],
            path=path,
            size=row["result_size"] if result else row["size"],
            sop_class_uid=row["sop_class_uid"],
            sop_instance_uid=row["sop_instance_uid"],
            transfer_syntax_uid=row["result_syntax_uid"] or row["transfer_syntax_uid"],
            calling_ae=row["calling_ae"],
            due_at=row["due_at"],
            attempts=row["attempts"],
            reason=row["reason"],
            status=row["status"],
            worker=row["worker"],
            updated_at=row["updated_at"],
        )
