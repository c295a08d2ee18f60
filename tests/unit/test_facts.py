"""What is remembered of a marked frame."""

from __future__ import annotations

import hashlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from dicom_node.facts import InstanceFacts, stored_digest
from dicom_node.instance.datafile import open_data_file
from dicom_node.instance.particulars import facts_of


def test_the_digest_of_stored_values_is_what_its_description_says() -> None:
    values = np.array([[-1, 0, 300], [65535, 1, 2]], np.int32)
    plain = np.array([2, 3], "<u4").tobytes() + np.array(
        [65535, 0, 300, 65535, 1, 2], "<u2"
    ).tobytes()
    assert stored_digest(values) == hashlib.blake2b(plain, digest_size=32).digest()


def test_one_changed_value_or_another_shape_is_another_digest() -> None:
    values = np.arange(64, dtype=np.int32).reshape(8, 8)
    changed = values.copy()
    changed[3, 3] += 1
    digests = {stored_digest(each) for each in (
        values, changed, values.reshape(4, 16), values[..., None], values.T,
    )}  # fmt: skip
    assert len(digests) == 5
    assert stored_digest(np.asfortranarray(values)) == stored_digest(values)


@pytest.mark.parametrize(
    ("number", "expected"),
    [(b"7 ", 7), (b"-3", -3), (b"", None), (b"seven ", None), (b"9" * 22, None)],
)
def test_an_instance_number_nobody_can_read_counts_as_not_said(
    tmp_path: Path, number: bytes, expected: int | None
) -> None:
    path = tmp_path / "one.dcm"
    path.write_bytes(_file(_element(0x0008, 0x0060, b"CS", b"MR"),
                           _element(0x0020, 0x0013, b"IS", number)))  # fmt: skip
    with closing(open_data_file(path)) as data:
        assert facts_of(data, 3) == InstanceFacts("MR", expected, 3)


def _element(group: int, element: int, kind: bytes, value: bytes) -> bytes:
    head = group.to_bytes(2, "little") + element.to_bytes(2, "little") + kind
    return head + len(value).to_bytes(2, "little") + value


def _file(*elements: bytes) -> bytes:
    meta = _element(0x0002, 0x0010, b"UI", b"1.2.840.10008.1.2.1\0")
    length = _element(0x0002, 0x0000, b"UL", len(meta).to_bytes(4, "little"))
    return b"\0" * 128 + b"DICM" + length + meta + b"".join(elements)
