"""The list of checkpoints beside the trail, read along with the trail."""

from __future__ import annotations

from collections.abc import Iterable

from dicom_node.audit.entries import CHECKPOINT, Entry, parse


def checkpoint_in(line: bytes) -> Entry | None:
    """Return the checkpoint of a line, None if it is none."""
    entry = parse(line.rstrip(b"\r\n"))
    return entry if entry is not None and entry.kind == CHECKPOINT else None


class CheckpointList:
    """The list of checkpoints beside the trail; what is damaged in it is stepped over.

    A break of the trail itself is the news, and the list only repeats.

    Attributes
    ----------
    next
        The checkpoint that is due in the trail, as the list has it; None at its end.
    damaged
        Number of the first line so far that is no checkpoint, not as it was hashed, or not after
        the one before; 0: none.
    """

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = enumerate(lines, 1)
        self._before = 0
        self.next: Entry | None = None
        self.damaged = 0
        self.step()

    def step(self) -> None:
        """Go on to the next checkpoint."""
        self.next = None
        torn = 0
        for number, line in self._lines:
            # Only the last line may have no line feed: a crash came into it, the writer drops it.
            self.damaged = self.damaged or torn
            entry = checkpoint_in(line) if line.endswith(b"\n") else None
            if entry is not None and entry.holds and entry.seq > self._before:
                self.next, self._before = entry, entry.seq
                return
            if line.endswith(b"\n"):
                self.damaged = self.damaged or number
            else:
                torn = number
