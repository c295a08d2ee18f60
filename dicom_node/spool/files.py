"""The spool's folder: files named by our own ids, made durable before anybody hears of them.

::

    journal.sqlite          the journal (WAL beside it)
    journal.reserve         blocks kept for a full disk
    incoming/<process>/     temporary files of one living process, and the lock that says it lives
    received/<0-f>/         instances as received
    marked/<0-f>/           what is sent instead
    bells/                  named pipes that wake waiting processes
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dicom_node.errors import SpoolError, SpoolFull

Buffer = bytes | bytearray | memoryview
READ_BYTES = 1 << 20
_STALE_STAGING_S = 3600.0
_CREATE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC


class Files:
    """One process's hands on the spool folder. Every foreign error becomes a SpoolError."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._count = itertools.count(1)
        self._name_lock = threading.Lock()
        with translated(self.root):
            for kind in ("received", "marked"):
                for shard in "0123456789abcdef":
                    (self.root / kind / shard).mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in ("incoming", "bells"):
                (self.root / folder).mkdir(mode=0o700, exist_ok=True)
            for kind in ("received", "marked", ""):
                sync_directory(self.root / kind)
            self.process, self._life = self._come_alive()
        self._scratch = self.root / "incoming" / self.process

    def _come_alive(self) -> tuple[str, int]:
        """Make this process's folder, its lock already held when others can see it."""
        process = f"{time.time_ns() // 1_000_000:011x}{secrets.token_hex(4)}"
        staging = self.root / "incoming" / f".new-{process}"
        staging.mkdir(mode=0o700)
        life = os.open(staging / "alive", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(life, fcntl.LOCK_EX | fcntl.LOCK_NB)
        staging.rename(self.root / "incoming" / process)
        return process, life

    def close(self) -> None:
        """Remove this process's temporary files; from now on it counts as ended."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        os.close(self._life)

    @property
    def scratch(self) -> Path:
        """Folder for this process's temporary files; swept by others once it has died."""
        return self._scratch

    def new_name(self) -> str:
        """Return a file name nobody else uses; it tells which process made it."""
        with self._name_lock:
            return f"{self.process}-{next(self._count):08x}"

    def received(self, name: str) -> Path:
        """Return where the instance as received lies."""
        return Path(f"{self.root}/received/{name[-1]}/{name}.dcm")

    def marked(self, name: str) -> Path:
        """Return where the result lies."""
        return Path(f"{self.root}/marked/{name[-1]}/{name}.dcm")

    def remove(self, *paths: Path | None) -> int:
        """Remove files that may already be gone; return how many were there."""
        removed = 0
        for path in paths:
            if path is None:
                continue
            with translated(path), contextlib.suppress(FileNotFoundError):
                path.unlink()
                removed += 1
        return removed

    def size_of(self, path: Path) -> int | None:
        """Return the size of a file, None if it is not there."""
        with translated(path):
            try:
                return path.stat().st_size
            except FileNotFoundError:
                return None

    def digest_of(self, path: Path) -> bytes | None:
        """Return the digest of a file's data set, None if it cannot be read."""
        try:
            with path.open("rb") as stream:
                return dataset_digest(stream.fileno())[1]
        except OSError:
            return None

    def replace_received(self, name: str, lost: str) -> None:
        """Put one received instance durably in the place of another one."""
        final = self.received(lost)
        with translated(final):
            self.received(name).rename(final)
            sync_directory(final.parent)

    # -- who lives ----------------------------------------------------------------------------

    def is_alive(self, process: str) -> bool:
        """Say whether the process that made these names still runs (the kernel knows: its lock)."""
        if process == self.process:
            return True
        try:
            life = os.open(self.root / "incoming" / process / "alive", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise SpoolError(f"{self.root}: {error}") from error
        try:
            fcntl.flock(life, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(life)
        return False

    def sweep_dead(self) -> int:
        """Remove the temporary files of processes that ended; return how many there were."""
        removed = 0
        with translated(self.root):
            for folder in list((self.root / "incoming").iterdir()):
                if folder.name.startswith(".new-"):
                    with contextlib.suppress(FileNotFoundError):
                        if time.time() - folder.stat().st_mtime < _STALE_STAGING_S:
                            continue
                elif self.is_alive(folder.name):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    removed += sum(path.name != "alive" for path in folder.iterdir())
                shutil.rmtree(folder, ignore_errors=True)
        return removed

    def orphans(self) -> list[Path]:
        """Return the files made by processes that ended; the journal says which of them count."""
        living: dict[str, bool] = {}
        found: list[Path] = []
        with translated(self.root):
            for kind in ("received", "marked"):
                for path in self.root.glob(f"{kind}/?/*"):
                    process = path.name.partition("-")[0]
                    if process not in living:
                        living[process] = self.is_alive(process)
                    if not living[process]:
                        found.append(path)
        return found

    # -- durable writing ----------------------------------------------------------------------

    def store(
        self, name: str, header: Buffer, dataset: Buffer | Iterable[Buffer]
    ) -> tuple[int, bytes]:
        """Write one instance durably into received/; return its size and its data set's digest.

        Temp file, fsync, rename, fsync of the folder: in this order, so that a file with a name is
        a whole file.
        """
        chunks = [dataset] if isinstance(dataset, bytes | bytearray | memoryview) else dataset
        temporary, final = self.scratch / name, self.received(name)
        digest = content_digest()
        with translated(temporary):
            try:
                handle = os.open(temporary, _CREATE, 0o600)
                try:
                    size = _write_all(handle, [memoryview(header)])
                    for chunk in chunks:
                        digest.update(chunk)
                        size += _write_all(handle, [memoryview(chunk)])
                    os.fsync(handle)
                finally:
                    os.close(handle)
                temporary.rename(final)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            sync_directory(final.parent)
        return size, digest.digest()

    def adopt(self, result: Path, name: str) -> tuple[int, bytes]:
        """Move a finished result durably into marked/; return its size and its digest."""
        final = self.marked(name)
        with translated(result):
            with result.open("rb") as stream:
                size, digest = dataset_digest(stream.fileno())
                os.fsync(stream.fileno())
            result.rename(final)
            sync_directory(final.parent)
        return size, digest


def free_bytes(folder: Path) -> int:
    """Return how much of a folder's disk is left for us."""
    with translated(folder):
        answer = os.statvfs(folder)
    return answer.f_bavail * answer.f_frsize


def dataset_digest(handle: int) -> tuple[int, bytes]:
    """Return the size of a DICOM file and the BLAKE2b-256 of its data set.

    The File Meta Information names who sent the file, not what it shows, so it is left out; the
    group length (0002,0000) says where it ends (PS3.10 7.1). Without it, the whole file counts.
    """
    head = os.pread(handle, 144, 0)
    start = 0
    if head[128:132] == b"DICM" and head[132:140] == b"\x02\x00\x00\x00UL\x04\x00":
        start = 144 + int.from_bytes(head[140:144], "little")
    size = os.fstat(handle).st_size
    digest = content_digest()
    place = start if start <= size else 0
    while chunk := os.pread(handle, READ_BYTES, place):
        digest.update(chunk)
        place += len(chunk)
    return size, digest.digest()


def content_digest(content: bytes = b"") -> hashlib.blake2b:
    """Return the digest by which the journal recognises an instance sent again, over `content`.

    BLAKE2b with 256 bits: it proves nothing to anybody, and takes a third of the time of SHA-3.
    """
    return hashlib.blake2b(content, digest_size=32)


def sync_directory(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_all(handle: int, buffers: Sequence[memoryview]) -> int:
    total = 0
    for buffer in buffers:
        rest = buffer.cast("B") if buffer.nbytes else buffer
        while rest.nbytes:
            written = os.write(handle, rest)
            total += written
            rest = rest[written:]
    return total


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn an OSError into a SpoolError that names the path; no space left is SpoolFull."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SpoolFull(f"{path}: no space left on the spool's disk") from error
        raise SpoolError(f"{path}: {error.strerror or error}") from error
