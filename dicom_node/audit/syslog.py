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
# How long a refused datagram may take to be answered; the first one may wait for ARP and distance.
_ANSWER_S: Final = 0.2
_FIRST_ANSWER_S: Final = 1.0
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
    """RFC 5426: one datagram a message.

    A machine whose port is closed says so, and we wait for that. One that is off, behind a firewall
    or further than the wait says nothing: what is sent to it is lost, and nobody notices.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._socket: socket.socket | None = None
        self._in_doubt = True

    def send(self, messages: Sequence[bytes]) -> None:
        """Send each as a datagram, and wait for a word that nobody takes them (AuditError).

        At first and after a failure one goes ahead: a batch of them would be lost on the way, and
        come twice where only its end was refused.
        """
        try:
            connection = self._socket = self._socket or self._connected()
            ahead = 1 if self._in_doubt else 0
            for some in filter(None, (messages[:ahead], messages[ahead:])):
                for message in some:
                    connection.send(message)
                _await_refusal(connection, _FIRST_ANSWER_S if self._in_doubt else _ANSWER_S)
                self._in_doubt = False
        except OSError as error:
            self._in_doubt = True
            if not isinstance(error, ConnectionRefusedError):
                # After a refusal it stays: an answer that comes late is told to this socket alone.
                self.close()
            raise _unreachable(self._address, error) from error

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connected(self) -> socket.socket:
        """Return a socket that is told "port unreachable", which only connected ones are."""
        family, kind, *_, address = socket.getaddrinfo(*self._address, type=socket.SOCK_DGRAM)[0]
        made = socket.socket(family, kind)
        try:
            made.connect(address)
        except BaseException:
            made.close()
            raise
        return made


def _await_refusal(connection: socket.socket, wait_s: float) -> None:
    """Raise ConnectionRefusedError if it comes within `wait_s`; what else comes is ignored."""
    until = time.monotonic() + wait_s
    try:
        while (left_s := until - time.monotonic()) > 0:
            connection.settimeout(left_s)
            connection.recv(1)
    except TimeoutError:
        return
    finally:
        connection.settimeout(_CONNECT_S)


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
