"""Syslog for audit messages: the form of a message, and the two ways to a collector.

References
----------
RFC 5424 (form), RFC 5425 (TLS, octet counting), RFC 5426 (UDP); DICOM PS3.15 A.6 and A.7: PRI 85
(security, notice), MSGID ``DICOM+RFC3881``, XML in UTF-8 after a byte order mark.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import ssl
import struct
import termios
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

from dicom_node.audit.events import format_time
from dicom_node.errors import AuditError, ConfigError

PRIORITY: Final = 85
MSGID: Final = "DICOM+RFC3881"
CHECKPOINT_MSGID: Final = "dicom-node+checkpoint"
_APP: Final = "dicom-node"
_CONNECT_S: Final = 10.0
_NAME: Final = re.compile(r"[^\x21-\x7e]")


def format_message(
    content: bytes, at: datetime, sequence: int, *, host: str = "", msgid: str = MSGID
) -> bytes:
    """Return one RFC 5424 message.

    Parameters
    ----------
    content
        UTF-8 without a byte order mark.
    sequence
        Number of the trail's entry the message ends with, as ``sequenceId``: what is sent again
        after a lost connection can be told from what happened twice.
    """
    name = _NAME.sub("", host or socket.gethostname())[:255] or "-"
    data = f'[meta sequenceId="{sequence % 0x7FFFFFFF}"]'
    head = f"<{PRIORITY}>1 {format_time(at)} {name} {_APP} {os.getpid()} {msgid} {data} "
    return head.encode("ascii") + b"\xef\xbb\xbf" + content


class Collector(Protocol):
    """Where messages go."""

    def send(self, messages: Sequence[bytes]) -> None:
        """Hand over some messages (AuditError: none of them counts as sent)."""

    def close(self) -> None:
        """Let go of the connection."""


def collector_at(url: str, ca_file: str = "") -> Collector:
    """Return the collector of ``udp://host:port`` or ``tls://host:port`` (ConfigError)."""
    parts = urlsplit(url)
    if parts.scheme not in ("udp", "tls") or not parts.hostname or not parts.port:
        raise ConfigError(f"audit.syslog = {url!r}: use udp://host:port or tls://host:port")
    address = (parts.hostname, parts.port)
    return UdpCollector(address) if parts.scheme == "udp" else TlsCollector(address, ca_file)


class UdpCollector:
    """RFC 5426: one datagram a message. What the network drops, nobody notices."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._socket: socket.socket | None = None

    def send(self, messages: Sequence[bytes]) -> None:
        """Send each as a datagram; a closed port shows at the next one (AuditError)."""
        try:
            if self._socket is None:
                family, kind, *_, address = socket.getaddrinfo(
                    *self._address, type=socket.SOCK_DGRAM
                )[0]
                self._socket = socket.socket(family, kind)
                # Connected, so that "port unreachable" is told to us.
                self._socket.connect(address)
                self._socket.settimeout(_CONNECT_S)
            for message in messages:
                self._socket.send(message)
        except OSError as error:
            self.close()
            raise _unreachable(self._address, error) from error

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class TlsCollector:
    """RFC 5425: messages framed by their length, over TLS 1.2 or later, its certificate checked.

    Parameters
    ----------
    ca_file
        PEM of the authority that signed the collector; "" for those the system trusts.
    """

    def __init__(self, address: tuple[str, int], ca_file: str = "") -> None:
        self._address = address
        try:
            self._context = ssl.create_default_context(
                cafile=str(Path(ca_file)) if ca_file else None
            )
        except OSError as error:
            raise ConfigError(f"audit.syslog_ca = {ca_file!r}: {error}") from error
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._socket: ssl.SSLSocket | None = None

    def send(self, messages: Sequence[bytes]) -> None:
        """Send, and wait until the collector's machine has acknowledged every byte (AuditError).

        Syslog has no answer of its own; without this, what was on its way when the collector went
        away would be lost unseen.
        """
        framed = b"".join(b"%d " % len(message) + message for message in messages)
        try:
            if self._socket is not None and not self._is_open(self._socket):
                self.close()
            if self._socket is None:
                plain = socket.create_connection(self._address, _CONNECT_S)
                try:
                    self._socket = self._context.wrap_socket(
                        plain, server_hostname=self._address[0]
                    )
                except BaseException:
                    plain.close()
                    raise
            self._socket.sendall(framed)
            self._acknowledged(self._socket)
        except OSError as error:
            self.close()
            raise _unreachable(self._address, error) from error

    def close(self) -> None:
        """Say goodbye and close."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.settimeout(1.0)
                self._socket.unwrap().close()
            self._socket.close()
            self._socket = None

    def _acknowledged(self, connection: ssl.SSLSocket) -> None:
        until = time.monotonic() + _CONNECT_S
        while struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0]:
            if time.monotonic() > until:
                raise TimeoutError("sent, but not acknowledged")
            time.sleep(0.002)
        if not self._is_open(connection):
            raise ConnectionResetError("closed while we sent")

    def _is_open(self, connection: ssl.SSLSocket) -> bool:
        """Say whether the peer has not hung up; it has nothing to tell us otherwise."""
        connection.settimeout(0.0)
        try:
            return bool(connection.recv(1))
        except ssl.SSLWantReadError:
            return True
        except OSError:
            return False
        finally:
            connection.settimeout(_CONNECT_S)


def _unreachable(address: tuple[str, int], error: OSError) -> AuditError:
    said = error.strerror or str(error) or type(error).__name__
    return AuditError(f"collector {address[0]}:{address[1]}: {said}")
