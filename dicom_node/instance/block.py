"""Our private block: what a marked or sealed instance carries in its header.

References
----------
DICOM PS3.5 7.8.1: creator in the next free slot (gggg,0010-00FF) of an odd group.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset

from dicom_node.errors import PixelError
from dicom_node.instance.datafile import DataFile
from dicom_node.instance.encoding import raw_element
from dicom_node.instance.parsing import put_raw
from dicom_node.instance.values import tag_of

CREATOR = "DICOM-NODE WATERMARK 1.0"
GROUP = 0x0071
FORMAT_VERSION = 1

_VERSION, _SEAL, _UNDO, _FRAMES, _DIGESTS = 0x01, 0x02, 0x03, 0x04, 0x05
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class PrivateBlock:
    """Contents of the block.

    Attributes
    ----------
    seal
        Header seal (`dicom_node.instance.seal`); empty if there is none.
    undo
        Encrypted originals of what we changed in the header; empty if there are none.
    frames
        Header block of each frame's integrity mark, often empty; () if no frame is marked.
    digests
        `facts.stored_digest` of each frame as marked, 32 bytes each; under the seal, so that
        the pixels can be checked with a public key and a decoder.
    """

    seal: bytes = b""
    undo: bytes = b""
    frames: tuple[bytes, ...] = ()
    version: int = FORMAT_VERSION
    digests: tuple[bytes, ...] = ()


def write_block(header: Dataset, block: PrivateBlock) -> None:
    """Put `block` into `header`, in place of one of ours that is there."""
    remove_block(header)
    base = _own_base(header)
    _put(header, base | _VERSION, "US", block.version)
    if block.seal:
        _put(header, base | _SEAL, "OB", block.seal)
    if block.undo:
        _put(header, base | _UNDO, "OB", block.undo)
    if block.frames:
        _put(header, base | _FRAMES, "OB", pack_frames(block.frames))
    if block.digests:
        _put(header, base | _DIGESTS, "OB", b"".join(block.digests))


def write_seal(header: Dataset, seal: bytes) -> None:
    """Put a header seal into our block, which is made where there is none."""
    base = _own_base(header)
    if tag_of(base | _VERSION) not in header:
        _put(header, base | _VERSION, "US", FORMAT_VERSION)
    _put(header, base | _SEAL, "OB", seal)


def read_block(header: Dataset | DataFile) -> PrivateBlock | None:
    """Return our block, or None if there is none.

    Parameters
    ----------
    header
        A header, or the file it is in: then nothing but the block is read.

    Raises
    ------
    PixelError
        If it is there and cannot be read.
    """
    if isinstance(header, DataFile):
        header = header.group(GROUP)
    base = _base(header)
    if base is None:
        return None
    numbers = (_VERSION, _SEAL, _UNDO, _FRAMES, _DIGESTS)
    values = {number: _value(header, base | number) for number in numbers}
    version, told = int.from_bytes(values[_VERSION][:2], "little"), values[_DIGESTS]
    whole = range(0, len(told) // _DIGEST_BYTES * _DIGEST_BYTES, _DIGEST_BYTES)
    return PrivateBlock(
        values[_SEAL], values[_UNDO], unpack_frames(values[_FRAMES]), version,
        tuple(told[k : k + _DIGEST_BYTES] for k in whole),
    )  # fmt: skip


def remove_block(header: Dataset) -> None:
    """Take our block out of `header`, creator included."""
    for tag in list(block_tags(header)):
        del header[tag]


def without_block(header: Dataset) -> Dataset:
    """Take our block out of `header` and return it."""
    remove_block(header)
    return header


def block_tags(header: Dataset) -> Iterator[int]:
    """Yield the tags of our block in `header`, its creator's first."""
    base = _base(header)
    if base is None:
        return
    yield GROUP << 16 | (base >> 8 & 0xFF)
    yield from sorted(tag for tag in map(int, header.keys()) if tag & ~0xFF == base)


def seal_tag(header: Dataset) -> int | None:
    """Return the tag of the header seal, whether or not it is there; None without a block."""
    base = _base(header)
    return None if base is None else base | _SEAL


def pack_frames(frames: Sequence[bytes]) -> bytes:
    """Concatenate the frames' blocks, each behind its length (32 bits, little endian)."""
    parts = [struct.pack("<I", len(frames))]
    for frame in frames:
        parts += [struct.pack("<I", len(frame)), frame]
    return _even(b"".join(parts))


def unpack_frames(packed: bytes) -> tuple[bytes, ...]:
    """Return the frames' blocks; the inverse of `pack_frames` (PixelError if malformed)."""
    if not packed:
        return ()
    try:
        (count,) = struct.unpack_from("<I", packed)
        offset, frames = 4, []
        for _ in range(min(count, len(packed) // 4)):
            (length,) = struct.unpack_from("<I", packed, offset)
            frames.append(packed[offset + 4 : offset + 4 + length])
            offset += 4 + length
    except struct.error as error:
        raise PixelError("our private block is malformed") from error
    if len(frames) != count or offset > len(packed):
        raise PixelError("our private block is malformed")
    return tuple(frames)


def _own_base(header: Dataset) -> int:
    """Return where our elements stand in `header`; our creator is put there if it is not yet."""
    base = _base(header)
    if base is None:
        taken = header.keys()
        slot = next((n for n in range(0x10, 0x100) if tag_of(GROUP << 16 | n) not in taken), None)
        if slot is None:
            raise PixelError(f"every private block of group {GROUP:04X} is taken")
        base = GROUP << 16 | slot << 8
        _put(header, GROUP << 16 | slot, "LO", CREATOR)
    return base


def _put(header: Dataset, tag: int, vr: str, value: int | str | bytes) -> None:
    """Put an element into `header`, encoded like the elements read from the file."""
    like = next((item for item in header.values() if isinstance(item, RawDataElement)), None)
    if like is None:
        header[tag] = DataElement(tag, vr, value)
        return
    implicit, little = like.is_implicit_VR, like.is_little_endian
    if isinstance(value, int):
        value = value.to_bytes(2, "little" if little else "big")
    elif isinstance(value, str):
        value = value.encode("ascii")
    put_raw(header, raw_element(tag, vr, _even(value), implicit=implicit, little=little))


def _base(header: Dataset) -> int | None:
    # As plain integers: comparing pydicom's tags is slow.
    slots = [tag & 0xFFFF for tag in map(int, header.keys()) if tag >> 16 == GROUP]
    for slot in sorted(slots):
        if 0x10 <= slot < 0x100 and _text(header, GROUP << 16 | slot) == CREATOR:
            return GROUP << 16 | slot << 8
    return None


def _text(header: Dataset, tag: int) -> str:
    value = header.get_item(tag_of(tag)).value
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    return text.strip(" \0")


def _value(header: Dataset, tag: int) -> bytes:
    """Return an element's bytes, whatever VR it has come to on its way."""
    if tag not in header:
        return b""
    item: DataElement | RawDataElement = header.get_item(tag_of(tag))
    if isinstance(item.value, int):
        return item.value.to_bytes(2, "little")
    value = bytes(item.value or b"")
    swapped = isinstance(item, RawDataElement) and not item.is_little_endian and item.VR == "US"
    return value[::-1] if swapped else value


def _even(value: bytes) -> bytes:
    return value + bytes(len(value) % 2)
