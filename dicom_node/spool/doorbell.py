"""Wake another process as soon as there is work, without polling.

A named pipe per kind of waiter. Ringing writes one byte; a waiter sleeps in ``poll`` until there is
one. Bytes outlive the moment, so a ring between "nothing to claim" and "go to sleep" is not lost;
one byte wakes one claim, so that a waiter never takes another's ring away.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import stat
import struct
import termios
from pathlib import Path

from dicom_node.spool.files import translated

# A waiter that finds this many rings unanswered claims again anyway.
MAX_PENDING = 64


class Doorbell:
    """One named pipe, rung and listened to by any number of processes."""

    def __init__(self, path: Path) -> None:
        with translated(path):
            with contextlib.suppress(FileExistsError):
                os.mkfifo(path, 0o600)
            # Read and write, so that opening never waits for the other side (pipe(7), Linux).
            self._handle = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            if not stat.S_ISFIFO(os.fstat(self._handle).st_mode):
                os.close(self._handle)
                raise OSError(f"{path} is not a named pipe; remove it")

    def close(self) -> None:
        """Close our end."""
        os.close(self._handle)

    def ring(self) -> None:
        """Wake one waiter, or the next one that goes to sleep."""
        pending = struct.unpack("i", fcntl.ioctl(self._handle, termios.FIONREAD, b"\0" * 4))[0]
        if pending < MAX_PENDING:
            with contextlib.suppress(BlockingIOError):
                os.write(self._handle, b"\0")

    def wait(self, timeout_s: float) -> bool:
        """Sleep until somebody rings, at most `timeout_s` seconds; say whether somebody did."""
        poll = select.poll()
        poll.register(self._handle, select.POLLIN)
        if not poll.poll(max(0.0, timeout_s) * 1000):
            return False
        with contextlib.suppress(BlockingIOError):
            os.read(self._handle, 1)
        return True
