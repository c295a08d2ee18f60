"""From places in a file to a pydicom data set, and copies of one that share no element."""

from __future__ import annotations

import io
from typing import cast

from pydicom.dataelem import DataElement, RawDataElement, empty_value_for_VR
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.valuerep import VR

from dicom_node.errors import PixelError
from dicom_node.instance.elements import ITEM_END, UNDEFINED, Element
from dicom_node.instance.source import ByteSource
from dicom_node.instance.values import known_vr, plain_text, tag_of

Items = dict[BaseTag, DataElement | RawDataElement]

_CHARACTER_SET = 0x00080005
_DELIMITER_BYTES = 8
# What pydicom gives an element without a value.
_EMPTY: dict[str | None, bytes | None] = {
    vr: cast(bytes | None, empty_value_for_VR(vr, raw=True))
    for vr in (None, *(str(vr) for vr in VR if len(str(vr)) == 2))
}
# What the class of a named tuple does when called, without the call.
_made = tuple.__new__


def parse_header(block: bytes, *, implicit: bool, little: bool) -> Dataset:
    """Parse encoded elements with pydicom (PixelError where it cannot)."""
    try:
        return read_dataset(io.BytesIO(block), implicit, little, len(block))
    except MemoryError:
        raise
    except Exception as error:  # pydicom raises nearly anything on malformed values
        raise PixelError(f"the data set cannot be parsed: {error}") from error


def parse_places(
    source: ByteSource, places: list[Element], *, implicit: bool, little: bool
) -> Items:
    """Return the elements at `places`: raw from where the scanner found them, if that is plain.

    pydicom parses what has an undefined length and may be no sequence, and everything where it
    could see the file otherwise than the scanner; telling it where each element lies is a tenth of
    the work.

    Raises
    ------
    PixelError
        If pydicom cannot parse what is left to it.
    """

    def by_pydicom(some: list[Element]) -> Dataset:
        block = b"".join(source.read(start, end - start) for start, end in runs(some))
        return parse_header(block, implicit=implicit, little=little)

    nested = {e.tag for e in places if e.length == UNDEFINED and not _is_sequence(e)}
    parsed = Dataset()
    if nested:
        # The character set says how the sequences' texts are to be read.
        parsed = by_pydicom([e for e in places if e.tag == _CHARACTER_SET or e.tag in nested])
    plain = all(e.vr in _EMPTY and e.tag != ITEM_END for e in places)
    if not plain or any(tag not in parsed for tag in nested):
        return dict(by_pydicom(places).items())
    made: Items = {}
    block, start, end = b"", 0, 0
    waiting = iter(runs(places))
    for tag, vr, at, value_at, length, stop in places:
        if not start <= at < end:
            start, end = next(waiting)
            block = source.read(start, end - start)
        key = tag_of(tag)
        if tag in nested:
            made[key] = parsed.get_item(key)
            continue
        if length == UNDEFINED:
            value: bytes | None = block[value_at - start : stop - _DELIMITER_BYTES - start]
        elif length:
            value = block[value_at - start : stop - start]
        else:
            value = _EMPTY[vr]
        made[key] = _made(
            RawDataElement, (key, vr, length, value, value_at, implicit, little, True, False)
        )
    return made


def own_copy(header: Dataset) -> Dataset:
    """Return a data set whose elements can be replaced or set without touching `header`'s.

    Sequence items are shared.
    """
    # Setting an attribute writes into the element that is there: elements must not be shared.
    return Dataset(
        {
            tag: own_element(item) if isinstance(item, DataElement) else item
            for tag, item in header.items()
        }
    )


def own_element(element: DataElement) -> DataElement:
    """Return a shallow copy; `copy.copy` does the same by way of pickling, ten times slower."""
    own = DataElement.__new__(type(element))
    own.__dict__.update(element.__dict__)
    return own


def runs(places: list[Element]) -> list[tuple[int, int]]:
    """Merge neighbouring elements into as few reads as possible: (start, end) of each."""
    merged: list[tuple[int, int]] = []
    start = end = -1
    for element in places:
        if element.start != end:
            if end >= 0:
                merged.append((start, end))
            start = element.start
        end = element.end
    if end >= 0:
        merged.append((start, end))
    return merged


def _is_sequence(element: Element) -> bool:
    return (element.vr or known_vr(element.tag)) == "SQ"


def text_in(header: Dataset, tag: int) -> str:
    """Return a text of `header` without its padding, "" where it is absent or empty.

    The element stays as it is where its bytes say it all; else pydicom converts it.
    """
    item: DataElement | RawDataElement | None = header.get_item(tag_of(tag))
    if item is None:
        return ""
    if isinstance(item, RawDataElement) and item.value is not None:
        text = plain_text(item.value, item.VR or known_vr(tag))
        if text is not None:
            return text
    return str(header[tag_of(tag)].value or "")


def put_raw(header: Dataset, element: RawDataElement) -> None:
    """Put an element into `header` as it is: pydicom would convert a private one."""
    header._dict[element.tag] = element
