"""Random access to the bytes of a data set, wherever they are."""

from __future__ import annotations

import os
import tempfile
import zlib
from pathlib import Path
from typing import BinaryIO

from dicom_node.errors import PixelError

_WINDOW = 1 << 16
_CHUNK = 1 << 20


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
        start = offset - self._window_at
        if start < 0 or start + length > len(self._window):
            self._window = self.read(offset, max(length, _WINDOW))
            self._window_at, start = offset, 0
        return self._window[start : start + length]

    def close(self) -> None:
        """Close the file; idempotent."""
        self._stream.close()


def open_source(path: Path) -> ByteSource:
    """Open a file for random access (PixelError if it cannot be read)."""
    try:
        return ByteSource(path.open("rb", buffering=0))
    except OSError as error:
        raise PixelError(f"the file cannot be opened: {error.strerror}") from error


def inflate(source: ByteSource, offset: int, limit: int) -> ByteSource:
    """Return the raw deflate stream at `offset`, inflated into an unnamed temporary file.

    Parameters
    ----------
    limit
        Bytes after which the stream is taken for a decompression bomb.

    Raises
    ------
    PixelError
        If it is not a deflate stream, is cut short, or inflates to more than `limit`.

    References
    ----------
    DICOM PS3.5 A.5, Deflated Explicit VR Little Endian.
    """
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    target = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as the source
    written = 0
    try:
        while not engine.eof:
            packed = engine.unconsumed_tail or source.read(offset, _CHUNK)
            if not engine.unconsumed_tail:
                offset += len(packed)
            plain = engine.decompress(packed, _CHUNK)
            written += len(plain)
            if not packed or written > limit:
                break
            target.write(plain)
    except zlib.error as error:
        target.close()
        raise PixelError(f"the data set is not a deflate stream: {error}") from error
    if engine.eof and written <= limit:
        return ByteSource(target)
    target.close()
    if written > limit:
        raise PixelError(f"the deflated data set inflates to more than {limit} bytes")
    raise PixelError("the deflated data set is cut short")
