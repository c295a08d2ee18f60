"""Which fragments make up which frame (PS3.5 A.4)."""

from __future__ import annotations

from dicom_node.errors import PixelError
from dicom_node.instance.datafile import DataFile

Fragments = list[tuple[int, int]]


def frame_fragments(data: DataFile, frames: int) -> list[Fragments]:
    """Return (offset, length) of the fragments of every frame.

    Where fragments and frames differ in number, the basic offset table decides, else the extended
    one, else the end-of-image markers.

    Raises
    ------
    PixelError
        If the fragments do not make `frames` frames.
    """
    items = data.fragments()
    if not items:
        raise PixelError("the pixel data has no offset table item")
    table, fragments = items[0], items[1:]
    if not any(length for _, length in fragments):
        raise PixelError("the pixel data is empty")
    if len(fragments) == frames:
        return [[fragment] for fragment in fragments]
    if frames == 1:
        return [fragments]
    starts = _basic_offsets(data, table) or _extended_offsets(data)
    if len(starts) == frames:
        return _by_offset(fragments, starts)
    grouped = _by_marker(data, fragments)
    if len(grouped) != frames:
        raise PixelError(
            f"the header announces {frames} frames, the pixel data holds {len(grouped)} "
            f"in {len(fragments)} fragments"
        )
    return grouped


def _basic_offsets(data: DataFile, table: tuple[int, int]) -> list[int]:
    raw = data.source.read(table[0], table[1] - table[1] % 4)
    return [int.from_bytes(raw[k : k + 4], "little") for k in range(0, len(raw), 4)]


def _extended_offsets(data: DataFile) -> list[int]:
    raw = data.header.get("ExtendedOffsetTable", b"") or b""
    return [int.from_bytes(raw[k : k + 8], "little") for k in range(0, len(raw) - 7, 8)]


def _by_offset(fragments: Fragments, starts: list[int]) -> list[Fragments]:
    """Group by offsets, which count from the first fragment's item tag."""
    base = fragments[0][0]
    grouped: dict[int, Fragments] = {start: [] for start in starts}
    current: Fragments | None = None
    for offset, length in fragments:
        current = grouped.get(offset - base, current)
        if current is None:
            raise PixelError("the offset table does not begin with the first fragment")
        current.append((offset, length))
    if not all(grouped.values()) or len(grouped) != len(starts):
        raise PixelError("the offset table points beside the fragments")
    return [grouped[start] for start in starts]


def _by_marker(data: DataFile, fragments: Fragments) -> list[Fragments]:
    """Group by end-of-image (JPEG) or end-of-code-stream (JPEG 2000) markers: both are FFD9."""
    grouped: list[Fragments] = []
    current: Fragments = []
    for offset, length in fragments:
        current.append((offset, length))
        tail = data.source.read(offset + max(length - 16, 0), min(length, 16))
        if tail.rstrip(b"\0").endswith(b"\xff\xd9"):
            grouped.append(current)
            current = []
    return [*grouped, current] if current else grouped
