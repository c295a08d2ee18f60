"""The header seal survives storage in any encoding, and names every change."""

from __future__ import annotations

import pydicom
import pytest
from dicom_objects import noise
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dicom_node.errors import PixelError
from dicom_node.instance.datafile import open_data_file
from dicom_node.instance.rewrite import changed_tags, copy_with_header
from dicom_node.instance.seal import (
    IDENTIFYING_KEYWORDS,
    attribute_digests,
    changed_attributes,
    check_seal,
    seal_file,
)
from dicom_node.keys import KeyRing

EXPLICIT_BE = "1.2.840.10008.1.2.2"


def test_every_real_object_that_can_be_parsed_can_be_sealed(shared, objects, tmp_path, ring):
    sealed = 0
    for row in objects[::5]:
        try:
            uid = seal_file(shared / row["path"], tmp_path / "out.dcm", ring.current, marked_at=9)
        except PixelError:
            continue
        check = check_seal(tmp_path / "out.dcm", ring)
        assert check.intact, (row["path"], check.changed)
        assert check.covers_pixels
        assert (check.marked_at, check.owner) == (9, "TESTS")
        before = open_data_file(shared / row["path"])
        after = open_data_file(tmp_path / "out.dcm")
        assert uid == before.transfer_syntax_uid
        changed = changed_tags(before.read_header(), after.read_header())
        assert all(tag >> 16 == 0x71 or not tag & 0xFFFF for tag in changed), row["path"]
        sealed += 1
    assert sealed > 80


@pytest.mark.peer
@pytest.mark.parametrize("option", ["+te", "+ti", "+tb"])
def test_a_seal_survives_conversion_by_dcmconv(shared, tmp_path, ring, dcmtk, option):
    converted = 0
    for name in (
        "sr/pydicom__test-SR.dcm",
        "seg/dcmqi__liver.dcm",
        "rt/pydicom__rtplan.dcm",
        "rt/pydicom__rtdose_expb.dcm",
        "charset/pydicom__chrKoreanMulti.dcm",
        "ecg/pydicom__waveform_ecg.dcm",
        "ct_series/liver_3slice_GE_LightSpeedUltra/01.dcm",
        "us/pydicom__examples_palette.dcm",
        "mr_mosaic/" + next(p.name for p in sorted((shared / "dicom/mr_mosaic").rglob("*.dcm"))),
    ):
        source = next((shared / "dicom" / name.split("/")[0]).rglob(name.split("/")[-1]))
        seal_file(source, tmp_path / "sealed.dcm", ring.current, marked_at=9)
        done = dcmtk("dcmconv", option, tmp_path / "sealed.dcm", tmp_path / "converted.dcm")
        assert done.returncode == 0, done.stderr
        check = check_seal(tmp_path / "converted.dcm", ring)
        assert check.intact, (name, check.changed)
        converted += 1
    assert converted == 9


def changed_copy(path, tag, element, ring):
    out = path.with_name("changed.dcm")
    copy_with_header(path, {tag: element}, out)
    return check_seal(out, ring)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", EXPLICIT_BE])
def test_a_changed_added_or_removed_attribute_is_named(make, tmp_path, ring, syntax):
    inner = Dataset()
    inner.CodeValue = "1"
    inner.add_new(0x00091001, "LO", "private")
    extra = {"ProcedureCodeSequence": Sequence([inner])}
    sealed = tmp_path / "sealed.dcm"
    source = make(noise(16, 16), syntax=syntax, extra=extra)
    seal_file(source, sealed, ring.current, marked_at=9)
    assert check_seal(sealed, ring).intact
    other = Dataset()
    other.CodeValue = "2"
    for tag, element, name in (
        (0x00100020, pydicom.DataElement(0x00100020, "LO", "P2"), "PatientID"),
        (0x00100010, pydicom.DataElement(0x00100010, "PN", "Ångström^Anderz"), "PatientName"),
        (0x00100010, None, "PatientName"),
        (0x00280010, pydicom.DataElement(0x00280010, "US", 17), "Rows"),
        (0x00104000, pydicom.DataElement(0x00104000, "LT", "new"), "PatientComments"),
        (0x00081032, pydicom.DataElement(0x00081032, "SQ", [other]), "ProcedureCodeSequence"),
        (0x00331001, pydicom.DataElement(0x00331001, "LO", "x"), "(0033,1001)"),
    ):
        check = changed_copy(sealed, tag, element, ring)
        assert check.signature_valid
        assert check.changed == (name,)


