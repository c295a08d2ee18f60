"""The trail's files: numbered segments, the list of checkpoints, one lock for all processes.

::

    00000001.jsonl ...   the entries, a line each
    checkpoints.jsonl    every checkpoint's line once more: a log cut short still shows
    lock                 held while somebody writes
    torn-<entry>.bin     what an unfinished write left, set aside
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dicom_node.audit.entries import CHECKPOINT, Entry, parse
from dicom_node.errors import AuditError

CHECKPOINTS: Final = "checkpoints.jsonl"
LONGEST: Final = 1 << 20
_NAME: Final = re.compile(r"(\d{8})\.jsonl")
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC


def segment_path(directory: Path, number: int) -> Path:
    """Return where segment `number` (from 1) lies."""
    return directory / f"{number:08d}.jsonl"


def segment_numbers(directory: Path) -> list[int]:
    """Return the numbers of the segments there are, in order."""
    with translated(directory):
        names = [_NAME.fullmatch(each.name) for each in directory.iterdir()]
    return sorted(int(name[1]) for name in names if name)


@contextlib.contextmanager
def locked(directory: Path, *, shared: bool = False) -> Iterator[None]:
    """Let one process at a time write, or several look at how long the files are."""
    with translated(directory):
        flags = os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT
        try:
            handle = os.open(directory / "lock", flags | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            # A copy somewhere else, which nobody writes to, need not have one.
            yield
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn an OSError into an AuditError that names the path."""
    try:
        yield
    except OSError as error:
        raise AuditError(f"{path}: {error.strerror or error}") from error


def sync_directory(directory: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def append(path: Path, data: bytes) -> None:
    """Write `data` at the end of a file, durably; on failure the file is as long as it was."""
    is_new = not path.exists()
    handle = os.open(path, _FLAGS | os.O_CREAT, 0o600)
    try:
        start = os.fstat(handle).st_size
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.fdatasync(handle)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(handle, start)
            raise
    finally:
        os.close(handle)
    if is_new:
        sync_directory(path.parent)


@dataclass
class Scan:
    """What a segment holds, as its next writer needs to know it.

    Attributes
    ----------
    length
        Bytes up to the last whole entry.
    last, checkpoint
        The last entry, the last checkpoint among them.
    checkpoints
        The lines of all checkpoints.
    unsigned
        Entries after the last checkpoint, or all.
    references
        Of its entries.
    torn
        What follows the last whole entry: an unfinished write.
    """

    length: int = 0
    last: Entry | None = None
    checkpoint: Entry | None = None
    checkpoints: tuple[bytes, ...] = ()
    unsigned: int = 0
    references: frozenset[str] = frozenset()
    torn: bytes = b""


def scan(path: Path, start: int = 0) -> Scan:
    """Read a segment from byte `start` on; a break in the chain is not the writer's business."""
    with translated(path):
        data = path.read_bytes()[start:]
    found, references, place = Scan(start), set(), 0
    for line in data.splitlines(keepends=True):
        place += len(line)
        entry = parse(line[:-1]) if line.endswith(b"\n") else None
        if entry is None:
            continue
        found.length, found.last = start + place, entry
        found.unsigned += 1
        if entry.kind == CHECKPOINT:
            found.checkpoint, found.unsigned = entry, 0
            found.checkpoints += (entry.line,)
        if entry.reference:
            references.add(entry.reference)
    found.references = frozenset(references)
    found.torn = data[found.length - start :]
    return found


def last_line(path: Path) -> bytes:
    """Return the last whole line of a small file, b"" where there is none."""
    if not path.exists():
        return b""
    whole = path.read_bytes().rpartition(b"\n")[0]
    return whole.rpartition(b"\n")[2]


def read_lines(path: Path, limit: int) -> Iterator[bytes]:
    """Yield the lines among the first `limit` bytes of a file; what is longer comes in pieces."""
    with translated(path), path.open("rb") as stream:
        left = limit
        while left > 0:
            line = stream.readline(min(left, LONGEST))
            if not line:
                return
            left -= len(line)
            yield line


def scan_first(path: Path) -> Entry | None:
    """Return the first entry of a segment, None if its first line is none."""
    line = next(read_lines(path, LONGEST), b"")
    return parse(line[:-1]) if line.endswith(b"\n") else None
