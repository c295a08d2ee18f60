"""SQLite's write-ahead log, turned on however many processes open a new file at once."""

from __future__ import annotations

import sqlite3
import time

_PAUSE_S = 0.01


def turn_on(connection: sqlite3.Connection, wait_s: float) -> None:
    """Put the file of a connection into WAL mode; raises sqlite3.OperationalError after `wait_s`.

    The switch reads, and then wants the file for itself. Of two that have read SQLite tells one at
    once that it is locked, whatever its timeout, as both would wait for ever.
    """
    until = time.monotonic() + wait_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
        time.sleep(_PAUSE_S)
