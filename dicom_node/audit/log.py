"""Append to the audit trail, from any number of processes.

An entry is durable when `append` returns. What a crash tore is set aside, and the trail says so.
Checkpoints are signed every so many entries, at the end of a segment and on `close`.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha3_256
from pathlib import Path
from typing import Any, Final, Self

import structlog

from dicom_node.audit import segments
from dicom_node.audit.entries import (
    FIRST,
    FORMAT,
    SEGMENT,
    Signed,
    checkpoint_event,
    format_line,
    now,
    segment_event,
)
from dicom_node.audit.events import Event, Recovered
from dicom_node.errors import AuditError
from dicom_node.keys import KeyRing, KeySet

_log = structlog.get_logger(__name__)

SEGMENT_BYTES: Final = 8 << 20


@dataclass
class _Tail:
    """Where the trail ends: what the next entry is chained to."""

    log: str
    segment: int = 0
    length: int = 0
    seq: int = 0
    hash: str = FIRST
    unsigned: int = 0
    promised: int | None = None
    # Of this segment and the one before: at least a segment's worth is recognised.
    references: set[str] = field(default_factory=set)
    former: set[str] = field(default_factory=set)


class AuditLog:
    """The trail in one folder; safe to use from several threads and processes.

    Parameters
    ----------
    keys
        Signs checkpoints; without, entries are chained, and somebody with keys signs later.
    """

    def __init__(
        self, directory: Path, keys: KeySet | None, checkpoint_every: int, segment_bytes: int
    ) -> None:
        self.directory = directory
        self._keys = keys
        self._every = checkpoint_every
        self._segment_bytes = segment_bytes
        self._thread = threading.Lock()
        self._tail: _Tail | None = None
        self._lines: list[bytes] = []
        self._size = 0
        self._checkpoints: list[bytes] = []

    @classmethod
    def open(
        cls,
        directory: Path,
        ring: KeyRing | None,
        *,
        checkpoint_every: int = 1000,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> Self:
        """Open the trail in `directory`, which is made if it is missing; nothing is written yet.

        Raises
        ------
        AuditError
            If the folder cannot be made.
        """
        with segments.translated(directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        keys = ring.current if ring is not None and ring.current.has_secrets else None
        return cls(directory, keys, checkpoint_every, segment_bytes)

    def append(self, event: Event, reference: str = "") -> bool:
        """Write one event; return False if `reference` is there already (AuditError)."""
        return self.append_many([(event, reference)]) == 1

    def append_many(self, events: Iterable[tuple[Event, str]]) -> int:
        """Write events, all durable when this returns; return how many were new.

        Parameters
        ----------
        events
            Each with a reference: one that is found among the latest segment's worth of entries
            (8 MiB, some ten thousand) was written before a crash, and is left out. "" has none.

        Raises
        ------
        AuditError
            If they cannot be written; a part may have been, so offer them again as they were.
        """
        with self._thread, segments.locked(self.directory):
            try:
                with segments.translated(self.directory):
                    tail = self._caught_up()
                    count = 0
                    for event, reference in events:
                        if not reference:
                            self._add(tail, event.to_json())
                        elif reference in tail.references or reference in tail.former:
                            continue
                        else:
                            self._add(tail, event.to_json(), reference)
                            tail.references.add(reference)
                        count += 1
                    self._flush(tail)
            except BaseException:
                # What is on the disk decides; it is read again.
                self._tail, self._lines, self._size, self._checkpoints = None, [], 0, []
                raise
        return count

    def checkpoint(self) -> None:
        """Sign what no checkpoint covers yet; does nothing without keys (AuditError)."""
        if self._keys is None:
            return
        with (
            self._thread,
            segments.locked(self.directory),
            segments.translated(self.directory),
        ):
            if not segments.segment_numbers(self.directory):
                return
            tail = self._caught_up()
            if tail.unsigned:
                self._sign(tail, self._keys)
                self._flush(tail)

    def close(self) -> None:
        """Sign the end (AuditError)."""
        self.checkpoint()

    # -- writing ------------------------------------------------------------------------------

    def _add(self, tail: _Tail, event: Mapping[str, Any], reference: str = "") -> None:
        """Chain one entry to the tail; a checkpoint or the next segment where one is due."""
        if tail.length + self._size >= self._segment_bytes:
            self._rotate(tail)
        self._chain(tail, event, reference)
        due = self._every if tail.promised is None else min(self._every, tail.promised)
        if self._keys is not None and tail.unsigned >= due:
            self._sign(tail, self._keys)

    def _chain(
        self, tail: _Tail, event: Mapping[str, Any], reference: str = "", time: str = ""
    ) -> bytes:
        line, digest = format_line(tail.seq + 1, time or now(), tail.hash, event, reference)
        tail.seq, tail.hash, tail.unsigned = tail.seq + 1, digest, tail.unsigned + 1
        self._lines.append(line + b"\n")
        self._size += len(line) + 1
        return line

    def _sign(self, tail: _Tail, keys: KeySet) -> None:
        time = now()
        event = checkpoint_event(tail.log, tail.seq + 1, tail.hash, time, self._every, keys)
        line = self._chain(tail, event, time=time)
        self._checkpoints.append(line + b"\n")
        tail.unsigned, tail.promised = 0, self._every

    def _flush(self, tail: _Tail) -> None:
        """Make what was added durable; the list of checkpoints last, it only repeats."""
        if self._lines:
            path = segments.segment_path(self.directory, tail.segment)
            segments.append(path, b"".join(self._lines))
            tail.length += self._size
            self._lines, self._size = [], 0
        if self._checkpoints:
            segments.append(self.directory / segments.CHECKPOINTS, b"".join(self._checkpoints))
            self._checkpoints = []

    def _rotate(self, tail: _Tail) -> None:
        """End the segment with a checkpoint and begin the next."""
        if self._keys is not None and tail.unsigned:
            self._sign(tail, self._keys)
        self._flush(tail)
        tail.former, tail.references = tail.references, set()
        tail.segment, tail.length = tail.segment + 1, 0
        self._chain(tail, segment_event(tail.log, tail.segment))

    # -- reading what others wrote ------------------------------------------------------------

    def _caught_up(self) -> _Tail:
        """Return the tail as it is now; entries of other processes are read, torn ones mended."""
        tail = self._tail
        if tail is not None:
            current = segments.segment_path(self.directory, tail.segment)
            following = segments.segment_path(self.directory, tail.segment + 1)
            length = current.stat().st_size if current.exists() else -1
            if length == tail.length and not following.exists():
                return tail
            if length < tail.length:
                _log.error("audit_log_cut_short", segment=tail.segment, bytes=tail.length - length)
            elif not following.exists():
                self._take(tail, segments.scan(current, tail.length))
                return tail
        self._tail = tail = self._loaded()
        return tail

    def _loaded(self) -> _Tail:
        numbers = segments.segment_numbers(self.directory)
        if not numbers:
            tail = _Tail(secrets.token_hex(16), segment=1)
            self._chain(tail, segment_event(tail.log, 1))
            return tail
        tail = _Tail(self._log_id(numbers), segment=numbers[-1])
        if len(numbers) > 1:
            before = segments.scan(segments.segment_path(self.directory, numbers[-2]))
            self._follow(tail, before)
            tail.former, tail.references = tail.references, set()
        found = segments.scan(segments.segment_path(self.directory, numbers[-1]))
        self._mend_checkpoints(found)
        self._take(tail, found)
        return tail

    def _take(self, tail: _Tail, found: segments.Scan) -> None:
        self._follow(tail, found)
        tail.length = found.length
        if found.length == 0:
            # A crash came between making the file and its first line.
            self._chain(tail, segment_event(tail.log, tail.segment))
        if found.torn:
            self._set_aside(tail, found.torn)

    def _follow(self, tail: _Tail, found: segments.Scan) -> None:
        if found.checkpoint is not None:
            tail.unsigned = 0
            try:
                tail.promised = Signed.of(found.checkpoint.event).every
            except AuditError as error:
                # Somebody's forgery; the check names it, and recording goes on.
                _log.error("audit_log_forged_checkpoint", error=str(error))
        if found.last is not None:
            tail.seq, tail.hash = found.last.seq, found.last.hash
            tail.unsigned += found.unsigned
        tail.references |= found.references

    def _set_aside(self, tail: _Tail, torn: bytes) -> None:
        """Take an unfinished write off the segment, keep it in a file, and enter that it was so."""
        kept = f"torn-{tail.seq + 1}.bin"
        aside = self.directory / kept
        aside.unlink(missing_ok=True)
        segments.append(aside, torn)
        os.truncate(segments.segment_path(self.directory, tail.segment), tail.length)
        _log.warning("audit_log_recovered", bytes=len(torn), kept=kept)
        event = Recovered(
            at=datetime.now(UTC), size=len(torn), digest=sha3_256(torn).hexdigest(), kept_as=kept
        )
        self._chain(tail, event.to_json())

    def _mend_checkpoints(self, found: segments.Scan) -> None:
        """Add the last checkpoints, which a crash kept from the list; drop half a line."""
        path = self.directory / segments.CHECKPOINTS
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            whole = path.read_bytes().rpartition(b"\n")
            os.truncate(path, len(whole[0] + whole[1]))
        listed, lines = segments.last_line(path), found.checkpoints
        # One write may hold several; the list has those up to its last line.
        lines = lines[lines.index(listed) + 1 :] if listed in lines else lines
        if lines:
            segments.append(path, b"".join(line + b"\n" for line in lines))

    def _log_id(self, numbers: list[int]) -> str:
        """Return the log's identity, from the first segment that says it."""
        for number in numbers:
            path = segments.segment_path(self.directory, number)
            entry = segments.scan_first(path)
            if entry is not None and entry.kind == SEGMENT:
                event = entry.event
                if event.get("format") != FORMAT:
                    raise AuditError(f"{path}: format {event.get('format')!r} is not {FORMAT!r}")
                return str(event.get("log", ""))
        if len(numbers) == 1:
            # The very first write was torn: nothing was ever promised.
            return secrets.token_hex(16)
        raise AuditError(f"{self.directory}: no segment says which log it belongs to")
