"""What is read and written without pydicom is what pydicom reads and writes."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pydicom
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.values import convert_SQ

from dicom_node.instance import canonical, kernels
from dicom_node.instance.display import _ranked
from dicom_node.instance.encoding import data_set, element_bytes, item_bytes
from dicom_node.instance.nested import Irregular, Walker
from dicom_node.instance.values import encoded_text, plain_first, plain_text, plain_whole

_ITEM_TAG = b"\xfe\xff\x00\xe0"
CODINGS = [(True, True), (False, True), (False, False)]
TEXTS = st.text("ABC abc019.-+^\\= \t_ä", max_size=12)
LEAVES = st.one_of(
    st.tuples(st.just((0x00080104, "LO")), TEXTS),
    st.tuples(st.just((0x00100010, "PN")), TEXTS),
    st.tuples(st.just((0x00280010, "US")), st.integers(0, 65535)),
    st.tuples(st.just((0x00189074, "DT")), st.just("20260102")),
    st.tuples(st.just((0x00186028, "FD")), st.floats(-1e9, 1e9)),
    st.tuples(st.just((0x00091001, "UN")), st.binary(max_size=9)),
    st.tuples(st.just((0x00091002, "OB")), st.binary(max_size=9)),
    st.tuples(st.just((0x00281201, "OW")), st.binary(max_size=3).map(lambda b: b + b)),
)


@st.composite
def items(draw, depth=2):
    made = Dataset()
    for (tag, vr), value in draw(st.lists(LEAVES, max_size=4)):
        made.add_new(tag, vr, value)
    if depth and draw(st.booleans()):
        inner = draw(st.lists(items(depth=depth - 1), max_size=2))
        made.add_new(0x00081140, "SQ", Sequence(inner))
        made[0x00081140].is_undefined_length = draw(st.booleans())
    made.is_undefined_length_sequence_item = draw(st.booleans())
    return made


def encoded(ds, implicit, little):
    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = implicit, little
    write_dataset(stream, ds)
    return stream.getvalue()


def _begins_like_an_item(item, implicit):
    for element in item:
        if element.VR == "SQ":
            if any(_begins_like_an_item(each, implicit) for each in element.value):
                return True
        elif (
            element.tag.is_private
            and (implicit or element.VR == "UN")
            and bytes(element.value)[:4] == _ITEM_TAG
        ):
            return True
    return False


@pytest.mark.parametrize(("implicit", "little"), CODINGS)
@given(st.lists(items(), max_size=3))
def test_a_sequence_has_the_canonical_bytes_that_pydicom_s_reading_of_it_has(
    implicit, little, made
):
    outer = Dataset()
    outer.add_new(0x00081140, "SQ", Sequence(made))
    value = encoded(outer, implicit, little)[8 if implicit else 12 :]
    read = list(convert_SQ(value, implicit, little))
    walker = Walker(
        value, little=little, leaf=canonical._written_leaf, is_content=canonical.is_content
    )
    expected = canonical._sequence(0x00081140, read)
    if any(_begins_like_an_item(item, implicit) for item in made):
        # In a value of unknown VR it may be a sequence: that is left to pydicom.
        found = canonical._encoded_sequence(0x00081140, value, implicit=implicit, little=little)
        assert found == expected
    else:
        assert walker.sequence(0x00081140, implicit=implicit) == expected


@pytest.mark.parametrize("value", [_ITEM_TAG, _ITEM_TAG + b"\x08\x00"])
def test_a_value_of_unknown_vr_may_begin_like_an_item_and_be_none(value):
    ds = Dataset()
    ds.add_new(0x00090010, "LO", "SOMEBODY")
    ds.add_new(0x00091001, "UN", value)
    raw = read_dataset(DicomBytesIO(encoded(ds, True, True)), True, True)
    found = canonical.canonical_element(raw, raw.get_item(0x00091001))
    assert found.endswith(value)
    assert found != canonical.canonical_element(raw, raw.get_item(0x00090010))


@given(st.lists(items(), min_size=1, max_size=2), st.integers(0, 200), st.binary(max_size=4))
def test_a_damaged_sequence_is_left_to_pydicom_or_read_as_it_does(made, at, damage):
    outer = Dataset()
    outer.add_new(0x00081140, "SQ", Sequence(made))
    value = bytearray(encoded(outer, False, True)[12:])
    value[at : at + len(damage)] = damage
    value = bytes(value)
    walker = Walker(
        value, little=True, leaf=canonical._written_leaf, is_content=canonical.is_content
    )
    try:
        found = walker.sequence(0x00081140, implicit=False)
    except Irregular:
        return
    assert found == canonical._sequence(0x00081140, list(convert_SQ(value, False, True)))


@example(b" 1.2", "UI")
@given(st.binary(max_size=20), st.sampled_from(["CS", "LO", "SH", "ST", "UI"]))
def test_a_plain_text_is_what_pydicom_reads(value, vr):
    text = plain_text(value, vr)
    if text is not None:
        raw = RawDataElement(BaseTag(0x00080104), vr, len(value), value, 0, False, True)
        assert text == str(Dataset({raw.tag: raw})[raw.tag].value or "")


@given(st.text("0123456789 +-.eE\\", max_size=12))
def test_a_plain_number_is_what_pydicom_reads(text):
    value = text.encode()
    for vr, tag, found in (
        ("DS", 0x00281050, plain_first(value, "DS")),
        ("IS", 0x00280008, plain_whole(value, "IS", little=True)),
    ):
        if found is not None:
            raw = RawDataElement(BaseTag(tag), vr, len(value), value, 0, False, True)
            read = Dataset({raw.tag: raw})[raw.tag].value
            assert found == (read if isinstance(read, int | float) else read[0])


@given(st.text(max_size=16), st.sampled_from(["LO", "UI", "ST"]))
def test_an_encoded_text_is_what_pydicom_writes_in_any_character_set(text, vr):
    value = encoded_text(text, vr)
    if value is None or (vr == "UI" and text.endswith(" ")):
        return
    for character_set in ("ISO_IR 100", "ISO_IR 192", "ISO_IR 13", "GB18030"):
        ds = Dataset()
        ds.SpecificCharacterSet = character_set
        ds.add_new(0x00104000, vr, text)
        assert encoded(ds, False, True).endswith(
            element_bytes(0x00104000, vr, value, implicit=False, little=True)
        )


@pytest.mark.parametrize(("implicit", "little"), CODINGS)
def test_an_item_is_encoded_as_pydicom_does_it(implicit, little):
    spec = (
        (0x00080070, "LO", "maker"),
        (0x0018A003, "ST", "odd"),
        (0x0040A170, "SQ", ((0x00080100, "SH", "109103"), (0x00080104, "LO", "x"))),
    )
    outer = Dataset()
    outer.add_new(0x0018A001, "SQ", Sequence([data_set(spec)]))
    item = item_bytes(spec, implicit=implicit, little=little)
    assert item == encoded(outer, implicit, little)[8 if implicit else 12 :]
    assert item_bytes(((0x00080070, "LO", "Ångström"),), implicit=implicit, little=little) is None


@given(
    st.lists(st.integers(-600, 1023), min_size=1, max_size=60),
    st.sampled_from([0.5, 1.0, 37.5, 50.0, 99.7, 100.0]),
)
def test_a_percentile_from_counts_is_that_of_numpy(values, percent):
    array = np.array(values, np.int32)
    counts = np.zeros(2048, np.int64)
    assert kernels.count(array, -1024, 1, 0, counts)
    assert not kernels.count(array, -500, 1, 0, np.zeros(1, np.int64)) or set(values) == {-500}
    assert _ranked(np.cumsum(counts), -1024, percent) == float(np.percentile(array, percent))


@given(
    st.lists(st.integers(-(1 << 15), (1 << 16) - 1), min_size=1, max_size=40),
    st.floats(-1, 1, width=32),
    st.floats(-2, 2, width=32),
    st.booleans(),
)
def test_the_window_kernel_computes_what_numpy_does(values, factor, offset, inverted):
    array = np.array(values, np.int32)
    shown = np.empty(array.shape, np.float32)
    low, high = sorted(values[:2]) if len(values) > 1 else (1, 0)
    kernels.show(array, np.float32(factor), np.float32(offset), inverted, low, high, shown)
    expected = array.astype(np.float32)
    expected *= np.float32(factor)
    expected += np.float32(offset)
    np.clip(expected, 0, 1, out=expected)
    if inverted:
        np.subtract(1, expected, out=expected)
    expected[(array >= low) & (array <= high)] = 0
    assert np.array_equal(shown, expected)


@given(st.lists(st.integers(-40000, 70000), min_size=1, max_size=40))
def test_the_container_kernel_takes_the_low_bits_and_notices_what_does_not_fit(values):
    array = np.array(values, np.int32)
    out = np.empty(array.shape, np.uint16)
    fits = kernels.contain(array, -32768, 32767, 0xFFFF, out)
    assert np.array_equal(out, (array & 0xFFFF).astype(np.uint16))
    assert fits == (min(values) >= -32768 and max(values) <= 32767)


def test_an_unchanged_meta_header_is_written_as_pydicom_writes_it(make, shared, objects, tmp_path):
    from dicom_node.errors import PixelError
    from dicom_node.instance.datafile import open_data_file
    from dicom_node.instance.metaheader import _by_pydicom, meta_bytes

    compared = 0
    for row in objects:
        try:
            data = open_data_file(shared / row["path"])
            expected = _by_pydicom(data.meta.parsed, data.header, "1.2.840.10008.1.2.1")
        except PixelError:
            continue
        assert meta_bytes(data.meta, data.header, "1.2.840.10008.1.2.1") == expected, row["path"]
        data.close()
        compared += 1
    assert compared > 300


def test_an_element_too_long_for_its_vr_is_left_to_pydicom():
    assert element_bytes(0x00100020, "LO", bytes(70000), implicit=False, little=True) is None
    long = element_bytes(0x00091001, "OB", bytes(70000), implicit=False, little=True)
    ds = Dataset()
    ds[0x00091001] = DataElement(0x00091001, "OB", bytes(70000))
    assert long == encoded(ds, False, True)
    assert pydicom.dcmread(BytesIO(long), force=True)[0x00091001].value == bytes(70000)