def test_padding_of_a_text_is_no_change_but_a_leading_space_is(make, tmp_path, ring):
    sealed = tmp_path / "sealed.dcm"
    seal_file(make(noise(16, 16)), sealed, ring.current, marked_at=9)
    padded = pydicom.DataElement(0x00100020, "LO", "P1   ")
    assert changed_copy(sealed, 0x00100020, padded, ring).intact
    moved = pydicom.DataElement(0x00100020, "LO", " P1")
    assert changed_copy(sealed, 0x00100020, moved, ring).changed == ("PatientID",)


def test_a_changed_pixel_of_a_sealed_object_is_named(make, tmp_path, ring):
    sealed = tmp_path / "sealed.dcm"
    seal_file(make(noise(16, 16)), sealed, ring.current, marked_at=9)
    raw = bytearray(sealed.read_bytes())
    raw[-3] ^= 1
    sealed.write_bytes(raw)
    check = check_seal(sealed, ring)
    assert check.signature_valid
    assert check.changed == ("PixelData",)


def test_a_changed_value_over_a_mebibyte_is_named(make, tmp_path, ring):
    sealed = tmp_path / "sealed.dcm"
    source = make(noise(16, 16), extra={"EncapsulatedDocument": bytes(3 << 20)})
    seal_file(source, sealed, ring.current, marked_at=9)
    assert check_seal(sealed, ring).intact
    raw = bytearray(sealed.read_bytes())
    raw[2 << 20] ^= 1
    sealed.write_bytes(raw)
    assert check_seal(sealed, ring).changed == ("EncapsulatedDocument",)


def test_a_forged_seal_and_a_foreign_one_are_not_valid(make, tmp_path, ring):
    sealed = tmp_path / "sealed.dcm"
    seal_file(make(noise(16, 16)), sealed, ring.current, marked_at=9)
    stranger = KeyRing.open(tmp_path / "other", owner="OTHER", create=True)
    foreign = check_seal(sealed, stranger)
    assert foreign.present
    assert not foreign.signature_valid
    assert foreign.owner == "TESTS"
    raw = sealed.read_bytes()
    at = raw.index(b"DNS1")
    for shift in (5, 15, 60, 120, len(raw[at:]) // 8):
        forged = bytearray(raw)
        forged[at + shift] ^= 1
        sealed.write_bytes(forged)
        assert not check_seal(sealed, ring).intact
    assert not check_seal(make(noise(16, 16), name="plain.dcm"), ring).present


def test_a_public_key_is_enough_to_check(make, tmp_path, ring):
    seal_file(make(noise(16, 16)), tmp_path / "sealed.dcm", ring.current, marked_at=9)
    public = KeyRing.from_public_pem(ring.export_public())
    assert check_seal(tmp_path / "sealed.dcm", public).intact


def test_attribute_digests_name_what_changed(make, ring):
    key = ring.current.mac_key
    header = open_data_file(make(noise(16, 16))).read_header()
    digests = attribute_digests(header, key)
    assert len(digests) == len(IDENTIFYING_KEYWORDS) == 16
    assert {len(d) for d in digests} == {4}
    assert changed_attributes(header, digests, key) == []
    header.PatientID = "P2"
    header.WindowWidth = 3
    assert changed_attributes(header, digests, key) == ["PatientID", "WindowCenter"]


def test_attribute_digests_look_into_shared_functional_groups(make, ring):
    measures, shared_group = Dataset(), Dataset()
    measures.PixelSpacing = [0.5, 0.5]
    shared_group.PixelMeasuresSequence = Sequence([measures])
    extra = {"SharedFunctionalGroupsSequence": Sequence([shared_group])}
    header = open_data_file(make(noise(16, 16), extra=extra)).read_header()
    digests = attribute_digests(header, ring.current.mac_key)
    measures.PixelSpacing = [0.5, 0.6]
    header.SharedFunctionalGroupsSequence = Sequence([shared_group])
    assert changed_attributes(header, digests, ring.current.mac_key) == ["PixelSpacing"]
