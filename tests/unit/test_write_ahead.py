"""Files of SQLite that several processes open for the first time, at once."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dicom_node import write_ahead
from dicom_node.registry.database import Database
from dicom_node.spool.journal import Journal


def _at_once(open_it: Callable[[], None], number: int = 4) -> list[BaseException]:
    """Return what went wrong where so many threads do the same in the same instant."""
    together = threading.Barrier(number)

    def opened() -> None:
        together.wait()
        open_it()

    with ThreadPoolExecutor(number) as threads:
        each = [threads.submit(opened) for _ in range(number)]
    return [error for one in each if (error := one.exception()) is not None]


def test_a_new_journal_is_opened_by_several_at_once(tmp_path: Path) -> None:
    for turn in range(100):
        path = tmp_path / f"{turn}.sqlite"
        assert _at_once(lambda path=path: Journal(path).close()) == []


def test_a_new_registry_is_opened_by_several_at_once(tmp_path: Path) -> None:
    def opened(path: Path) -> None:
        database = Database(f"sqlite:///{path}")
        with database.reading():
            pass
        database.close()

    for turn in range(30):
        path = tmp_path / f"{turn}.sqlite"
        assert _at_once(lambda path=path: opened(path)) == []


def test_a_file_that_stays_locked_is_waited_for_so_long_and_then_named_so(tmp_path: Path) -> None:
    holder = sqlite3.connect(tmp_path / "one.sqlite", isolation_level=None)
    holder.execute("CREATE TABLE t (x)")
    holder.execute("BEGIN EXCLUSIVE")
    other = sqlite3.connect(tmp_path / "one.sqlite", timeout=0, isolation_level=None)
    began = time.monotonic()
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        write_ahead.turn_on(other, 0.3)
    assert 0.3 <= time.monotonic() - began < 2
    holder.execute("COMMIT")
    write_ahead.turn_on(other, 0.3)
    assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()
    holder.close()
