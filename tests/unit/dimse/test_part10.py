from io import BytesIO

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.dimse import FileMeta, encode_file_meta, read_file_meta
from dicom_node.dimse.part10 import IMPLEMENTATION_CLASS_UID

CT, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"


@given(st.text("0123456789.", min_size=1, max_size=64), st.text("ABCZ_19", max_size=16))
def test_file_meta_survives_encoding(uid, source):
    header = encode_file_meta(CT, uid, EXPLICIT, source)
    assert read_file_meta(BytesIO(header)) == FileMeta(CT, uid, EXPLICIT, len(header))


def test_pydicom_reads_what_we_write():
    header = encode_file_meta(CT, "1.2.3", EXPLICIT, "MODALITY")
    data_set = b"\x10\x00\x20\x00LO\x04\x00ID12"
    ds = pydicom.dcmread(BytesIO(header + data_set))
    assert ds.PatientID == "ID12"
    assert ds.file_meta.MediaStorageSOPInstanceUID == "1.2.3"
    assert ds.file_meta.TransferSyntaxUID == EXPLICIT
    assert ds.file_meta.SourceApplicationEntityTitle == "MODALITY"
    assert ds.file_meta.FileMetaInformationGroupLength == len(header) - 144


def test_our_implementation_uid_is_a_legal_uid():
    assert pydicom.uid.UID(IMPLEMENTATION_CLASS_UID).is_valid


def test_files_of_pydicom_are_read(tmp_path):
    ds = pydicom.Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.PatientName = CT, "1.2.3.4", "A"
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = EXPLICIT
    ds.file_meta.PrivateInformationCreatorUID = "1.2.3"
    ds.file_meta.PrivateInformation = b"x" * 3000
    ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with (tmp_path / "a.dcm").open("rb") as file:
        meta = read_file_meta(file)
        file.seek(meta.data_set_offset)
        assert file.read(4) == b"\x08\x00\x16\x00"
    assert (meta.sop_class_uid, meta.sop_instance_uid) == (CT, "1.2.3.4")


@pytest.mark.parametrize(
    "content",
    [b"", b"x" * 200, bytes(128) + b"DICM", encode_file_meta(CT, "", EXPLICIT, ""),
     encode_file_meta(CT, "1.2", EXPLICIT, "")[:190],
     bytes(128) + b"DICM\x02\x00\x01\x00OB\0\0\xff\xff\xff\xff"],
)  # fmt: skip
def test_what_is_no_dicom_file_is_a_value_error(content):
    with pytest.raises(ValueError, match=r"DICOM file|group 0002|File Meta"):
        read_file_meta(BytesIO(content))
