"""One line of the audit trail: how it is written, read, chained and signed.

::

    {"seq":7,"time":"2026-...Z","prev":"<64 hex>","ref":"...","event":{...},"hash":"<64 hex>"}

`hash` is SHA3-256 of the line's bytes before ``,"hash"``; `prev` is the hash of the line before,
64 zeros on the first. Entries count from 1 through all segments. `ref` is what the writer was told
to recognise a repetition by, and is left out where there is none.

Two kinds of event are the trail's own. ``segment`` begins each file. ``checkpoint`` carries an
Ed25519 signature over `signed_text`, hence over everything before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha3_256
from typing import Any, Final, NamedTuple

from dicom_node.audit.events import format_time
from dicom_node.errors import AuditError
from dicom_node.keys import KeyRing, KeySet

FORMAT: Final = "dicom-node audit log 1"
FIRST: Final = "0" * 64
SEGMENT, CHECKPOINT = "segment", "checkpoint"
_CONTEXT: Final = "dicom-node audit checkpoint 1"
_HASH_CHARACTERS: Final = len(',"hash":"') + 64 + len('"}')
_LINE: Final = re.compile(
    rb'\{"seq":([1-9]\d{0,18}),"time":"([0-9TZ:.-]{20,40})","prev":"([0-9a-f]{64})",'
    rb'(?:"ref":("(?:[^"\\]|\\.)*"),)?"event":\{"kind":"([a-z-]{1,40})"'
)
_END: Final = re.compile(rb'\},"hash":"([0-9a-f]{64})"\}')


class Entry(NamedTuple):
    """One parsed line; `hash` is what the line says, `holds` whether its bytes give that."""

    seq: int
    time: str
    prev: str
    reference: str
    kind: str
    hash: str
    line: bytes

    @property
    def holds(self) -> bool:
        """Whether the line's hash is that of its bytes."""
        return sha3_256(self.line[:-_HASH_CHARACTERS]).hexdigest() == self.hash

    @property
    def event(self) -> dict[str, Any]:
        """The event as JSON values (AuditError where the line is no JSON)."""
        try:
            return dict(json.loads(self.line)["event"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise AuditError(f"entry {self.seq} is no JSON of ours: {error}") from error


@dataclass(frozen=True, slots=True)
class Signed:
    """What a checkpoint entry says beside its place in the chain.

    Attributes
    ----------
    log
        Which log, 32 hex digits: a checkpoint of another one says nothing here.
    every
        The next checkpoint follows within so many entries.
    key_id, signature
        Whose Ed25519 signature of `signed_text`.
    """

    log: str
    every: int
    key_id: bytes
    signature: bytes

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> Signed:
        """Return what a checkpoint's event says (AuditError where it is malformed)."""
        try:
            key_id, signature = bytes.fromhex(event["key"]), bytes.fromhex(event["signature"])
            return cls(str(event["log"]), int(event["every"]), key_id, signature)
        except (KeyError, TypeError, ValueError) as error:
            raise AuditError(f"a malformed checkpoint: {error}") from error

    def verified_by(self, ring: KeyRing, entry: Entry) -> bool | None:
        """Whether the signature holds; None if the ring does not have the key."""
        keys = ring.get(self.key_id)
        if keys is None:
            return None
        text = signed_text(self.log, entry.seq, entry.prev, entry.time, self.every)
        return keys.verify(text, self.signature)


def signed_text(log: str, seq: int, prev: str, time: str, every: int) -> bytes:
    """Return what a checkpoint signs: its place in the chain, in ASCII, a line each."""
    return f"{_CONTEXT}\n{log}\n{seq}\n{prev}\n{time}\n{every}\n".encode("ascii")


def parse(line: bytes) -> Entry | None:
    """Return the entry in a line without its line feed; None if it has not the form of one."""
    head = _LINE.match(line)
    end = _END.fullmatch(line, max(len(line) - _HASH_CHARACTERS - 1, 0))
    if head is None or end is None or b"\0" in line:
        return None
    quoted = head[4] or b'""'
    try:
        reference = str(json.loads(quoted)) if b"\\" in quoted else quoted[1:-1].decode("ascii")
    except ValueError:
        return None
    return Entry(
        int(head[1]), head[2].decode(), head[3].decode(), reference, head[5].decode(),
        end[1].decode(), line,
    )  # fmt: skip


def format_line(
    seq: int, time: str, prev: str, event: Mapping[str, Any], reference: str = ""
) -> tuple[bytes, str]:
    """Return one line without its line feed, and its hash."""
    ref = f'"ref":{_dump(reference)},' if reference else ""
    head = f'{{"seq":{seq},"time":"{time}","prev":"{prev}",{ref}"event":{_dump(event)}'
    body = head.encode("ascii")
    digest = sha3_256(body).hexdigest()
    return body + b',"hash":"' + digest.encode("ascii") + b'"}', digest


def segment_event(log: str, number: int) -> dict[str, Any]:
    """Return the event that begins segment `number` of a log."""
    return {"kind": SEGMENT, "format": FORMAT, "log": log, "number": number}


def checkpoint_event(
    log: str, seq: int, prev: str, time: str, every: int, keys: KeySet
) -> dict[str, Any]:
    """Return the event of a checkpoint that becomes entry `seq`, signed with `keys`."""
    signature = keys.sign(signed_text(log, seq, prev, time, every)).hex()
    return {"kind": CHECKPOINT, "log": log, "every": every, "key": keys.key_id.hex(),
            "signature": signature}  # fmt: skip


def now() -> str:
    """Return the time of writing as the trail writes it."""
    return format_time(datetime.now(UTC))


_dump = json.JSONEncoder(separators=(",", ":")).encode
