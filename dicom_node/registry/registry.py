"""The registry: what was marked, where it went, what checks found, and what it looked like."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Row, func, select

from dicom_node.errors import RegistryError
from dicom_node.registry import reading, writing
from dicom_node.registry.database import Database
from dicom_node.registry.hash_file import Hashes, HashFile, Ids
from dicom_node.registry.hash_index import HashIndex
from dicom_node.registry.records import (
    FrameMatch,
    ManifestEntry,
    MarkedInstance,
    SeriesManifest,
    VerdictEntry,
)
from dicom_node.registry.schema import FRAME, INSTANCE, VERDICT, prepare, up_to_date
from dicom_node.registry.writing import Added

_INDEX_NAME = "registry.hashes"


class Registry:
    """An open registry; `open` makes one. May be shared by threads; each process opens its own."""

    def __init__(self, database: Database, name: str, cache: Path | None) -> None:
        self._database = database
        self._name = name
        self._cache = cache
        self._index: HashIndex | None = None
        self._index_lock = threading.Lock()

    @classmethod
    def open(cls, url: str, *, cache: Path | None = None) -> Self:
        """Open the registry at `url`; the tables are made or brought up to date.

        Parameters
        ----------
        url
            ``sqlite:///FILE`` or ``postgresql://USER@HOST/NAME``, as `Config.registry_url`.
        cache
            Folder for the file of hashes of a registry on PostgreSQL; None: they are kept in
            memory. SQLite's lies beside the database.

        Raises
        ------
        ConfigError
            If the URL cannot be used.
        RegistryError
            If it cannot be reached, or a newer release made it.
        """
        database = Database(url)
        try:
            if database.file is not None:
                _make_folder(database.file.parent)
            with database.reading() as connection:
                name = up_to_date(connection)
            if name is None:
                with database.writing() as connection:
                    name = prepare(connection)
        except BaseException:
            database.close()
            raise
        return cls(database, name, cache if database.file is None else database.file.parent)

    @classmethod
    def existing(cls, url: str, *, cache: Path | None = None) -> Self | None:
        """Open the registry as `open` does, but make no SQLite file where there is none."""
        database = Database(url)
        database.close()
        if database.file is not None and not database.file.is_file():
            return None
        return cls.open(url, cache=cache)

    def close(self) -> None:
        """Close every connection."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- writing ------------------------------------------------------------------------------

    def add(self, instance: MarkedInstance) -> None:
        """Register one instance; the same file twice is one record with the deliveries of both."""
        self.add_all([instance])

    def add_all(self, instances: Iterable[MarkedInstance]) -> Added:
        """Register many in one transaction; on disk when this returns (RegistryError)."""
        with self._database.writing() as connection:
            return writing.add_all(connection, instances)

    def add_verdict(self, entry: VerdictEntry) -> None:
        """Remember what a check found."""
        self.add_verdicts([entry])

    def add_verdicts(self, entries: Iterable[VerdictEntry]) -> None:
        """Remember many in one transaction; on disk when this returns (RegistryError)."""
        rows = list(map(dataclasses.asdict, entries))
        if rows:
            with self._database.writing() as connection:
                connection.execute(VERDICT.insert(), rows)

    # -- asking by UID ------------------------------------------------------------------------

    def instances(
        self, *, study_instance_uid: str = "", series_instance_uid: str = "",
        sop_instance_uid: str = "", frames: bool = True,
    ) -> tuple[MarkedInstance, ...]:  # fmt: skip
        """Return what is registered under the UIDs named, oldest first.

        Several versions of one SOP instance are several records.

        Parameters
        ----------
        frames
            False: without what is known of each frame.
        """
        which = reading.uids(INSTANCE, study_instance_uid, series_instance_uid, sop_instance_uid)
        with self._database.reading() as connection:
            rows = connection.execute(select(INSTANCE).where(*which).order_by(INSTANCE.c.id)).all()
            return reading.instances(connection, rows, frames=frames)

    def series(self, series_instance_uid: str) -> SeriesManifest:
        """Return which instances of a series this node sent, each once, by instance number."""
        found = self.instances(series_instance_uid=series_instance_uid, frames=False)
        entries: dict[str, ManifestEntry] = {}
        for each in found:
            before = entries.get(each.sop_instance_uid)
            taken = dict.fromkeys(before.delivered_to if before else ())
            taken |= dict.fromkeys(entry.destination for entry in each.deliveries)
            entries[each.sop_instance_uid] = ManifestEntry(
                each.sop_instance_uid, each.sop_class_uid, each.instance_number, each.frame_count,
                each.action, tuple(taken),
            )  # fmt: skip
        ordered = sorted(
            entries.values(),
            key=lambda e: (e.instance_number is None, e.instance_number or 0, e.sop_instance_uid),
        )
        study = found[0].study_instance_uid if found else ""
        return SeriesManifest(series_instance_uid, study, tuple(ordered))

    def series_of(self, study_instance_uid: str) -> tuple[SeriesManifest, ...]:
        """Return the manifests of all series of a study."""
        uid = INSTANCE.c.series_instance_uid
        asked = (
            select(uid).where(INSTANCE.c.study_instance_uid == study_instance_uid).distinct()
            .order_by(uid)
        )  # fmt: skip
        with self._database.reading() as connection:
            uids = list(connection.scalars(asked))
        return tuple(map(self.series, uids))

    def studies(
        self, *, since: float | None = None, until: float | None = None, modality: str = "",
    ) -> tuple[str, ...]:  # fmt: skip
        """Return the Study Instance UIDs of what was marked in a time (Unix seconds), in order."""
        asked = select(INSTANCE.c.study_instance_uid).group_by(INSTANCE.c.study_instance_uid)
        if since is not None:
            asked = asked.where(INSTANCE.c.marked_at >= since)
        if until is not None:
            asked = asked.where(INSTANCE.c.marked_at < until)
        if modality:
            asked = asked.where(INSTANCE.c.modality == modality)
        with self._database.reading() as connection:
            return tuple(connection.scalars(asked.order_by(func.min(INSTANCE.c.id))))

    def verdicts(
        self, *, study_instance_uid: str = "", series_instance_uid: str = "",
        sop_instance_uid: str = "", last: bool = True,
    ) -> tuple[VerdictEntry, ...]:  # fmt: skip
        """Return what checks found, oldest first; with `last` only the newest of each instance."""
        which = reading.uids(VERDICT, study_instance_uid, series_instance_uid, sop_instance_uid)
        asked = select(VERDICT).where(*which)
        if last:
            newest = select(func.max(VERDICT.c.id)).where(*which)
            asked = asked.where(VERDICT.c.id.in_(newest.group_by(VERDICT.c.sop_instance_uid)))
        with self._database.reading() as connection:
            rows = connection.execute(asked.order_by(VERDICT.c.id)).all()
        return tuple(map(reading.verdict, rows))

    # -- asking by looks ----------------------------------------------------------------------

    def by_message(self, message: bytes) -> tuple[FrameMatch, ...]:
        """Return the frames that carry this robust message, oldest first."""
        with self._database.reading() as connection:
            rows = connection.execute(
                select(FRAME).where(FRAME.c.message == message).order_by(FRAME.c.id)
            ).all()
            return reading.matches(connection, rows)

    def similar(
        self, phash: bytes | Sequence[bytes], within: int, limit: int = 10
    ) -> tuple[FrameMatch, ...]:
        """Return the frames that look most like this: nearest first, of equal ones the oldest.

        Parameters
        ----------
        phash
            8 bytes, or several such: those of one picture in several poses.
        within
            Most bits of 64 that may differ.
        """
        hashes = [phash] if isinstance(phash, bytes) else list(phash)
        index = self._opened_index()
        index.refresh()
        near = index.nearest([int.from_bytes(each, "big") for each in hashes], within, limit)
        found = {each.frame_id: each for each in near}
        with self._database.reading() as connection:
            rows: list[Row[Any]] = []
            for start in range(0, len(near), writing.ASKED_AT_ONCE):
                ids = [each.frame_id for each in near[start : start + writing.ASKED_AT_ONCE]]
                rows += connection.execute(select(FRAME).where(FRAME.c.id.in_(ids))).all()
            rows.sort(key=lambda row: (found[row.id].distance, row.id))
            return tuple(
                FrameMatch(match.instance, match.frame, match.facts,
                           found[row.id].distance, found[row.id].query)
                for row, match in zip(rows, reading.matches(connection, rows), strict=True)
            )  # fmt: skip

    def hashes(self, most: int) -> NDArray[np.uint8]:
        """Return the perceptual hashes of the frames marked last, each once, ``(n, 8)``."""
        hash_ = FRAME.c.perceptual_hash
        asked = select(hash_).where(hash_.is_not(None)).order_by(FRAME.c.id.desc()).limit(most)
        with self._database.reading() as connection:
            found = np.array(connection.execute(asked).scalars().all(), np.int64)
        return np.unique(found).astype(">i8").view(np.uint8).reshape(-1, 8)

    def refresh_index(self) -> int:
        """Take new hashes into the index now; return how many it has. `similar` does it, too."""
        return self._opened_index().refresh()

    def _opened_index(self) -> HashIndex:
        with self._index_lock:
            if self._index is None:
                file = None
                if self._cache is not None:
                    file = HashFile(self._cache / _INDEX_NAME, self._name, self._hash_of)
                self._index = HashIndex(self._hashes_behind, file)
            return self._index

    def _hashes_behind(self, after: int, most: int) -> tuple[Ids, Hashes]:
        hash_ = FRAME.c.perceptual_hash
        asked = select(FRAME.c.id, hash_).where(FRAME.c.id > after, hash_.is_not(None))
        with self._database.reading() as connection:
            rows = connection.execute(asked.order_by(FRAME.c.id).limit(most)).all()
        pairs = np.array([tuple(row) for row in rows], np.int64).reshape(-1, 2)
        return pairs[:, 0].copy(), pairs[:, 1].copy().view(np.uint64)

    def _hash_of(self, frame_id: int) -> int | None:
        with self._database.reading() as connection:
            found = connection.scalar(
                select(FRAME.c.perceptual_hash).where(FRAME.c.id == frame_id)
            )
        return None if found is None else writing.unsigned(found)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RegistryError(f"{folder}: {error.strerror or error}") from error
