"""What is written is what was appended, in the format that was promised."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_objects import noise
from pydicom.pixels import pixel_array

from dicom_node.errors import PixelError
from dicom_node.instance.datafile import open_data_file
from dicom_node.instance.frames import Instance, open_instance
from dicom_node.instance.model import StoredFrame
from dicom_node.instance.rewrite import changed_tags, copy_with_header
from dicom_node.instance.syntaxes import SYNTAXES
from dicom_node.instance.writer import FrameWriter, output_format

LIMIT = 400_000_000
JPEG = "1.2.840.10008.1.2.4."
TARGETS = {
    "native": "1.2.840.10008.1.2.1",
    "rle": "1.2.840.10008.1.2.5",
    "jpeg-ls": JPEG + "80",
    "jpeg-2000": JPEG + "90",
}
WRITTEN_AS = {
    "1.2.840.10008.1.2": "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1": "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99": "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2": "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.5": "1.2.840.10008.1.2.5",
    JPEG + "50": JPEG + "80",
    JPEG + "51": JPEG + "80",
    JPEG + "53": JPEG + "80",
    JPEG + "55": JPEG + "80",
    JPEG + "57": JPEG + "80",
    JPEG + "70": JPEG + "80",
    JPEG + "80": JPEG + "80",
    JPEG + "81": JPEG + "80",
    JPEG + "90": JPEG + "90",
    JPEG + "91": JPEG + "90",
    JPEG + "201": JPEG + "90",
    JPEG + "202": JPEG + "90",
    JPEG + "203": JPEG + "90",
}


def rewritten(instance: Instance, out: Path) -> Instance:
    with FrameWriter(out.parent, instance) as writer:
        for frame in instance.frames():
            writer.append(frame)
        uid = writer.finish(instance.read_header(), out)
    again = open_instance(out, max_pixels=LIMIT)
    assert again.transfer_syntax_uid == uid
    return again


def same(one: StoredFrame, other: StoredFrame) -> bool:
    if one.high_bits is None or other.high_bits is None:
        return one.high_bits is other.high_bits and np.array_equal(one.values, other.values)
    equal = np.array_equal(one.high_bits, other.high_bits)
    return equal and np.array_equal(one.values, other.values)


def test_the_table_of_transfer_syntaxes_is_the_promised_one():
    assert {uid: row.marked_as for uid, row in SYNTAXES.items()} == WRITTEN_AS


@pytest.mark.parametrize("uid", sorted(WRITTEN_AS))
def test_a_real_object_of_each_transfer_syntax_gives_equal_frames_again(
    shared, objects, tmp_path, uid
):
    found = 0
    for row in objects:
        if f"[{uid}]" not in row["transfer_syntax"] or found == 4:
            continue
        try:
            instance = open_instance(shared / row["path"], max_pixels=LIMIT)
        except PixelError:
            continue
        if instance.frame_count * instance.form.pixels > 4_000_000:
            continue
        again = rewritten(instance, tmp_path / "out.dcm")
        small = instance.form.pixels < 256
        assert small or again.transfer_syntax_uid == WRITTEN_AS[uid], row["path"]
        for before, after in zip(instance.frames(), again.frames(), strict=True):
            assert same(before, after), row["path"]
        assert again.sop_instance_uid == instance.sop_instance_uid
        found += 1
    if uid != JPEG + "202":  # none among the real objects; it is .201 with another packet order
        assert found


def test_an_unmarked_native_file_is_rewritten_byte_for_byte(shared, objects, tmp_path):
    compared = 0
    for row in objects[::7]:
        path = shared / row["path"]
        try:
            instance = open_instance(path, max_pixels=LIMIT)
        except PixelError:
            continue
        if instance.syntax.family != "native" or instance.syntax.deflated:
            continue
        again = rewritten(instance, tmp_path / "out.dcm")
        assert data_set_bytes(again) == data_set_bytes(instance), row["path"]
        compared += 1
    assert compared >= 30


def data_set_bytes(instance: Instance) -> bytes:
    first = min(place.start for place in instance.data.elements.values())
    return instance.data.source.read(first, instance.data.source.size - first)


@pytest.mark.parametrize(
    "options",
    [
        {"codes": noise(40, 50, bits=12), "bits_stored": 12},
        {"codes": noise(40, 50, bits=16), "signed": True},
        {"codes": noise(40, 50, bits=8)},
        {"codes": noise(3, 40, 50, bits=10), "bits_stored": 10, "frames": 3},
        {"codes": noise(40, 50, bits=16), "bits_stored": 12},  # high bits in use
        {"codes": noise(40, 50, bits=16), "bits_stored": 11, "signed": True},
        {"codes": noise(40, 50, 3, bits=8)},
        {"codes": noise(40, 50, 3, bits=8), "planar": 1},
        {"codes": noise(2, 40, 50, 3, bits=16), "frames": 2},
        {"codes": noise(40, 50, 3, bits=8), "photometric": "YBR_FULL"},
        {"codes": noise(3, 3, 3, bits=8)},
    ],
)
@pytest.mark.parametrize("target", ["native", "rle", "jpeg-ls", "jpeg-2000"])
def test_every_form_survives_every_encoder(make, tmp_path, monkeypatch, options, target):
    instance = open_instance(make(**options), max_pixels=LIMIT)
    # Frames of a native source, written as if it had come in another transfer syntax.
    monkeypatch.setattr(instance, "syntax", replace(instance.syntax, marked_as=TARGETS[target]))
    again = rewritten(instance, tmp_path / "out.dcm")
    for before, after in zip(instance.frames(), again.frames(), strict=True):
        assert same(before, after)
    last = instance.frame(instance.frame_count - 1)
    if again.syntax.family != "jpeg-2000" and last.high_bits is None:
        found = pixel_array(again.path, index=instance.frame_count - 1, raw=True)
        assert np.array_equal(found, last.values)


@pytest.mark.peer
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_dcmtk_decodes_our_jpeg_ls(make, tmp_path, monkeypatch, dcmtk, bits, signed):
    values = noise(64, 80, bits=bits).astype(np.int32)
    if signed:
        values -= 1 << (bits - 1)
    container = (values & 0xFFFF).astype(np.uint8 if bits == 8 else np.uint16)
    instance = open_instance(make(container, bits_stored=bits, signed=signed), max_pixels=LIMIT)
    monkeypatch.setattr(instance, "syntax", replace(instance.syntax, marked_as=JPEG + "80"))
    assert rewritten(instance, tmp_path / "jls.dcm").syntax.uid == JPEG + "80"
    done = dcmtk("dcmdjpls", tmp_path / "jls.dcm", tmp_path / "plain.dcm")
    assert done.returncode == 0, done.stderr
    decoded = open_instance(tmp_path / "plain.dcm", max_pixels=LIMIT).frame(0)
    assert np.array_equal(decoded.values, values)


def test_the_same_work_gives_the_same_bytes(make, tmp_path):
    for syntax in ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"):
        instance = open_instance(make(noise(40, 50), syntax=syntax), max_pixels=LIMIT)
        rewritten(instance, tmp_path / "one.dcm")
        rewritten(instance, tmp_path / "two.dcm")
        assert (tmp_path / "one.dcm").read_bytes() == (tmp_path / "two.dcm").read_bytes()


def test_the_photometric_interpretation_is_that_of_the_coded_samples(shared, tmp_path):
    for name, expected in (
        ("ot_testpattern/cornerstone3D__TestPattern_JPEG-Baseline_YBR422.dcm", "YBR_FULL"),
        ("ot_testpattern/cornerstone3D__TestPattern_JPEG-Lossless_RGB.dcm", "RGB"),
        ("us/pydicom__examples_jpeg2k.dcm", "YBR_RCT"),
        ("vl_photo/fo-dicom__VL5_J2KI.dcm", "YBR_RCT"),
        ("us/cornerstoneWADOImageLoader__US-YBR_FULL_422-EVRLE.dcm", "YBR_FULL_422"),
    ):
        instance = open_instance(shared / "dicom" / name, max_pixels=LIMIT)
        assert output_format(instance).photometric_interpretation == expected, name
        if instance.form.pixels * instance.frame_count < 2_000_000:
            again = rewritten(instance, tmp_path / "out.dcm")
            assert again.form.photometric == expected, name


def test_bytes_behind_the_last_frame_are_kept(make, tmp_path):
    codes = noise(16, 16, bits=8)
    path = make(codes, pixel_data=codes.tobytes() + b"tail of sender..")
    again = rewritten(open_instance(path, max_pixels=LIMIT), tmp_path / "out.dcm")
    assert again.data.source.read(again.data.pixel.value, 1000).endswith(b"tail of sender..")


def test_a_frame_too_few_is_refused(make, tmp_path):
    instance = open_instance(make(noise(2, 16, 16), frames=2), max_pixels=LIMIT)
    with FrameWriter(tmp_path, instance) as writer:
        writer.append(instance.frame(0))
        with pytest.raises(ValueError, match="1 of 2 frames"):
            writer.finish(instance.read_header(), tmp_path / "out.dcm")
    assert not list(tmp_path.glob("*.part"))


def test_a_failed_write_leaves_no_file(make, tmp_path):
    instance = open_instance(make(noise(16, 16)), max_pixels=LIMIT)
    header = instance.read_header()
    header.add_new(0x00280106, "US", -5)
    with FrameWriter(tmp_path, instance) as writer:
        writer.append(instance.frame(0))
        with pytest.raises(PixelError, match="cannot be encoded"):
            writer.finish(header, tmp_path / "out.dcm")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source.dcm"]


def test_a_copy_changes_only_what_was_asked(shared, tmp_path):
    for name in (
        "charset/pydicom__chrJapMulti.dcm",
        "sr/pydicom__test-SR.dcm",
        "malformed/pydicom__UN_sequence.dcm",
        "seg/pydicom-data__liver_expb.dcm",
        "deflated/pydicom__image_dfl.dcm",
        "ecg/pydicom__waveform_ecg.dcm",
    ):
        source = shared / "dicom" / name
        element = pydicom.DataElement(0x00100020, "LO", "CHANGED")
        copy_with_header(source, {0x00100020: element, 0x00100010: None}, tmp_path / "out.dcm")
        before, after = open_data_file(source), open_data_file(tmp_path / "out.dcm")
        changed = set(changed_tags(before.read_header(), after.read_header()))
        assert {t for t in changed if t & 0xFFFF} <= {0x00100020, 0x00100010}, name
        assert after.read_header().PatientID == "CHANGED"
        for tag, place in before.elements.items():
            if tag not in changed and tag & 0xFFFF:
                there = after.elements[tag]
                assert after.source.read(there.start, there.end - there.start) == (
                    before.source.read(place.start, place.end - place.start)
                ), f"{name} {tag:08X}"
