"""What a header seal says of each attribute: the digest it was sealed with, and the one it has now.

For reports: `seal.check_header` says which attributes changed, this shows the evidence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from dicom_node.errors import PixelError
from dicom_node.instance import seal
from dicom_node.instance.block import read_block
from dicom_node.instance.canonical import canonical_element
from dicom_node.instance.datafile import DataFile
from dicom_node.instance.elements import tag_text
from dicom_node.instance.seal import Ring

_ORIGINALS, _MODIFIED = BaseTag(0x04000561), BaseTag(0x04000550)


@dataclass(frozen=True, slots=True)
class SealedChange:
    """One attribute that is not what was sealed.

    Attributes
    ----------
    tag
        Group and element in one number.
    keyword
        As in the data dictionary, "" for a private attribute.
    before, now
        Salted digests, 8 bytes; ``b""`` where the attribute was added, or removed.
    original
        A data set whose element of this tag has exactly the value that was sealed, where some
        system noted it in Original Attributes Sequence; else None.
    """

    tag: int
    keyword: str
    before: bytes
    now: bytes
    original: Dataset | None = None

    @property
    def name(self) -> str:
        """The keyword, else ``(gggg,eeee)``."""
        return self.keyword or tag_text(self.tag)


def sealed_changes(header: Dataset, data: DataFile, ring: Ring) -> tuple[SealedChange, ...]:
    """Return what changed under the seal of `header`, which was read from `data`, in tag order.

    Empty without a seal, or where its signature is not one of the ring's: then it says nothing.

    Raises
    ------
    PixelError
        If an attribute cannot be parsed.
    """
    if not seal.check_header(header, data, ring).signature_valid:
        return ()
    block = read_block(header)
    sealed = block.seal if block else b""
    _, covered, _, _, salt, _, count, owner_bytes = seal._HEAD.unpack_from(sealed)
    first = seal._HEAD.size + owner_bytes
    before = dict(seal._ENTRY.iter_unpack(sealed[first : first + count * seal._ENTRY.size]))
    now = {
        tag: _short(salt, content) for tag, content in seal._contents(header, data, bool(covered))
    }
    noted = list(_noted_originals(header))
    return tuple(
        SealedChange(
            tag, keyword_for_tag(tag), before.get(tag, b""), now.get(tag, b""),
            _original(tag, before.get(tag, b""), salt, noted),
        )
        for tag in sorted({*before, *now}) if before.get(tag) != now.get(tag)
    )  # fmt: skip


def _short(salt: bytes, content: bytes) -> bytes:
    return hashlib.sha3_256(salt + content).digest()[:8]


def _original(tag: int, before: bytes, salt: bytes, noted: list[Dataset]) -> Dataset | None:
    """Return the first noted data set whose element gives the digest that was sealed."""
    for values in noted:
        if BaseTag(tag) not in values:
            continue
        content = canonical_element(values, values.get_item(BaseTag(tag)))
        if before and _short(salt, content) == before:
            return values
    return None


def _noted_originals(header: Dataset) -> Iterator[Dataset]:
    """Yield the data sets in Original Attributes Sequence, newest last."""
    if _ORIGINALS not in header:
        return
    try:
        for item in header[_ORIGINALS].value or ():
            if _MODIFIED in item:
                yield from item[_MODIFIED].value or ()
    except MemoryError:
        raise
    except Exception as error:  # pydicom raises nearly anything on malformed sequences
        raise PixelError(f"Original Attributes Sequence cannot be read: {error}") from error
