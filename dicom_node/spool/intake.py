"""Receiving: bytes in, a durable job out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from dicom_node.errors import SpoolFull
from dicom_node.spool.base import MARK, forward_channel
from dicom_node.spool.files import Buffer, free_bytes
from dicom_node.spool.journal import Journal
from dicom_node.spool.lost import LostFiles
from dicom_node.spool.records import Receipt
from dicom_node.spool.reserve import RESERVE_MIB

_STATVFS_S = 1.0
# So much of one instance may be written before the disk is asked again.
_LOOK_BYTES = 16 << 20
_MIB = 1 << 20


class Intake(LostFiles):
    """The receiver's side of the spool."""

    _free_bytes = 0
    _free_asked = -1e9

    def check_room(self, size: int = 0) -> None:
        """Raise `SpoolFull` when there is too little disk or too much backlog for `size` bytes.

        Cheap enough for every C-STORE: the disk is asked once a second, the backlog is one row.
        """
        self._check_free(size)
        if not self._reserve.keep(self._files.scratch):
            raise SpoolFull(
                f"{self._files.root}: too full to hold {RESERVE_MIB} MiB in reserve;"
                f" {2 * RESERVE_MIB} MiB have to be free"
            )
        self._check_backlog()

    def _check_free(self, size: int) -> None:
        now = time.monotonic()
        if now - self._free_asked > _STATVFS_S:
            self._free_bytes = free_bytes(self._files.root)
            self._free_asked = now
        if self._free_bytes - size < self.settings.min_free_mib * _MIB:
            raise SpoolFull(
                f"{self._files.root}: {self._free_bytes // _MIB} MiB free,"
                f" spool.min_free_mib = {self.settings.min_free_mib}"
            )

    def _check_backlog(self) -> None:
        if self.backlog() >= self.settings.max_backlog:
            raise SpoolFull(
                f"{self.backlog()} instances wait, spool.max_backlog = {self.settings.max_backlog}"
            )

    def _check_room_for_result(self, size: int) -> None:
        """Refuse what could not be marked beside what is here already.

        So there is room for the result of the last one accepted; sending that makes room for the
        one before it, and in the end for all of them.
        """
        self._free_bytes = free_bytes(self._files.root)
        if self._free_bytes < size:
            raise SpoolFull(f"{self._files.root}: no space left for the result")

    def _while_there_is_room(self, chunks: Iterable[Buffer]) -> Iterator[Buffer]:
        """Pass chunks on; nobody knows before the last one how much there will be."""
        since = 0
        for chunk in chunks:
            since += memoryview(chunk).nbytes
            if since >= _LOOK_BYTES:
                since, self._free_asked = 0, -1e9
                self._check_free(0)
            yield chunk

    def backlog(self) -> int:
        """Return how many accepted instances are still on disk for somebody."""
        row = self._journal.row("backlog")
        return int(row[0]) if row else 0

    def receive(
        self,
        header: Buffer,
        dataset: Buffer | Iterable[Buffer],
        *,
        sop_class_uid: str,
        sop_instance_uid: str,
        transfer_syntax_uid: str,
        calling_ae: str = "",
        called_ae: str = "",
        deliver_to: Sequence[str] | None = None,
    ) -> Receipt:
        """Make one instance durable and queue it; when this returns, C-STORE may answer 0x0000.

        Parameters
        ----------
        header
            Preamble, prefix and File Meta Information (PS3.10 7.1).
        dataset
            The encoded data set exactly as sent, whole or in chunks (then written as they come).
        sop_class_uid, sop_instance_uid, transfer_syntax_uid
            As the C-STORE request and its presentation context say; never used in a path.
        deliver_to
            Names of destinations: the instance is not for the mark workers and goes straight to
            their queues (marking is off). None: it waits for a mark worker.

        Returns
        -------
        Receipt
            Undelivered jobs absorb a second arrival of the same bytes (`duplicate_of`), as their
            own if the first was lost (`restored`); after delivery, or after other bytes under the
            same UID, they are a new job that repeats the first one's marking (`repeat_of`); other
            bytes under the same UID are a job of their own (`conflicts_with`).

        Raises
        ------
        SpoolFull
            Too little disk or too much backlog; nothing was kept.
        SpoolError
            Anything else that kept the instance from being durable.
        """
        whole = isinstance(dataset, bytes | bytearray | memoryview)
        self.check_room(memoryview(dataset).nbytes if whole else 0)  # type: ignore[arg-type]
        name = self._files.new_name()
        chunks: Buffer | Iterable[Buffer] = dataset
        if not whole:
            chunks = self._while_there_is_room(dataset)  # type: ignore[arg-type]
        size, digest = self._files.store(name, header, chunks)
        values = {
            "name": name,
            "size": size,
            "digest": digest,
            "sop_class_uid": sop_class_uid,
            "sop_instance_uid": sop_instance_uid,
            "transfer_syntax_uid": transfer_syntax_uid,
            "calling_ae": calling_ae,
            "called_ae": called_ae,
            "now": self._clock(),
        }
        try:
            self._check_room_for_result(0 if deliver_to else size)
            receipt = self._admit(values, deliver_to, self._damaged(values))
        except BaseException:
            self._files.remove(self._files.received(name))
            raise
        if receipt.restored:
            deliveries = self._journal.rows("deliveries_of", job_id=receipt.job_id)
            self._ring(MARK, *(forward_channel(row["destination"]) for row in deliveries))
        elif receipt.duplicate_of is not None:
            self._files.remove(self._files.received(name))
        elif deliver_to:
            self._ring(*map(forward_channel, deliver_to))
        else:
            self._ring(MARK)
        return receipt

    def _admit(
        self, values: dict[str, Any], deliver_to: Sequence[str] | None, damaged: int | None
    ) -> Receipt:
        with self._journal.transaction() as journal:
            self._check_backlog()
            earlier = journal.rows("same_uid", sop_instance_uid=values["sop_instance_uid"])
            same = [
                row
                for row in earlier
                if row["digest"] == values["digest"]
                and row["transfer_syntax_uid"] == values["transfer_syntax_uid"]
            ]
            # Only into the newest one: after A, B, A the PACS has to end with A.
            newest = same[0] if same and same[0] is earlier[0] else None
            if newest and newest["state"] not in ("delivered", "rejected"):
                known = int(newest["id"])
                # The copy that just came may be the only one left.
                if known == damaged or not self._holds_source(newest):
                    self._take_in(journal, newest, values)
                    return Receipt(known, duplicate_of=known, restored=True)
                journal.rows("coalesce", id=known, now=values["now"])
                return Receipt(known, duplicate_of=known)
            first = self._first_marking(journal, values)
            alike = {row["id"] for row in same}
            other = next((row for row in earlier if row["id"] not in alike), None)
            if not values["sop_instance_uid"]:
                other = None
            straight = bool(deliver_to)
            job_id = journal.insert(
                "add_job",
                values
                | {
                    "state": "marked" if straight else "received",
                    "action": "untouched" if straight else "",
                    "result_digest": values["digest"] if straight else None,
                    "marked_at": first["marked_at"] if first else None,
                    "key_id": first["key_id"] if first else None,
                    "repeat_of": first["id"] if first else None,
                    "conflicts_with": other["id"] if other else None,
                },
            )
            for destination in deliver_to or ():
                journal.rows(
                    "add_delivery",
                    job_id=job_id,
                    destination=destination,
                    state="waiting",
                    reason="",
                    now=values["now"],
                )
        return Receipt(
            job_id,
            repeat_of=int(first["id"]) if first else None,
            conflicts_with=int(other["id"]) if other else None,
        )

    def _first_marking(self, journal: Journal, values: dict[str, Any]) -> dict[str, Any] | None:
        """Return what these bytes are marked like: as the first, though that is yet to be."""
        row = journal.row("first_marking", **{
            name: values[name] for name in ("sop_instance_uid", "digest", "transfer_syntax_uid")
        })  # fmt: skip
        if row is None:
            return None
        [dated] = journal.rows("date_job", id=row["id"], now=values["now"])
        return {"id": row["id"], "key_id": row["key_id"], "marked_at": dated["marked_at"]}
