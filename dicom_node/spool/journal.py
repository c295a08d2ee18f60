"""The journal: one SQLite file in WAL mode, named statements, short transactions."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from dicom_node import write_ahead
from dicom_node.errors import SpoolError, SpoolFull
from dicom_node.spool.files import free_bytes

BUSY_TIMEOUT_S = 30.0
# 1 had no outbox, 2 no new UIDs, 3 no limit of crashed deliveries, 4 no index of open versions.
SCHEMA_VERSION = 5
_NO_ROOM_PERHAPS = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
_LAST_BYTES = 1 << 16


def load_queries(text: str) -> dict[str, str]:
    """Return the statements of a file of ``-- name --`` headings by their names."""
    parts = re.split(r"^-- (\w+) --$", text, flags=re.MULTILINE)
    return {name: body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}


_SQL = resources.files("dicom_node.spool")
QUERIES = {
    name: statement
    for file in ("queries.sql", "outbox.sql")
    for name, statement in load_queries(_SQL.joinpath(file).read_text("utf-8")).items()
}


class Journal:
    """One connection, shared by the threads of a process under a lock.

    A *durable* transaction is on disk when it returns. The others (claims, lease renewals) may be
    forgotten by a power cut, which only means that a lease is claimed again; SQLite keeps their
    order, so nothing durable can be lost with them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._durable = True
        with _translated(path):
            self._connection = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            try:
                self._connection.row_factory = sqlite3.Row
                write_ahead.turn_on(self._connection, BUSY_TIMEOUT_S)
                self._connection.execute("PRAGMA synchronous = FULL")
                self._create()
            except BaseException:
                self._connection.close()
                raise

    def _create(self) -> None:
        [version] = self._connection.execute("PRAGMA user_version").fetchone()
        if version == SCHEMA_VERSION:
            return
        if version not in range(SCHEMA_VERSION):
            raise SpoolError(
                f"{self.path}: journal version {version}, this release reads {SCHEMA_VERSION};"
                " empty the spool with the release that wrote it"
            )
        self._add_columns()
        self._connection.executescript(
            f"BEGIN IMMEDIATE; {QUERIES['schema']} {QUERIES['outbox_schema']}"
            f" PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
        )

    def _add_columns(self) -> None:
        """Bring the table of an earlier release up to date; of several processes, one does."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            columns = {row["name"] for row in self._connection.execute(QUERIES["job_columns"])}
            for column in ("result_instance_uid", "released") if columns else ():
                if column not in columns:
                    self._connection.execute(QUERIES[f"add_{column}"])
            columns = {row["name"] for row in self._connection.execute(QUERIES["delivery_columns"])}
            if columns and "crashes" not in columns:
                self._connection.execute(QUERIES["add_crashes"])
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Close the connection; unfinished transactions are rolled back."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[Journal]:
        """Hold the write lock; commit at the end, roll back on any exception (SpoolError)."""
        with self._lock, _translated(self.path):
            if durable != self._durable:
                self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                self._durable = durable
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def rows(self, name: str, **values: Any) -> list[sqlite3.Row]:
        """Run one named statement and return all its rows."""
        with self._lock, _translated(self.path):
            return self._connection.execute(QUERIES[name], values).fetchall()

    def row(self, name: str, **values: Any) -> sqlite3.Row | None:
        """Run one named statement and return its first row, if any."""
        rows = self.rows(name, **values)
        return rows[0] if rows else None

    def insert(self, name: str, values: Mapping[str, Any]) -> int:
        """Run one named INSERT and return the new row's id."""
        with self._lock, _translated(self.path):
            cursor = self._connection.execute(QUERIES[name], values)
            return int(cursor.lastrowid or 0)


def _is_full(error: sqlite3.Error, path: Path) -> bool:
    """Whether there was no room: the shared memory beside the log says only "I/O error" then."""
    code = getattr(error, "sqlite_errorcode", 0)
    if code == sqlite3.SQLITE_FULL:
        return True
    return code & 0xFF in _NO_ROOM_PERHAPS and free_bytes(path.parent) < _LAST_BYTES


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if _is_full(error, path):
            raise SpoolFull(f"{path}: no space left for the journal") from error
        raise SpoolError(f"{path}: {error}") from error
