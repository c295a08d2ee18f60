"""Digital signatures are checked before a pixel change breaks them, and what was found is said."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pydicom
import pytest
from dicom_objects import noise

from dicom_node.instance.datafile import open_data_file
from dicom_node.instance.derivation import Work, describe
from dicom_node.instance.frames import open_instance
from dicom_node.instance.signatures import Signature, check_signatures
from dicom_node.instance.writer import output_format

SIGNABLE = [
    "ct/pydicom__CT_small.dcm",
    "nm/pydicom__JPEG2000.dcm",
    "sr/pydicom__test-SR.dcm",
    "ct_enhanced/pydicom-data__eCT_Supplemental.dcm",
]


@pytest.fixture
def sign(tmp_path, dcmtk):
    """Return a function that signs a copy of a file with DCMTK's dcmsign."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out",
         certificate, "-subj", "/CN=Tester"],
        capture_output=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr

    def signed(source: Path, *options: str) -> Path:
        out = tmp_path / "signed.dcm"
        done = dcmtk("dcmsign", *options, "+s", key, certificate, source, out)
        assert done.returncode == 0, done.stderr
        return out

    return signed


def checked(path: Path) -> list[Signature]:
    data = open_data_file(path)
    try:
        return check_signatures(data)
    finally:
        data.close()


@pytest.mark.peer
@pytest.mark.parametrize("name", SIGNABLE)
@pytest.mark.parametrize("algorithm", ["+mr", "+m2", "+m5"])
def test_a_signature_made_by_dcmtk_holds(shared, sign, name, algorithm):
    [found] = checked(sign(shared / "dicom" / name, algorithm))
    assert found.holds
    assert str(found) == f"{found.uid} held when received"


@pytest.mark.peer
def test_a_signature_over_pixels_that_changed_does_not_hold(make, sign):
    path = sign(make(noise(16, 16)))
    raw = bytearray(path.read_bytes())
    raw[raw.index(noise(16, 16).tobytes()) + 20] ^= 1
    path.write_bytes(raw)
    [found] = checked(path)
    assert found.holds is False


@pytest.mark.peer
def test_a_signature_over_an_attribute_that_is_gone_does_not_hold(make, sign):
    ds = pydicom.dcmread(sign(make(noise(16, 16))))
    del ds.PatientID
    path = make(noise(16, 16), name="other.dcm")
    ds.save_as(path)
    [found] = checked(path)
    assert found.holds is False


@pytest.mark.peer
def test_a_signature_calculated_in_another_encoding_is_not_judged(make, sign):
    [found] = checked(sign(make(noise(16, 16), syntax="1.2.840.10008.1.2")))
    assert found.holds is None
    assert str(found).endswith("not checked (calculated in Explicit VR Little Endian)")


@pytest.mark.peer
def test_a_marked_instance_records_what_became_of_its_signatures(make, sign):
    instance = open_instance(sign(make(noise(16, 16))), max_pixels=1 << 20)
    work = Work(
        marked_at=datetime(2026, 11, 21, tzinfo=UTC), owner="TESTS", key_id=b"\x01" * 8,
        station_name="NODE1", largest_change=3, smallest=0, largest=4000,
    )  # fmt: skip
    header = describe(instance, output_format(instance), work).header
    assert "DigitalSignaturesSequence" not in header
    assert "MACParametersSequence" not in header
    [item] = header.ContributingEquipmentSequence
    [found] = check_signatures(instance.data)
    said = f"; digital signatures: {found.uid} held when received; digital signatures over"
    assert said in item.ContributionDescription


def test_an_instance_without_signatures_has_none(make):
    assert checked(make(noise(16, 16))) == []


def test_malformed_signature_items_are_said_to_be_that(make):
    path = make(noise(16, 16))
    raw = path.read_bytes() + b"\xfa\xff\xfa\xffSQ\0\0\x08\0\0\0" + b"\x01\x02\x03\x04\0\0\0\0"
    path.write_bytes(raw)
    [found] = checked(path)
    assert found.holds is None
