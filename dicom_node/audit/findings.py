"""What a check of the audit trail found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Break = Literal[
    "changed", "removed", "inserted", "re-ordered", "truncated", "rewritten", "torn", "unsigned"
]
@dataclass(frozen=True)
class Finding:
    """Where the trail is broken first.

    Attributes
    ----------
    kind
        ``changed``, ``removed``, ``inserted``, ``re-ordered``; ``truncated`` behind a checkpoint;
        ``rewritten`` (the chain holds, a signature does not); ``torn`` (an unfinished line that no
        writer has set aside yet); ``unsigned`` (no checkpoint where one has to be). In a whole
        trail, ``changed`` or ``removed`` of the list of checkpoints beside it.
    entry
        Number of the first entry concerned.
    segment, line
        File name and line, "" and 0 where there is none.
    words
        In a sentence.
    """

    kind: Break
    entry: int
    segment: str
    line: int
    words: str

    def to_json(self) -> dict[str, Any]:
        """Return it as ``audit-log verify --json`` prints it."""
        return {"kind": self.kind, "entry": self.entry, "segment": self.segment or None,
                "line": self.line or None, "words": self.words}  # fmt: skip


@dataclass
class LogCheck:
    """What was found.

    Attributes
    ----------
    entries, checkpoints
        Read before the first break.
    signed_up_to
        Last entry that a signature of a known key covers.
    unsigned
        Entries after it.
    unknown_keys
        Key ids of checkpoints nobody here can check, hex.
    recovered
        Unfinished writes that were set aside, by entry number.
    """

    entries: int = 0
    checkpoints: int = 0
    segments: int = 0
    signed_up_to: int = 0
    log: str = ""
    unknown_keys: set[str] = field(default_factory=set)
    recovered: list[int] = field(default_factory=list)
    broken: Finding | None = None

    @property
    def unsigned(self) -> int:
        """Entries no signature covers."""
        return self.entries - self.signed_up_to

    def to_json(self) -> dict[str, Any]:
        """Return it as ``audit-log verify --json`` prints it."""
        return {
            "log": self.log or None, "whole": self.broken is None, "entries": self.entries,
            "segments": self.segments, "checkpoints": self.checkpoints,
            "signed_up_to": self.signed_up_to, "unsigned": self.unsigned,
            "unknown_keys": sorted(self.unknown_keys), "recovered": self.recovered,
            "broken": None if self.broken is None else self.broken.to_json(),
        }  # fmt: skip
