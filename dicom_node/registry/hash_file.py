"""The file of perceptual hashes beside the database: blocks, appended whole, mapped into memory.

    header     64 bytes: magic, name of the registry, hashes in a block
    block      `BLOCK` hashes (uint64), `BLOCK` frame ids (int64), 16 bytes BLAKE2b of both

All little-endian. A copy of what the database has: where it is missing, damaged, or of another
registry, it is begun anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import RegistryError

BLOCK = 16384
_MAGIC = b"DNPHASH1"
_HEADER = 64
_CHECK = 16
_BYTES = BLOCK * 16 + _CHECK

Hashes = NDArray[np.uint64]
Ids = NDArray[np.int64]
Block = tuple[Hashes, Ids]
Known = Callable[[int], int | None]
"""``known(frame_id)``: the hash the database has under this id, None if it has none."""


class HashFile:
    """The whole blocks of one registry; several processes may read and append.

    Parameters
    ----------
    registry
        Its name, 32 hex digits.
    known
        Asked for the last frame of a file that was not looked at yet: a database that was put back
        to an earlier state has given the ids to other frames since.
    """

    def __init__(self, path: Path, registry: str, known: Known) -> None:
        self._path = path
        self._known = known
        self._head = (_MAGIC + bytes.fromhex(registry) + BLOCK.to_bytes(4, "little")).ljust(
            _HEADER, b"\0"
        )
        self.blocks: list[Block] = []

    @property
    def last(self) -> int:
        """Id of the last frame; 0 for none."""
        return int(self.blocks[-1][1][-1]) if self.blocks else 0

    @property
    def writable(self) -> bool:
        """Whether this process may append."""
        there = self._path if self._path.exists() else self._path.parent
        return os.access(there, os.W_OK) and os.access(self._path.parent, os.W_OK)

    def refresh(self) -> None:
        """Map what was appended since; a file that is not as it should be counts as empty."""
        with _translated(self._path):
            count = self._count()
            if count == len(self.blocks):
                return
            self.blocks = self._map(count) if self._is_good(count) else []

    def append(self, block: Block) -> bool:
        """Append one block behind `last`; False if somebody else was faster (then `refresh`)."""
        with _translated(self._path), self._turn():
            count = self._count()
            if not self._is_good(count):
                self._begin_anew()
                count = 0
            if count != len(self.blocks):
                return False
            content = block[0].astype("<u8").tobytes() + block[1].astype("<i8").tobytes()
            with self._path.open("r+b") as stream:
                # Over what a crash left of a block.
                stream.seek(_HEADER + count * _BYTES)
                stream.write(content + _check(content))
                stream.truncate()
                stream.flush()
                os.fdatasync(stream.fileno())
            self.blocks = self._map(count + 1)
            return True

    def _count(self) -> int:
        """Return how many whole blocks the file has."""
        try:
            return max(0, self._path.stat().st_size - _HEADER) // _BYTES
        except FileNotFoundError:
            return 0

    def _is_good(self, count: int) -> bool:
        """Whether it is this registry's, and its last block whole and what the database has."""
        try:
            with self._path.open("rb") as stream:
                if stream.read(_HEADER) != self._head:
                    return False
                if count == 0:
                    return True
                stream.seek(_HEADER + (count - 1) * _BYTES)
                content = stream.read(_BYTES)
        except FileNotFoundError:
            return False
        if _check(content[:-_CHECK]) != content[-_CHECK:]:
            return False
        hashes, ids = _split(np.frombuffer(content, np.uint8))
        return self._known(int(ids[-1])) == int(hashes[-1])

    def _map(self, count: int) -> list[Block]:
        if not count:
            return []
        mapped = np.memmap(self._path, np.uint8, "r", _HEADER, (count, _BYTES))
        return [_split(mapped[index]) for index in range(count)]

    def _begin_anew(self) -> None:
        """Put an empty file in its place; whoever has the old one mapped keeps that."""
        new = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        new.write_bytes(self._head)
        new.replace(self._path)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Let one process at a time append (a lock file beside it)."""
        handle = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _split(block: NDArray[np.uint8]) -> Block:
    half = BLOCK * 8
    return block[:half].view("<u8"), block[half : 2 * half].view("<i8")


def _check(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_CHECK).digest()


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RegistryError(f"{path}: {error.strerror or error}") from error
