"""Check the audit trail: the chain, its signatures, and that nothing is cut off; name the break.

A reader needs the folder and a public key. One line is held at a time, whatever the trail's size.

What nobody can find here: entries after the last checkpoint, cut off or written anew by somebody
who may write the folder (`unsigned` says how many there are), and a trail cut back together with
its list of checkpoints. Copies of the checkpoints kept elsewhere show the second.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from dicom_node.audit import segments
from dicom_node.audit.checkpoint_list import CheckpointList, checkpoint_in
from dicom_node.audit.entries import CHECKPOINT, FIRST, FORMAT, SEGMENT, Entry, Signed, parse
from dicom_node.audit.events import Recovered
from dicom_node.audit.findings import Break, Finding, LogCheck
from dicom_node.errors import AuditError
from dicom_node.keys import KeyRing

_OWN: Final = (SEGMENT, CHECKPOINT, Recovered.kind)
_REMEMBERED: Final = 2048
_ELSEWHERE: Final = "a copy kept elsewhere"


class _Placed(NamedTuple):
    """A line and where it stands; `entry` is None if it has not the form of one."""

    segment: int
    line: int
    entry: Entry | None
    whole: bool = True


class _Broken(Exception):
    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.words)
        self.finding = finding


def check_log(
    directory: Path, ring: KeyRing, *, elsewhere: Iterable[bytes] = ()
) -> LogCheck:
    """Check the trail in `directory`.

    Parameters
    ----------
    ring
        Keys to check signatures with; public ones do.
    elsewhere
        Lines of checkpoints that were kept in another place, as the collector got them.

    Raises
    ------
    AuditError
        If it cannot be read, or is none.
    """
    with segments.locked(directory, shared=True):
        numbers = segments.segment_numbers(directory)
        with segments.translated(directory):
            sizes = {n: segments.segment_path(directory, n).stat().st_size for n in numbers}
            kept = directory / segments.CHECKPOINTS
            kept_size = kept.stat().st_size if kept.exists() else 0
    copies = [_copy(line) for line in elsewhere if line.strip()]
    if not any(sizes.values()) and not kept_size and not copies:
        raise AuditError(f"{directory}: there is no audit trail here")
    listed = segments.read_lines(kept, kept_size) if kept_size else iter(())
    check = _Check(ring, CheckpointList(listed), copies)
    try:
        check.run(_lines(directory, sizes))
    except _Broken as broken:
        check.result.broken = broken.finding
    return check.result


def _copy(line: bytes) -> Entry:
    entry = checkpoint_in(line)
    if entry is None:
        raise AuditError(f"{_ELSEWHERE}: a line that is no checkpoint")
    return entry


def _lines(directory: Path, sizes: dict[int, int]) -> Iterator[_Placed]:
    for number, size in sizes.items():
        path = segments.segment_path(directory, number)
        for count, line in enumerate(segments.read_lines(path, size), 1):
            whole = line.endswith(b"\n")
            yield _Placed(number, count, parse(line[:-1]) if whole else None, whole)


def _looked_for(
    expected: int, seq: int, following: list[Entry | None], lines: Iterator[_Placed]
) -> tuple[bool, bool, int]:
    """Read the rest: is `expected` there, is `seq` there again, which number is the highest."""
    there, again, highest = False, False, 0
    for entry in chain(following, (each.entry for each in lines)):
        if entry is not None:
            there, again = there or entry.seq == expected, again or entry.seq == seq
            highest = max(highest, entry.seq)
    return there, again, highest


class _Check:
    """One pass over the lines; raises `_Broken` at the first break."""

    def __init__(self, ring: KeyRing, listed: CheckpointList, copies: list[Entry]) -> None:
        self.result = LogCheck()
        self._ring = ring
        self._listed = listed
        self._copies = sorted(copies, key=lambda copy: copy.seq)
        self._place: _Placed | None = None
        self._last = FIRST
        self._recent: deque[str] = deque(maxlen=_REMEMBERED)
        self._segment = 0
        self._promised: int | None = None
        self._since = 0
        self._foreign = False
        self._unlisted = 0
        self._last_checkpoint = 0

    def run(self, lines: Iterator[_Placed]) -> None:
        """Check every line, then the end."""
        for place in lines:
            self._place = place
            entry = self._chained(place, lines)
            self._last = entry.hash
            self._recent.append(entry.hash)
            self.result.entries = entry.seq
            if place.line == 1:
                self._segment_begins(place, entry)
            if entry.kind == CHECKPOINT:
                self._checkpoint(entry)
            elif entry.kind == Recovered.kind:
                self.result.recovered.append(entry.seq)
            elif entry.kind not in _OWN:
                self._since += 1
            self._promise()
        self._end()

    def _break(self, kind: Break, entry: int, words: str, *, here: bool = True) -> NoReturn:
        place = self._place if here else None
        file, line = (f"{place.segment:08d}.jsonl", place.line) if place else ("", 0)
        raise _Broken(Finding(kind, entry, file, line, words))

    # -- the chain ----------------------------------------------------------------------------

    def _chained(self, place: _Placed, lines: Iterator[_Placed]) -> Entry:
        expected = self.result.entries + 1
        entry = place.entry
        if entry is None:
            if not place.whole and next(lines, None) is None:
                self._cut_short()
                self._break("torn", expected, f"the line of entry {expected} is unfinished; the "
                            "next entry written sets it aside and says so")  # fmt: skip
            self._break("changed", expected, f"the line of entry {expected} is no entry")
        if not entry.holds:
            self._break("changed", entry.seq, f"entry {entry.seq} does not give its own hash")
        if entry.seq != expected or entry.prev != self._last:
            self._misplaced(entry, expected, [each.entry for each in islice(lines, 1)], lines)
        return entry

    def _misplaced(
        self, entry: Entry, expected: int, following: list[Entry | None], lines: Iterator[_Placed]
    ) -> NoReturn:
        """Say how an entry that holds by itself came to stand where it does not belong."""
        if entry.hash in self._recent:
            said = f"a copy of entry {entry.seq} stands after entry {expected - 1}"
            self._break("inserted", entry.seq, said)
        if entry.seq > expected:
            there, again, highest = _looked_for(expected, entry.seq, following, lines)
            if again or (there and entry.seq > highest + 1):
                self._break("inserted", entry.seq,
                            f"an entry {entry.seq} was put after entry {expected - 1}")  # fmt: skip
            if there:
                self._break("re-ordered", expected,
                            f"entry {entry.seq} stands where entry {expected} belongs")  # fmt: skip
            self._break("removed", expected, f"entries {expected} to {entry.seq - 1} are gone")
        after = following[0] if following else None
        goes_on = after is not None and after.prev == entry.hash
        if entry.prev != self._last and entry.prev in self._recent and goes_on:
            first = expected - (len(self._recent) - 1 - self._recent.index(entry.prev))
            self._break("inserted", first, f"the chain goes on from entry {first - 1}: what stands "
                        "between it and this line was inserted")  # fmt: skip
        if entry.seq < expected or (after is not None and after.prev == self._last):
            self._break("inserted", entry.seq,
                        f"the chain passes over this line after entry {expected - 1}")  # fmt: skip
        number = max(expected - 1, 1)
        self._break("changed", number,
                    f"entry {expected} is not chained to entry {expected - 1}: that one was "
                    "changed and hashed anew, or others between them are gone")  # fmt: skip

    # -- segments and signatures --------------------------------------------------------------

    def _segment_begins(self, place: _Placed, entry: Entry) -> None:
        self.result.segments += 1
        try:
            said = entry.event if entry.kind == SEGMENT else {}
        except AuditError as error:
            self._break("changed", entry.seq, str(error))
        if said.get("format") != FORMAT or said.get("number") != place.segment:
            self._break("changed", entry.seq, "the segment does not begin as one")
        self.result.log = self.result.log or str(said.get("log"))
        if said.get("log") != self.result.log or place.segment != self._segment + 1:
            self._break("removed", entry.seq, "the segment is not the next of this log")
        self._segment = place.segment

    def _checkpoint(self, entry: Entry) -> None:
        try:
            signed = Signed.of(entry.event)
        except AuditError as error:
            self._break("changed", entry.seq, str(error))
        holds = signed.verified_by(self._ring, entry)
        if holds is False or signed.log != self.result.log:
            first = self.result.signed_up_to + 1
            self._break("rewritten", first, f"the signature of checkpoint {entry.seq} does not"
                        f" hold: entries {first} to {entry.seq} are not those signed")  # fmt: skip
        self.result.checkpoints += 1
        self._since, self._promised, self._foreign = 0, signed.every, holds is None
        if holds is None:
            self.result.unknown_keys.add(signed.key_id.hex())
        else:
            self.result.signed_up_to = entry.seq
        self._compare(entry)

    def _compare(self, entry: Entry) -> None:
        """Hold a checkpoint against its copies: in the list beside the trail, and elsewhere."""
        listed = self._listed.next
        if listed is not None and listed.seq <= entry.seq:
            self._same(listed, segments.CHECKPOINTS, entry)
            self._listed.step()
        else:
            self._unlisted = self._unlisted or entry.seq
        self._last_checkpoint = entry.seq
        while self._copies and self._copies[0].seq <= entry.seq:
            self._same(self._copies.pop(0), _ELSEWHERE, entry)

    def _same(self, copy: Entry, whose: str, entry: Entry) -> None:
        if copy.line != entry.line:
            number = copy.seq
            self._break("rewritten", number, f"checkpoint {number} is not as in {whose}")

    def _promise(self) -> None:
        if self._promised is not None and self._since > self._promised:
            # Whoever adds a line and hashes anew moves the checkpoint: any of these may be it.
            first = self.result.signed_up_to + 1
            self._break("unsigned", first, f"no checkpoint signs entry {first} and those behind: "
                        f"one was promised within {self._promised} entries")  # fmt: skip

    # -- the end ------------------------------------------------------------------------------

    def _cut_short(self) -> None:
        """Say so if a checkpoint that somebody has is not in the trail."""
        missing = [
            (copy, whose) for copy, whose in
            ((self._listed.next, segments.CHECKPOINTS), *((c, _ELSEWHERE) for c in self._copies))
            if copy is not None
        ]  # fmt: skip
        here = [each for each in missing if each[0].seq <= self.result.entries]
        for copy, whose in here[:1]:
            # The chain holds: it was computed anew, without the checkpoint.
            first = self.result.signed_up_to + 1
            self._break("rewritten", first, f"entries {first} to {copy.seq} are not those signed: "
                        f"checkpoint {copy.seq} is in {whose} and not in its place here",
                        here=False)  # fmt: skip
        for copy, whose in missing[:1]:
            first = self.result.entries + 1
            self._break("truncated", first, f"entries from {first} on are gone: checkpoint "
                        f"{copy.seq} is in {whose}", here=False)  # fmt: skip

    def _beside(self) -> None:
        """Say what is wrong with the list of checkpoints, where the trail has no break."""
        if self._listed.damaged:
            number, line = self._unlisted or self.result.signed_up_to, self._listed.damaged
            raise _Broken(Finding("changed", number, segments.CHECKPOINTS, line,
                                  f"line {line} of {segments.CHECKPOINTS} is not as it was "
                                  "written; the trail itself is whole"))  # fmt: skip
        # A crash may have kept the very last one from the list.
        if self._unlisted not in (0, self._last_checkpoint):
            self._break("removed", self._unlisted, f"checkpoint {self._unlisted} is not in "
                        f"{segments.CHECKPOINTS}", here=False)  # fmt: skip

    def _end(self) -> None:
        self._cut_short()
        if self._foreign or not self.result.signed_up_to:
            first = self.result.signed_up_to + 1
            self._break("unsigned", first, f"no key of this ring has signed entry {first} or a "
                        "later one", here=False)  # fmt: skip
        self._beside()
