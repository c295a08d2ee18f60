"""The audit trail as the node uses it: record events; somewhere, a thread passes them on."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

from dicom_node.audit.events import Event, KeyUse, KeyUsed
from dicom_node.audit.log import AuditLog
from dicom_node.config import Config
from dicom_node.keys import KeyRing

if TYPE_CHECKING:
    from dicom_node.audit.sending import Sender

Told = Event | tuple[Event, str]


class AuditTrail:
    """The log of a configuration and, in one process of the node, the sender to its collector."""

    def __init__(self, log: AuditLog, sender: Sender | None) -> None:
        self._log = log
        self._sender = sender

    @classmethod
    def open(cls, config: Config, ring: KeyRing | None, *, sends: bool = False) -> Self:
        """Open the trail that `config` names.

        Parameters
        ----------
        ring
            Its current key signs checkpoints.
        sends
            Pass the trail on to ``audit.syslog``, if there is one: what *every* process records.
            For the process that runs as long as the node does; a second one waits its turn.

        Raises
        ------
        AuditError
            If the folder cannot be made.
        ConfigError
            If the collector cannot be used.
        """
        log = AuditLog.open(
            config.audit_directory, ring, checkpoint_every=config.audit.checkpoint_every
        )
        return cls(log, _sender(config) if sends else None)

    def record(self, events: Iterable[Told]) -> int:
        """Write events, durable when this returns; return how many were new.

        Parameters
        ----------
        events
            Alone, or with the reference that a repetition is recognised by, see `AuditLog`.

        Raises
        ------
        AuditError
            If they cannot be written; offer them again as they were.
        """
        count = self._log.append_many(
            each if isinstance(each, tuple) else (each, "") for each in events
        )
        if self._sender is not None:
            self._sender.wake()
        return count

    def close(self) -> None:
        """Sign the end, send it, and stop sending (AuditError)."""
        try:
            self._log.close()
        finally:
            if self._sender is not None:
                self._sender.stop()


@contextmanager
def sending(config: Config) -> Iterator[None]:
    """Pass the trail on to ``audit.syslog`` meanwhile, if there is one.

    For the process that runs as long as the node does and writes through an `AuditLog` of its own;
    what the others write is found within a second.

    Raises
    ------
    ConfigError
        If the collector cannot be used.
    AuditError
        If the trail cannot be read.
    """
    sender = _sender(config)
    try:
        yield
    finally:
        if sender is not None:
            sender.stop()


def _sender(config: Config) -> Sender | None:
    """Return a sender at work, or None where there is no collector."""
    if not config.audit.syslog:
        return None
    # Only the process that sends pays for TLS and XML.
    from dicom_node.audit.message_xml import Node
    from dicom_node.audit.sending import Sender
    from dicom_node.audit.syslog import collector_at

    collector = collector_at(config.audit.syslog, config.audit.syslog_ca)
    node = Node(config.node.ae_title, socket.gethostname(), config.watermark.owner)
    sender = Sender(config.audit_directory, config.audit.syslog, collector, node)
    sender.start()
    return sender


@contextmanager
def recorded(config: Config, ring: KeyRing) -> Iterator[Callable[[Event], None]]:
    """Let a command record what it does, where there is a node whose trail it belongs to.

    That is so if the configuration names the trail's folder, or if its spool is there. Elsewhere,
    as for somebody who restores one file at a desk, the function does nothing.

    Raises
    ------
    AuditError
        If the trail cannot be written: what has to be recorded is not done unrecorded.
    """
    if not config.audit.directory and not config.spool.directory.is_dir():
        yield lambda event: None
        return
    trail = AuditTrail.open(config, ring)
    try:

        def record(event: Event) -> None:
            trail.record([event])

        yield record
    finally:
        trail.close()


def key_used(ring: KeyRing, use: KeyUse) -> KeyUsed:
    """Return the event that whoever runs this process uses the current key now."""
    key_id = ring.current.key_id.hex()
    return KeyUsed(at=datetime.now(UTC), use=use, key_id=key_id, by=account())


def account() -> str:
    """Return who runs this process, as the system knows them: ``name@host``."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):
        # A user id without a name, as in some containers.
        name = "unknown"
    return f"{name}@{socket.gethostname()}"
