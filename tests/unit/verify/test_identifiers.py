"""What an auditor may ask, and what an answer carries."""

from __future__ import annotations

import json

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from dicom_node.verify import identifiers
from dicom_node.verify.identifiers import IdentifierError, Standing

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"


def asked(level="STUDY", **values):
    ds = Dataset()
    ds.QueryRetrieveLevel = level
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def parse(ds, syntax=EXPLICIT, *, patient_root=False, retrieve=False):
    return identifiers.parse(
        identifiers.encode(ds, syntax), syntax, patient_root=patient_root, retrieve=retrieve
    )


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_the_private_key_asks_for_a_check_and_goes_no_further(syntax):
    ds = asked(StudyInstanceUID="1.2.3")
    assert not parse(ds, syntax).verify_now
    ds.private_block(0x0071, "SOMEBODY ELSE", create=True).add_new(0x01, "LO", "theirs")
    ds.private_block(0x0071, identifiers.CREATOR, create=True).add_new(0x20, "CS", "YES")
    inquiry = parse(ds, syntax)
    assert inquiry.verify_now
    left = [tag for tag in map(int, inquiry.keys.keys()) if tag >> 16 == 0x0071]
    assert left == [0x00710010, 0x00711001]


def test_an_empty_private_key_asks_for_nothing():
    ds = asked(StudyInstanceUID="1.2.3")
    ds.private_block(0x0071, identifiers.CREATOR, create=True).add_new(0x20, "CS", "")
    assert not parse(ds).verify_now


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
def test_a_lone_asterisk_in_a_unique_key_is_universal_matching_in_queries_only(keyword):
    ds = asked("IMAGE", StudyInstanceUID="1.2", SeriesInstanceUID="1.2.3", SOPInstanceUID="1.2.3.4")
    setattr(ds, keyword, "*")
    assert parse(ds).keys[keyword].is_empty
    with pytest.raises(IdentifierError):
        parse(ds, retrieve=True)
    setattr(ds, keyword, "1.2.*")
    with pytest.raises(IdentifierError):
        parse(ds)


@given(st.text(max_size=80))
def test_a_uid_is_a_uid_or_the_identifier_is_refused(text):
    try:
        encoded = text.encode("latin-1")
    except UnicodeEncodeError:
        return
    padded = encoded + b"\0" * (len(encoded) % 2)
    element = b"\x20\x00\x0d\x00UI" + len(padded).to_bytes(2, "little") + padded
    raw = identifiers.encode(asked(), EXPLICIT) + element
    try:
        inquiry = identifiers.parse(raw, EXPLICIT, patient_root=False, retrieve=False)
    except IdentifierError as error:
        said = str(error)
        assert said == "StudyInstanceUID holds something that is no UID"
    else:
        assert all(set(uid) <= set("0123456789.") for uid in inquiry.studies)


@given(st.binary(max_size=200), st.sampled_from([EXPLICIT, IMPLICIT]))
def test_any_bytes_are_an_inquiry_or_refused(encoded, syntax):
    try:
        inquiry = identifiers.parse(encoded, syntax, patient_root=True, retrieve=True)
    except IdentifierError:
        return
    assert inquiry.level in identifiers.LEVELS


def test_a_value_that_is_cut_short_is_refused():
    whole = identifiers.encode(asked(StudyInstanceUID="1.2.3", PatientID="P77"), EXPLICIT)
    for missing in [*range(1, 14), *range(15, 24)]:
        with pytest.raises(IdentifierError):
            identifiers.parse(whole[:-missing], EXPLICIT, patient_root=False, retrieve=False)


@pytest.mark.parametrize("depth", [1, 5000])
def test_sequences_without_end_are_refused(depth):
    opened = b"\x40\x00\x75\x02SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    encoded = identifiers.encode(asked(), EXPLICIT) + opened * depth
    with pytest.raises(IdentifierError):
        identifiers.parse(encoded, EXPLICIT, patient_root=False, retrieve=False)


