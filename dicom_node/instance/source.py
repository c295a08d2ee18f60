"""Random access to the bytes of a data set, wherever they are."""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from dicom_node.errors import PixelError

_WINDOW = 1 << 16
_CHUNK = 1 << 20
_FIRST = 1 << 24


class ByteSource:
    """An open file read by offset: no position to share, nothing kept but one small window."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.size = os.fstat(stream.fileno()).st_size
        self._window = b""
        self._window_at = 0

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes at `offset`; fewer only at the end of the file."""
        data = os.pread(self._stream.fileno(), length, offset)
        if len(data) == length or offset + len(data) >= self.size:
            return data
        parts, got = [data], len(data)
        while got < length:
            more = os.pread(self._stream.fileno(), min(length - got, _CHUNK), offset + got)
            if not more:
                break
            parts.append(more)
            got += len(more)
        return b"".join(parts)

    def peek(self, offset: int, length: int) -> bytes:
        """Return like `read`, through a window of 64 KiB: for many small reads that move on."""
        window, base = self.window(offset, length)
        return window[offset - base : offset - base + length]

    def window(self, offset: int, length: int) -> tuple[bytes, int]:
        """Return bytes around `offset`, `length` of them behind it, and where they begin."""
        start = offset - self._window_at
        if start < 0 or start + length > len(self._window):
            self._window = self.read(offset, max(length, _WINDOW))
            self._window_at = offset
        return self._window, self._window_at

    def close(self) -> None:
        """Close the file; idempotent."""
        self._stream.close()


class MemorySource(ByteSource):
    """Bytes at hand, read as if they were a file's."""

    def __init__(self, data: bytes) -> None:
        self._window, self._window_at, self.size = data, 0, len(data)

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes at `offset`."""
        return self._window[offset : offset + length]

    def window(self, offset: int, length: int) -> tuple[bytes, int]:
        """Return all of it."""
        del offset, length
        return self._window, 0

    def close(self) -> None:
        """Do nothing."""


def open_source(path: Path) -> ByteSource:
    """Open a file for random access (OSError, which says nothing of its content)."""
    return ByteSource(path.open("rb", buffering=0))


def inflate(
    source: ByteSource, offset: int, bound: Callable[[ByteSource], int], *, limit: int,
    folder: Path | None,
) -> ByteSource:  # fmt: skip
    """Return the raw deflate stream at `offset`, inflated into an unnamed temporary file.

    Parameters
    ----------
    bound
        Says, from the first 16 MiB, how many bytes there may be in all. Asked only if there are
        more.
    limit
        Bytes after which the stream is taken for a decompression bomb in any case.
    folder
        Where the file lies; None: in the system's folder for such files.

    Raises
    ------
    PixelError
        If it is not a deflate stream, is cut short, or inflates to too much.

    References
    ----------
    DICOM PS3.5 A.5, Deflated Explicit VR Little Endian.
    """
    try:
        target = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed with the source
        try:
            _inflate_into(target, source, offset, bound, limit)
        except BaseException:
            target.close()
            raise
    except zlib.error as error:
        raise PixelError(f"the data set is not a deflate stream: {error}") from error
    return ByteSource(target)


def _inflate_into(
    target: BinaryIO, source: ByteSource, offset: int, bound: Callable[[ByteSource], int],
    limit: int,
) -> None:  # fmt: skip
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    written, most, asked = 0, min(limit, _FIRST), limit <= _FIRST
    while not engine.eof:
        packed = engine.unconsumed_tail or source.read(offset, _CHUNK)
        if not engine.unconsumed_tail:
            offset += len(packed)
        plain = engine.decompress(packed, _CHUNK)
        target.write(plain)
        written += len(plain)
        if written > most and not asked:
            target.flush()
            most, asked = max(most, min(limit, bound(ByteSource(target)))), True
        if written > most:
            raise PixelError(f"the deflated data set inflates to more than {most} bytes")
        if not packed:
            raise PixelError("the deflated data set is cut short")
    target.flush()
