"""Destinations that the configuration does not name any more, and what still waits for them."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from dicom_node.errors import SpoolError
from dicom_node.spool.journal import QUERIES

NOT_NAMED = (
    "no [[destination]] is named {name!r}: name one so again, or `dicom-node queue release` sends"
    " it to those that are configured"
)


def open_deliveries(folder: Path) -> dict[str, int]:
    """Return how many deliveries each destination has yet to get; {} where there is no spool.

    The journal is only read: an administrator's look must not leave files that the node cannot use.

    Raises
    ------
    SpoolError
        If there is a journal and it cannot be read.
    """
    path = folder.absolute() / "journal.sqlite"
    if not path.is_file():
        return {}
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as journal:
            return dict(journal.execute(QUERIES["open_deliveries"]).fetchall())
    except sqlite3.Error as error:
        raise SpoolError(f"{path}: cannot be read: {error}") from error


def unknown(waiting: dict[str, int], names: Iterable[str]) -> dict[str, int]:
    """Return what waits for destinations that are not among `names`."""
    known = set(names)
    return {name: count for name, count in sorted(waiting.items()) if name not in known}
