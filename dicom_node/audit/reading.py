"""Read the trail from a place on: for people, and for whoever passes it on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dicom_node.audit import segments
from dicom_node.audit.entries import Entry, parse


@dataclass(frozen=True, slots=True)
class Place:
    """After `seq` entries, at byte `offset` of a segment."""

    segment: int = 1
    offset: int = 0
    seq: int = 0


def entries(directory: Path, after: Place | None = None) -> Iterator[tuple[Entry, Place]]:
    """Yield every whole entry after a place, each with the place behind it (AuditError).

    Lines that are no entries are passed over: `checking` is for judging.
    """
    place = after or Place()
    while True:
        path = segments.segment_path(directory, place.segment)
        following = segments.segment_path(directory, place.segment + 1)
        # Looked for first: once the next segment is there, this one grows no more.
        ended = following.exists()
        offset = place.offset
        for line in _from(path, offset):
            offset += len(line)
            entry = parse(line[:-1])
            if entry is not None:
                place = Place(place.segment, offset, entry.seq)
                yield entry, place
        if not ended:
            return
        place = Place(place.segment + 1, 0, place.seq)


def _from(path: Path, offset: int) -> Iterator[bytes]:
    """Yield the whole lines of a file from a byte on."""
    if not path.exists():
        return
    with segments.translated(path), path.open("rb") as stream:
        stream.seek(offset)
        for line in iter(lambda: stream.readline(segments.LONGEST), b""):
            if not line.endswith(b"\n") and len(line) < segments.LONGEST:
                return
            yield line


def end_of(directory: Path) -> Place:
    """Return the place behind the last whole entry (AuditError)."""
    if not directory.is_dir():
        return Place()
    numbers = segments.segment_numbers(directory)
    if not numbers:
        return Place()
    found = segments.scan(segments.segment_path(directory, numbers[-1]))
    return Place(numbers[-1], found.length, found.last.seq if found.last else 0)
