"""A place in a frame; apart from the tiles, whose loops take long to load."""

from __future__ import annotations

from typing import NamedTuple


class Box(NamedTuple):
    """A rectangle in frame pixels."""

    row: int
    column: int
    rows: int
    columns: int
