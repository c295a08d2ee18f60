"""What a destination gets that takes no compressed pixel data."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from dicom_node.instance.frames import open_instance
from dicom_node.instance.transcode import decompress

DEMO = Path(__file__).parents[3] / "demo"
GREY = min((DEMO / "mr_brain").glob("*.dcm"))


@pytest.mark.parametrize("syntax", [JPEGLSLossless, RLELossless])
def test_pixels_and_attributes_stay_what_they_are(syntax: str, tmp_path: Path) -> None:
    ds = pydicom.dcmread(GREY)
    pixels = ds.pixel_array.copy()
    ds.compress(syntax, generate_instance_uid=False)
    ds.save_as(tmp_path / "coded.dcm")
    assert decompress(tmp_path / "coded.dcm", tmp_path / "out.dcm", max_pixels=1 << 26) == ""
    out = pydicom.dcmread(tmp_path / "out.dcm")
    assert out.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert np.array_equal(out.pixel_array, pixels)
    ds = pydicom.dcmread(tmp_path / "coded.dcm")
    del ds.PixelData, out.PixelData
    assert out == ds


def test_what_would_have_to_say_something_else_is_refused(tmp_path: Path) -> None:
    ds = pydicom.dcmread(GREY)
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    ds.save_as(tmp_path / "implicit.dcm", implicit_vr=True, little_endian=True)
    reason = decompress(tmp_path / "implicit.dcm", tmp_path / "out.dcm", max_pixels=1 << 26)
    assert "re-encoded" in reason
    assert not (tmp_path / "out.dcm").exists()


def test_what_cannot_be_decoded_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "junk.dcm").write_bytes(b"junk" * 100)
    assert decompress(tmp_path / "junk.dcm", tmp_path / "out.dcm", max_pixels=1 << 26)


def test_the_copy_of_a_copy_is_the_same(tmp_path: Path) -> None:
    for name in ("a.dcm", "b.dcm"):
        ds = pydicom.dcmread(GREY)
        ds.compress(JPEGLSLossless, generate_instance_uid=False)
        ds.save_as(tmp_path / "coded.dcm")
        assert decompress(tmp_path / "coded.dcm", tmp_path / name, max_pixels=1 << 26) == ""
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()
    with closing(open_instance(tmp_path / "a.dcm", max_pixels=1 << 26)) as instance:
        assert instance.frame_count == 1