def test_an_identifier_of_thousands_of_elements_is_refused():
    numbers = (n.to_bytes(2, "little") for n in range(0x1000, 0x1300))
    many = b"".join(b"\x11\x00" + number + b"LO\0\0" for number in numbers)
    with pytest.raises(IdentifierError, match="more than 512 elements"):
        identifiers.parse(identifiers.encode(asked(), EXPLICIT) + many, EXPLICIT,
                          patient_root=False, retrieve=False)  # fmt: skip


def test_a_list_is_allowed_at_the_level_that_is_retrieved_only():
    both = ["1.2.3", "1.2.4"]
    assert parse(asked(StudyInstanceUID=both), retrieve=True).studies == ("1.2.3", "1.2.4")
    with pytest.raises(IdentifierError, match="list"):
        parse(asked("SERIES", StudyInstanceUID=both, SeriesInstanceUID="1.2"), retrieve=True)


@pytest.mark.parametrize("patient", ["", "P*", "P?", "A\\B"])
def test_a_patient_is_retrieved_by_one_value(patient):
    with pytest.raises(IdentifierError):
        parse(asked("PATIENT", PatientID=patient), patient_root=True, retrieve=True)


def test_the_patient_level_belongs_to_the_patient_root():
    ds = asked("PATIENT", PatientID="P1")
    assert parse(ds, patient_root=True).level == "PATIENT"
    with pytest.raises(IdentifierError):
        parse(ds)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_an_answer_has_the_match_and_our_block_and_reads_back(syntax):
    match = asked(StudyInstanceUID="1.2.3", PatientName="Ångström", SeriesInstanceUID="9.9")
    match.SpecificCharacterSet = "ISO_IR 192"
    match.private_block(0x0071, "SOMEBODY ELSE", create=True).add_new(0x01, "LO", "theirs")
    standing = Standing("tampered", 1_700_000_000.0, 5, 1, 0, 2, {"counts": {"tampered": 1}},
                        headers_changed=3, headers_unsealed=4)  # fmt: skip
    want = asked(StudyInstanceUID="", PatientName="")
    ds = identifiers.answer(match, want, standing, "US")
    back = identifiers.decode(identifiers.encode(ds, syntax), syntax)
    block = identifiers.read_block(back)
    assert back.PatientName == "Ångström"
    assert "SeriesInstanceUID" not in back
    assert block[identifiers.VERDICT].strip() == b"tampered"
    assert block[identifiers.VERIFIED_AT].strip() == b"20231114221320+0000"
    assert int.from_bytes(block[identifiers.MISSING], "little") == 2
    assert int.from_bytes(block[identifiers.HEADERS_CHANGED], "little") == 3
    assert int.from_bytes(block[identifiers.HEADERS_UNSEALED], "little") == 4
    assert json.loads(block[identifiers.DETAILS]) == {"counts": {"tampered": 1}}
    assert back[0x0071, 0x1001].value in ("theirs", b"theirs")
    assert back[0x0071, 0x0011].value == identifiers.CREATOR


def test_values_that_pydicom_cannot_convert_pass_through_unread():
    raw = bytes.fromhex("0800200044410a00") + b"not a date"
    raw += identifiers.encode(asked(StudyInstanceUID="1.2.3"), EXPLICIT)
    inquiry = identifiers.parse(raw, EXPLICIT, patient_root=False, retrieve=False)
    again = identifiers.encode(identifiers.with_keys(inquiry.keys, "STUDY"), EXPLICIT)
    assert b"not a date" in again


def test_the_tags_of_an_identifier_are_told_without_values():
    inquiry = parse(asked(StudyInstanceUID="1.2.3", PatientName="DOE"))
    assert inquiry.tags == ("00080052", "00100010", "0020000D")
    assert pydicom.datadict.keyword_for_tag(inquiry.tags[1]) == "PatientName"
