"""What takes our changes of a header back: the tags we added, and the bytes we replaced.

Bytes, not values: what comes back is encoded as it was received. Sequences may be large, and are
packed then.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

from pydicom.dataset import Dataset

from dicom_node.errors import PixelError
from dicom_node.instance.block import remove_block
from dicom_node.instance.datafile import DataFile
from dicom_node.instance.elements import Scanner
from dicom_node.instance.parsing import own_copy, parse_places
from dicom_node.instance.source import MemorySource

_MAGIC = b"DNU1"
_IMPLICIT, _LITTLE, _PACKED = 1, 2, 4
_PACKED_FROM = 1 << 16
_LARGEST = 1 << 30


def undo_block(data: DataFile, changed: Sequence[int]) -> bytes:
    """Encode tags added, and the original bytes of elements replaced or removed.

    Parameters
    ----------
    data
        The source.
    changed
        Tags of all that is another in the header to be written, or not there.
    """
    added, places = [], []
    for tag in changed:
        if tag in data.elements:
            places.append(data.elements[tag])
        else:
            added.append(tag)
    originals = b"".join(data.source.read(p.start, p.end - p.start) for p in places)
    syntax = data.transfer_syntax_uid.encode("ascii")
    flags = data.implicit * _IMPLICIT | data.little * _LITTLE
    if len(originals) >= _PACKED_FROM:
        flags, originals = flags | _PACKED, zlib.compress(originals, 6)
    head = _MAGIC + struct.pack("<BBH", flags, len(syntax), len(added)) + syntax
    return head + struct.pack(f"<{len(added)}I", *added) + originals


def undo(header: Dataset, block: bytes) -> Dataset:
    """Return `header` as it was before `derivation` described our work, our block removed.

    Parameters
    ----------
    header
        Of an instance we changed; elements we did not touch are taken over as they are now.
    block
        `Derived.undo` of that instance, decrypted.

    Raises
    ------
    PixelError
        If the block is malformed.
    """
    added, _, flags, originals = _parsed(block)
    restored = own_copy(header)
    remove_block(restored)
    for tag in added:
        if tag in restored:
            del restored[tag]
    implicit, little = bool(flags & _IMPLICIT), bool(flags & _LITTLE)
    source = MemorySource(originals)
    places = list(Scanner(source, implicit=implicit, little=little).elements(0))
    before = parse_places(source, places, implicit=implicit, little=little)
    return Dataset({**dict(restored.items()), **before})


def original_transfer_syntax(block: bytes) -> str:
    """Return the transfer syntax UID the instance was received in (PixelError)."""
    return _parsed(block)[1]


def _parsed(block: bytes) -> tuple[list[int], str, int, bytes]:
    try:
        if block[:4] != _MAGIC:
            raise PixelError("the undo block is of another format")
        flags, length, count = struct.unpack_from("<BBH", block, 4)
        syntax = block[8 : 8 + length].decode("ascii")
        added = list(struct.unpack_from(f"<{count}I", block, 8 + length))
        originals = block[8 + length + 4 * count :]
        if flags & _PACKED:
            originals = zlib.decompressobj().decompress(originals, _LARGEST)
    except (struct.error, UnicodeDecodeError, zlib.error) as error:
        raise PixelError("the undo block is malformed") from error
    return added, syntax, flags, originals
