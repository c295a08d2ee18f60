"""Items appended to sequences of a header, as bytes where they are plain, else by pydicom."""

from __future__ import annotations

from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dicom_node.instance.datafile import DataFile
from dicom_node.instance.encoding import Spec, data_set, item_bytes, raw_element
from dicom_node.instance.parsing import put_raw
from dicom_node.instance.values import tag_of


def append(header: Dataset, data: DataFile, tag: int, item: Spec) -> None:
    """Append an item to a sequence, which is made where there is none."""
    value = None
    if tag_of(tag) not in header:
        value = item_bytes(item, implicit=data.implicit, little=data.little)
    if value is None:
        append_item(header, keyword_for_tag(tag), data_set(item))
    else:
        put(header, data, tag, "SQ", value)


def append_item(header: Dataset, keyword: str, item: Dataset) -> None:
    """Append to a sequence without touching the one `header` shares with its source."""
    old = list(header.get(keyword) or ())
    setattr(header, keyword, Sequence([*old, item]))


def put(header: Dataset, data: DataFile, tag: int, vr: str, value: bytes) -> None:
    """Put an element into `header`, encoded as `data` is."""
    put_raw(header, raw_element(tag, vr, value, implicit=data.implicit, little=data.little))


def code(value: str, scheme: str, meaning: str) -> Spec:
    """Return the item of a code sequence."""
    return (0x00080100, "SH", value), (0x00080102, "SH", scheme), (0x00080104, "LO", meaning)
