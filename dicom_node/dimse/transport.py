"""The TCP side of an association: bounded reads, prompt acknowledgements, gathered writes."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence

from pynetdicom.transport import T_CONNECT, AssociationSocket

_LINGER_S = 0.5
_CONNECT_S = 10.0
_STEP_S = 0.1
_BYTES_ACKED = struct.Struct("120xQ")  # tcpi_bytes_acked of struct tcp_info, linux/tcp.h
_GATHERED = 512  # buffers in one sendmsg; Linux takes 1024 (IOV_MAX)

Buffer = bytes | bytearray | memoryview


class QuickSocket(AssociationSocket):
    """pynetdicom's socket without ``select()``, 4 KiB reads and delayed acknowledgements.

    ``poll()`` works with any file descriptor; ``select()`` fails from 1024 on, which looks like a
    closed connection.
    """

    silence_s: float | None = 30.0
    """Seconds one read or write may make no progress."""

    watch: Callable[[], object] | None = None
    """Asked some ten times a second while the peer is waited for, also to connect; may raise."""

    watch_inside: Callable[[], object] | None = None
    """Asked some ten times a second while a PDU is half read or written; may raise."""

    _acknowledged = 0
    _asked_at = 0.0
    _lingering: socket.socket | None = None

    @property
    def acknowledged(self) -> int:
        """Bytes the peer's system has acknowledged, up to the end; 0 where nobody knows."""
        if self.socket is None:
            return self._acknowledged
        try:
            told = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size)
        except OSError:
            return 0
        return int(_BYTES_ACKED.unpack(told)[0]) if len(told) == _BYTES_ACKED.size else 0

    def attach(self, silence_s: float | None) -> None:
        """Prepare a connected socket (its time-out in seconds; ``None`` waits for ever)."""
        self.silence_s = silence_s
        sock = self._connected()
        sock.settimeout(silence_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def connect(self, primitive: T_CONNECT) -> None:
        """Connect to the peer in `primitive` (Evt2, or Evt17 when it cannot be reached)."""
        if self.watch is not None and self.socket is not None:
            self._begin_to_connect(self.socket, primitive.address_info.as_tuple, self.watch)
        super().connect(primitive)
        if self._is_connected:
            self.attach(self.silence_s)

    def _begin_to_connect(
        self, sock: socket.socket, address: tuple[object, ...], watch: Callable[[], object]
    ) -> None:
        """Connect in steps; connecting once more then tells at once how it went (connect(2))."""
        sock.settimeout(0)
        if sock.connect_ex(address) != errno.EINPROGRESS:
            return
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        patience_s = self.assoc.connection_timeout
        deadline = time.monotonic() + (_CONNECT_S if patience_s is None else patience_s)
        while time.monotonic() < deadline and not poll.poll(_STEP_S * 1000):
            watch()

    def wait_readable(self, timeout_s: float | None, wake_fd: int | None = None) -> bool:
        """Return whether there is something to read (also the end of the connection).

        `False` after `timeout_s`, or as soon as `wake_fd` becomes readable. Raises what `watch`
        raises.
        """
        sock = self._connected()
        if isinstance(sock, ssl.SSLSocket) and sock.pending():
            return True
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        if wake_fd is not None:
            poll.register(wake_fd, select.POLLIN)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            step_s = left_s
            if self.watch is not None:
                step_s = _STEP_S if left_s is None else min(_STEP_S, left_s)
            found = poll.poll(None if step_s is None else step_s * 1000)
            if found or left_s == 0.0 or self.watch is None:
                return any(fd == sock.fileno() for fd, _ in found)
            self.watch()

    def read_into(self, view: memoryview) -> None:
        """Fill `view` from the peer.

        Raises
        ------
        OSError
            If the connection ends first (ConnectionError) or is silent (TimeoutError).
        """
        sock = self._connected()
        filled = 0
        while filled < len(view):
            # A peer with Nagle's algorithm waits for our acknowledgement, which Linux delays by
            # 40 ms unless asked again before each read.
            if not isinstance(sock, ssl.SSLSocket):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            self._look_round(sock, select.POLLIN)
            count = sock.recv_into(view[filled:])
            if not count:
                raise ConnectionError("the peer closed the connection")
            filled += count

    def _look_round(self, sock: socket.socket, event: int) -> None:
        """Ask `watch_inside` until the peer goes on; silence of `silence_s` is a TimeoutError."""
        watch = self.watch_inside
        if watch is None or isinstance(sock, ssl.SSLSocket):
            return
        poll = select.poll()
        poll.register(sock, event)
        began = time.monotonic()
        while True:
            ready = poll.poll(_STEP_S * 1000)
            now = time.monotonic()
            if now - self._asked_at >= _STEP_S:
                self._asked_at = now
                self.watch_inside = None  # it may read, too, and is not asked inside itself
                try:
                    watch()
                finally:
                    self.watch_inside = watch
            if ready:
                return
            if self.silence_s is not None and now - began > self.silence_s:
                raise TimeoutError("the peer stopped inside a PDU")

    def write_all(self, buffers: Sequence[Buffer]) -> None:
        """Send `buffers` in order, without joining them (OSError if the peer is gone or stuck)."""
        sock = self._connected()
        if isinstance(sock, ssl.SSLSocket):
            for buffer in buffers:
                sock.sendall(buffer)
            return
        pending = list(buffers)
        lengths = list(map(len, pending))
        start = 0
        while start < len(pending):
            self._look_round(sock, select.POLLOUT)
            sent = sock.sendmsg(pending[start : start + _GATHERED])
            for length in lengths[start:]:
                if sent < length:
                    break
                sent -= length
                start += 1
            if sent:
                pending[start] = memoryview(pending[start])[sent:]
                lengths[start] -= sent

    def send(self, bytestream: bytes) -> None:
        """Send one PDU of the state machine (Evt17 if that fails, as pynetdicom expects)."""
        try:
            self.write_all([bytestream])
        except OSError:
            self.event_queue.put("Evt17")

    def linger_close(self) -> None:
        """Close so that the peer still reads our last PDU.

        Closing with unread bytes in the buffer makes the kernel reset the connection, and the
        reset would overtake an A-ABORT or A-ASSOCIATE-RJ.
        """
        self._acknowledged = self.acknowledged
        sock, self._lingering = self.socket, self.socket
        self.socket, self._is_connected = None, False
        if sock is None:
            return
        deadline = time.monotonic() + _LINGER_S
        try:
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(_LINGER_S)
            while time.monotonic() < deadline and sock.recv(65536):
                continue
        except OSError:
            pass  # the peer is already gone: nothing is left to be read
        finally:
            sock.close()

    def cut(self) -> None:
        """End the connection under the thread that works on it, or that is closing it."""
        sock = self.socket or self._lingering
        if sock is not None:
            with contextlib.suppress(OSError):  # it may end by itself meanwhile
                sock.shutdown(socket.SHUT_RDWR)

    def _shutdown_socket(self) -> None:
        """Close, where pynetdicom's state machine asks for it."""
        self.linger_close()

    def _connected(self) -> socket.socket:
        if self.socket is None:
            raise ConnectionError("the connection is closed")
        return self.socket
