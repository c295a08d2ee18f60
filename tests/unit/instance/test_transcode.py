"""What a destination gets that does not take an instance as it is coded."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_objects import noise
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from dicom_node.errors import PixelError
from dicom_node.instance import recoding
from dicom_node.instance.datafile import open_data_file
from dicom_node.instance.frames import open_instance
from dicom_node.instance.seal import check_seal, seal_file
from dicom_node.instance.transcode import TARGETS, transcode

DEMO = Path(__file__).parents[3] / "demo"
GREY = min((DEMO / "mr_brain").glob("*.dcm"))
NATIVE = [
    ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
]  # fmt: skip
LIMIT = 1 << 26


def frames_of(path: Path) -> list[np.ndarray]:
    with closing(open_instance(path, max_pixels=LIMIT)) as instance:
        return [frame.values.copy() for frame in instance.frames()]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("syntax", [JPEGLSLossless, RLELossless])
def test_pixels_and_attributes_stay_what_they_are(
    syntax: str, target: str, tmp_path: Path
) -> None:
    ds = pydicom.dcmread(GREY)
    pixels = ds.pixel_array.copy()
    ds.compress(syntax, generate_instance_uid=False)
    ds.save_as(tmp_path / "coded.dcm")
    transcode(tmp_path / "coded.dcm", tmp_path / "out.dcm", (target,), max_pixels=LIMIT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coded.dcm", "out.dcm"]
    out = pydicom.dcmread(tmp_path / "out.dcm")
    assert out.file_meta.TransferSyntaxUID == target
    assert np.array_equal(out.pixel_array, pixels)
    ds = pydicom.dcmread(tmp_path / "coded.dcm")
    del ds.PixelData, out.PixelData
    assert out.to_json_dict() == ds.to_json_dict()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize("bits", [8, 16])
def test_native_pixels_keep_their_values_in_every_encoding(make, tmp_path, syntax, target, bits):
    source = make(noise(2, 9, 12, bits=bits), frames=2, syntax=syntax)
    transcode(source, tmp_path / "out.dcm", (target,), max_pixels=LIMIT)
    out = pydicom.dcmread(tmp_path / "out.dcm")
    assert out.file_meta.TransferSyntaxUID == target
    assert np.array_equal(out.pixel_array, pydicom.dcmread(source).pixel_array)
    for before, after in zip(frames_of(source), frames_of(tmp_path / "out.dcm"), strict=True):
        assert np.array_equal(before, after)


@pytest.mark.parametrize("target", TARGETS)
def test_8_bit_pixels_in_big_endian_words_are_turned(make, tmp_path, target):
    ds = pydicom.dcmread(make(noise(8, 10, bits=8), syntax=ExplicitVRBigEndian))
    plain = ds.PixelData
    ds["PixelData"].VR = "OW"
    ds.PixelData = np.frombuffer(plain, "<u2").byteswap().tobytes()
    ds.save_as(tmp_path / "words.dcm")
    transcode(tmp_path / "words.dcm", tmp_path / "out.dcm", (target,), max_pixels=LIMIT)
    assert pydicom.dcmread(tmp_path / "out.dcm").PixelData == plain


@pytest.mark.parametrize("target", TARGETS)
def test_the_seal_of_every_real_native_object_holds_afterwards(
    shared, objects, tmp_path, ring, target
):
    """Reports, contours, segmentations, waveforms and images; pixel data is under the seal."""
    copied, sealed, out = set(), tmp_path / "sealed.dcm", tmp_path / "out.dcm"
    deflated = [row for row in objects if "deflate" in row["path"].lower()]
    for row in [*objects[::3], *deflated]:
        try:
            seal_file(shared / row["path"], sealed, ring.current, marked_at=9)
        except PixelError:
            continue
        with closing(open_data_file(sealed)) as data:
            if data.pixel is not None and data.pixel.length == 0xFFFFFFFF:
                continue
            syntax = data.transfer_syntax_uid
        transcode(sealed, out, (target,), max_pixels=LIMIT)
        check = check_seal(out, ring)
        assert check.intact, (row["path"], check.changed)
        assert pydicom.dcmread(out).file_meta.TransferSyntaxUID == target
        copied.add((syntax, row["path"]))
    assert len(copied) > 60
    assert {syntax for syntax, _ in copied} >= {*map(str, NATIVE)} - {target}


def save_as(ds: pydicom.FileDataset, path: Path, syntax: pydicom.uid.UID) -> None:
    """Write a data set that was read little endian in any native encoding."""
    list(ds.iterall())  # values, no bytes
    fresh = Dataset()
    for element in ds:
        fresh.add(element)
    if not syntax.is_little_endian:
        fresh.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
        fresh["PixelData"].VR = "OW"
    fresh.file_meta = ds.file_meta
    fresh.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(path, fresh, enforce_file_format=True)


def _odd_values() -> pydicom.FileDataset:
    ds = pydicom.dcmread(GREY)
    ds.PixelRepresentation = 1
    ds.SmallestImagePixelValue = -5
    item = Dataset()
    item.PixelPaddingValue = -7
    item.add_new(0x00091002, "US", [1, 2])
    item.private_block(0x0009, "NESTED", create=True)
    ds.ReferencedImageSequence = [item, Dataset()]
    block = ds.private_block(0x0011, "SOMEBODY", create=True)
    block.add_new(1, "FD", 1.5)
    block.add_new(2, "SQ", [item])
    block.add_new(3, "UN", b"abc\0")
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.PatientName = "M\xfcller^J\xf6rg"
    ds.ContourData = [str(number) for number in range(20_000)]
    return ds


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("syntax", NATIVE)
def test_sequences_private_and_signed_values_are_read_as_before(tmp_path, syntax, target):
    ds = _odd_values()
    if not syntax.is_implicit_VR:
        del ds.ContourData  # too long for the 16 bits of an explicit length
    save_as(ds, tmp_path / "in.dcm", syntax)
    transcode(tmp_path / "in.dcm", tmp_path / "out.dcm", (target,), max_pixels=LIMIT)
    out = pydicom.dcmread(tmp_path / "out.dcm")
    assert out.SmallestImagePixelValue == -5
    assert out.PatientName == "M\xfcller^J\xf6rg"
    assert [item.get("PixelPaddingValue") for item in out.ReferencedImageSequence] == [-7, None]
    known = pydicom.dcmread(tmp_path / "in.dcm")
    if syntax.is_implicit_VR:
        written = [ds.get_item("ContourData").value for ds in (out, known)]
        assert written[0] == written[1] == b"\\".join(b"%d" % n for n in range(20_000)) + b" "
    for ours, theirs in ((out, known), (out.ReferencedImageSequence[0],
                                        known.ReferencedImageSequence[0])):  # fmt: skip
        assert [e.tag for e in ours] == [e.tag for e in theirs]
    if not syntax.is_implicit_VR and target == ImplicitVRLittleEndian:
        assert out[0x00111001].value == np.float64(1.5).tobytes()


def test_explicit_to_implicit_and_back_gives_the_first_bytes_again(tmp_path):
    ds = pydicom.dcmread(GREY)
    ds.remove_private_tags()
    ds.save_as(tmp_path / "a.dcm")
    transcode(tmp_path / "a.dcm", tmp_path / "b.dcm", (TARGETS[1],), max_pixels=LIMIT)
    transcode(tmp_path / "b.dcm", tmp_path / "c.dcm", (TARGETS[0],), max_pixels=LIMIT)
    before, after = pydicom.dcmread(tmp_path / "a.dcm"), pydicom.dcmread(tmp_path / "c.dcm")
    assert after.to_json_dict() == before.to_json_dict()


def test_a_copy_that_says_anything_else_is_not_given_away(tmp_path, monkeypatch):
    monkeypatch.setattr(recoding, "swapped", lambda value, _word: value)
    ds = pydicom.dcmread(GREY)
    save_as(ds, tmp_path / "big.dcm", ExplicitVRBigEndian)
    with pytest.raises(PixelError, match="would not survive"):
        transcode(tmp_path / "big.dcm", tmp_path / "out.dcm", TARGETS, max_pixels=LIMIT)
    assert [path.name for path in tmp_path.iterdir()] == ["big.dcm"]


def test_what_would_have_to_say_something_else_is_refused(make, tmp_path):
    ds = pydicom.dcmread(make(noise(64, 64, 3, bits=8)))
    ds.compress(RLELossless, generate_instance_uid=False)
    ds.PhotometricInterpretation = "YBR_RCT"
    ds.save_as(tmp_path / "coded.dcm")
    with pytest.raises(PixelError, match="colours are YBR_RCT in the compressed pixel data"):
        transcode(tmp_path / "coded.dcm", tmp_path / "out.dcm", TARGETS, max_pixels=LIMIT)
    assert not (tmp_path / "out.dcm").exists()


def test_what_cannot_be_decoded_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "junk.dcm").write_bytes(b"junk" * 100)
    with pytest.raises(PixelError):
        transcode(tmp_path / "junk.dcm", tmp_path / "out.dcm", TARGETS, max_pixels=LIMIT)


def test_a_destination_that_takes_nothing_uncompressed_gets_no_copy(tmp_path: Path) -> None:
    with pytest.raises(PixelError, match="no uncompressed transfer syntax"):
        transcode(GREY, tmp_path / "out.dcm", (JPEGLSLossless,), max_pixels=LIMIT)


@pytest.mark.parametrize("target", TARGETS)
def test_the_copy_of_a_copy_is_the_same(target: str, tmp_path: Path) -> None:
    for name in ("a.dcm", "b.dcm"):
        ds = pydicom.dcmread(GREY)
        ds.compress(JPEGLSLossless, generate_instance_uid=False)
        ds.save_as(tmp_path / "coded.dcm")
        transcode(tmp_path / "coded.dcm", tmp_path / name, (target,), max_pixels=LIMIT)
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()
    with closing(open_instance(tmp_path / "a.dcm", max_pixels=LIMIT)) as instance:
        assert instance.frame_count == 1
