"""Every perceptual hash of the registry where it can be compared with one: exact, all of them.

Comparing is an exclusive or and a count of bits, about 2 ns a hash, so ten million need no index
that guesses. Whole blocks lie in a file (`hash_file`); what came since is kept in memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicom_node.registry.hash_file import BLOCK, Block, Hashes, HashFile, Ids

BITS = 64
Fetch = Callable[[int, int], tuple[Ids, Hashes]]
"""``fetch(after, most)``: the next frames with a hash behind id `after`, ids growing."""


@dataclass(frozen=True, slots=True)
class Near:
    """One frame near one of the hashes asked for."""

    distance: int
    frame_id: int
    query: int


class HashIndex:
    """The hashes of one registry.

    Parameters
    ----------
    fetch
        Asks the database.
    file
        None: everything is kept in memory.
    """

    def __init__(self, fetch: Fetch, file: HashFile | None) -> None:
        self._fetch = fetch
        self._file = file
        self._hashes: Hashes = np.empty(0, np.uint64)
        self._ids: Ids = np.empty(0, np.int64)
        self._lock = threading.Lock()

    def refresh(self) -> int:
        """Take in what came since; return how many hashes there are (RegistryError)."""
        with self._lock:
            if self._file is not None:
                self._file.refresh()
                self._drop_written()
            ids, hashes = self._fetch(self._last(), BLOCK)
            while len(ids):
                self._hashes = np.concatenate([self._hashes, hashes])
                self._ids = np.concatenate([self._ids, ids])
                self._write()
                ids, hashes = self._fetch(self._last(), BLOCK)
            return sum(len(hashes) for hashes, _ in self._blocks())

    def nearest(self, queries: Sequence[int], within: int, limit: int) -> list[Near]:
        """Return the `limit` nearest frames, each once: by distance, then by id.

        Parameters
        ----------
        queries
            Hashes: a frame's distance is its least to any of them.
        within
            Most bits of 64 that may differ.
        """
        with self._lock:
            blocks = list(self._blocks())
        return _nearest(blocks, queries, within, limit)

    def _last(self) -> int:
        if len(self._ids):
            return int(self._ids[-1])
        return self._file.last if self._file is not None else 0

    def _write(self) -> None:
        """Move whole blocks into the file, or see that another process has."""
        while self._file is not None and len(self._ids) >= BLOCK and self._file.writable:
            if not self._file.append((self._hashes[:BLOCK], self._ids[:BLOCK])):
                self._file.refresh()
            self._drop_written()

    def _drop_written(self) -> None:
        assert self._file is not None, "written to a file"
        start = int(np.searchsorted(self._ids, self._file.last, side="right"))
        self._hashes, self._ids = self._hashes[start:], self._ids[start:]

    def _blocks(self) -> Iterator[Block]:
        if self._file is not None:
            yield from self._file.blocks
        for start in range(0, len(self._ids), BLOCK):
            yield self._hashes[start : start + BLOCK], self._ids[start : start + BLOCK]


def _nearest(
    blocks: Sequence[Block], queries: Sequence[int], within: int, limit: int
) -> list[Near]:
    """Compare every hash; a block is short enough to stay in the processor's cache."""
    found: dict[int, Near] = {}
    bound = within
    different, distances = np.empty(BLOCK, np.uint64), np.empty(BLOCK, np.uint8)
    for hashes, ids in blocks:
        for query, hash_ in enumerate(queries):
            distance = distances[: len(hashes)]
            np.bitwise_xor(hashes, np.uint64(hash_), out=different[: len(hashes)])
            np.bitwise_count(different[: len(hashes)], out=distance)
            if distance.min() > bound:
                continue
            for place in _least(distance, bound, limit):
                near = Near(int(distance[place]), int(ids[place]), query)
                known = found.get(near.frame_id)
                if known is None or near.distance < known.distance:
                    found[near.frame_id] = near
        if len(found) >= limit:
            kept = _sorted(found)[:limit]
            found = {near.frame_id: near for near in kept}
            # Ids grow: of equal distance, what comes later comes after these.
            bound = min(bound, kept[-1].distance - 1)
            if bound < 0:
                break
    return _sorted(found)


def _sorted(found: dict[int, Near]) -> list[Near]:
    return sorted(found.values(), key=lambda near: (near.distance, near.frame_id))


def _least(distance: NDArray[np.uint8], bound: int, limit: int) -> NDArray[np.intp]:
    """Return the places of the `limit` least distances up to `bound`, of equal ones the first."""
    places = np.flatnonzero(distance <= bound)
    if len(places) <= limit:
        return places
    return places[np.argsort(distance[places], kind="stable")[:limit]]
