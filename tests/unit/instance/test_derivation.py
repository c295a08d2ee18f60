"""What we write about our work can be read, is conformant, and can be taken back."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime

import numpy as np
import pytest
from dicom_objects import noise
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dicom_node.errors import PixelError, WatermarkError
from dicom_node.instance.block import (
    PrivateBlock,
    pack_frames,
    read_block,
    remove_block,
    unpack_frames,
    write_block,
)
from dicom_node.instance.derivation import Work, describe, original_transfer_syntax, undo
from dicom_node.instance.frames import open_instance
from dicom_node.instance.rewrite import changed_tags
from dicom_node.instance.seal import decrypt, encrypt, seal
from dicom_node.instance.writer import FrameWriter

LIMIT = 400_000_000
MARKED_AT = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)


def work(**changes):
    values = {
        "marked_at": MARKED_AT,
        "owner": "TESTS",
        "key_id": b"\x01" * 8,
        "station_name": "NODE1",
        "largest_change": 3,
        "smallest": 0,
        "largest": 4000,
    }
    return Work(**{**values, **changes})


def marked_like(path, out, keys, **changes):
    """Write what a marked instance looks like, its pixels unchanged."""
    instance = open_instance(path, max_pixels=LIMIT)
    with FrameWriter(out.parent, instance) as writer:
        for frame in instance.frames():
            writer.append(frame)
        derived = describe(instance, writer.format, work(**changes))
        hidden = encrypt(keys.restore_key, derived.undo, b"undo")
        write_block(derived.header, PrivateBlock(undo=hidden, frames=(b"", b"abc")))
        seal(derived.header, instance.data, keys, marked_at=7, cover_pixels=False)
        writer.finish(derived.header, out)
    return instance, open_instance(out, max_pixels=LIMIT)


def test_undo_gives_the_original_header_back_for_real_objects(shared, objects, tmp_path, ring):
    keys, checked = ring.current, 0
    for row in objects[::6]:
        try:
            before, after = marked_like(
                shared / row["path"], tmp_path / "out.dcm", keys, image_type="derived"
            )
        except PixelError:
            continue
        block = read_block(after.header)
        assert block is not None
        assert block.frames == (b"", b"abc")
        plain = decrypt(keys.restore_key, block.undo, b"undo", padded=True)
        restored = undo(after.read_header(), plain)
        changed = [tag for tag in changed_tags(before.read_header(), restored) if tag & 0xFFFF]
        assert set(changed) <= {0x7FE00001, 0x7FE00002}, row["path"]
        assert original_transfer_syntax(plain) == before.transfer_syntax_uid
        assert not restored.group_dataset(0x0071)
        checked += 1
    assert checked > 50


def test_our_work_is_described(make, tmp_path, ring):
    _, after = marked_like(
        make(noise(32, 32), extra={"DerivationDescription": "cropped"}), tmp_path / "o.dcm",
        ring.current,
    )  # fmt: skip
    header = after.header
    [item] = header.ContributingEquipmentSequence
    assert item.PurposeOfReferenceCodeSequence[0].CodeValue == "109103"
    assert item.ContributionDateTime == "20261121090000.000000+0000"
    assert "largest change 3 stored values; reversible" in item.ContributionDescription
    assert "key 0101010101010101" in item.ContributionDescription
    assert header.DerivationDescription == "cropped; Reversible watermark embedded"
    assert header.DerivationCodeSequence[0].CodingSchemeDesignator == "99DICOMNODE"
    assert list(header.ImageType) == ["ORIGINAL", "PRIMARY"]
    assert header.PatientName == "Ångström^Anders"


def test_extremes_are_recomputed_and_their_originals_recorded(make, tmp_path, ring):
    codes = (noise(32, 32, bits=10).astype(np.int32) - 500).astype(np.int16).view(np.uint16)
    path = make(codes, signed=True)
    import pydicom

    ds = pydicom.dcmread(path)
    ds.add_new(0x00280106, "SS", -500)
    ds.add_new(0x00280107, "SS", 523)
    ds.save_as(path)
    _, after = marked_like(path, tmp_path / "out.dcm", ring.current, smallest=-502, largest=523)
    assert after.header.SmallestImagePixelValue == -502
    assert after.header.LargestImagePixelValue == 523
    [item] = after.header.OriginalAttributesSequence
    assert item.ModifiedAttributesSequence[0].SmallestImagePixelValue == -500
    assert "LargestImagePixelValue" not in item.ModifiedAttributesSequence[0]


def test_a_lossy_source_says_so_afterwards(shared, tmp_path, ring):
    name = "dicom/sc/pylibjpeg-data__JPEGBaseline_1s_1f_u_08_08.dcm"
    _, after = marked_like(shared / name, tmp_path / "out.dcm", ring.current)
    assert after.header.LossyImageCompression == "01"
    assert after.header.LossyImageCompressionMethod == "ISO_10918_1"
    assert float(after.header.LossyImageCompressionRatio) > 1
    assert after.lossy


def test_digital_signatures_are_removed_recorded_and_restored(make, tmp_path, ring):
    signature, mac = Dataset(), Dataset()
    signature.MACIDNumber = mac.MACIDNumber = 1
    extra = {
        "DigitalSignaturesSequence": Sequence([signature]),
        "MACParametersSequence": Sequence([mac]),
    }
    before, after = marked_like(make(noise(32, 32), extra=extra), tmp_path / "o.dcm", ring.current)
    assert "DigitalSignaturesSequence" not in after.header
    text = after.header.ContributingEquipmentSequence[0].ContributionDescription
    assert text.endswith("digital signatures over the original removed")
    plain = decrypt(ring.current.restore_key, read_block(after.header).undo, b"undo", padded=True)
    restored = undo(after.read_header(), plain)
    assert restored.DigitalSignaturesSequence[0].MACIDNumber == 1
    assert not list(changed_tags(before.read_header(), restored))


def test_a_restored_native_file_has_the_bytes_of_the_original(shared, tmp_path, ring):
    keys = ring.current
    for name in (
        "ct_series/liver_3slice_GE_LightSpeedUltra/01.dcm",
        "sc/pydicom__SC_rgb_small_odd.dcm",
    ):
        before, after = marked_like(shared / "dicom" / name, tmp_path / "marked.dcm", keys)
        plain = decrypt(keys.restore_key, read_block(after.header).undo, b"undo", padded=True)
        with FrameWriter(tmp_path, after) as writer:
            for frame in after.frames():
                writer.append(frame)
            writer.finish(undo(after.read_header(), plain), tmp_path / "restored.dcm")
        restored = open_instance(tmp_path / "restored.dcm", max_pixels=LIMIT).data
        for tag, place in before.data.elements.items():
            there = restored.elements[tag]
            assert restored.source.read(there.start, there.end - there.start) == (
                before.data.source.read(place.start, place.end - place.start)
            ), f"{name} {tag:08X}"


def test_a_foreign_creator_in_the_first_slot_moves_ours_to_the_next(make):
    instance = open_instance(make(noise(16, 16)), max_pixels=LIMIT)
    header = instance.read_header()
    header.add_new(0x00710010, "LO", "SOMEBODY ELSE")
    header.add_new(0x00711001, "OB", b"\x01\x02")
    write_block(header, PrivateBlock(seal=b"seal"))
    assert header[0x00710011].value == "DICOM-NODE WATERMARK 1.0"
    assert read_block(header).seal == b"seal"
    remove_block(header)
    left = [int(element.tag) for element in header.group_dataset(0x0071)]
    assert left == [0x00710010, 0x00711001]


def test_frame_blocks_survive_packing_and_malformed_ones_are_refused():
    for frames in ((), (b"",), (b"abc", b"", bytes(1000))):
        assert unpack_frames(pack_frames(frames)) == frames
    for bad in (
        b"\x01",
        b"\x02\0\0\0\0\0\0\0",
        b"\xff\xff\xff\xff" + bytes(8),
        pack_frames((b"abc",))[:8],
    ):
        with pytest.raises(PixelError, match="malformed"):
            unpack_frames(bad)


def test_an_altered_undo_block_is_refused(ring):
    key = ring.current.restore_key
    hidden = encrypt(key, b"originals", b"instance 1")
    assert hidden == encrypt(key, b"originals", b"instance 1")
    assert decrypt(key, hidden, b"instance 1") == b"originals"
    assert decrypt(key, hidden + b"\0", b"instance 1", padded=True) == b"originals"
    for altered, context in ((hidden[:-1] + b"x", b"instance 1"), (hidden, b"instance 2")):
        with pytest.raises(WatermarkError, match="altered"):
            decrypt(key, altered, context, padded=True)
    with pytest.raises(PixelError, match="undo block"):
        undo(Dataset(), b"nonsense")


@pytest.mark.peer
def test_dciodvfy_finds_no_error_that_the_original_did_not_have(
    shared, objects, tmp_path, ring, dcmtk
):
    def errors(path) -> set[str]:
        done: subprocess.CompletedProcess[str] = dcmtk("dciodvfy", path)
        said = (done.stdout + done.stderr).splitlines()
        # Where the source's meta header names another instance than its data set, ours does not.
        return {line for line in said if line[:5] == "Error" and "(0x0002," not in line}

    checked = 0
    for row in objects[::11]:
        source = shared / row["path"]
        try:
            marked_like(source, tmp_path / "out.dcm", ring.current)
        except PixelError:
            continue
        assert errors(tmp_path / "out.dcm") <= errors(source), row["path"]
        checked += 1
    assert checked > 20


def test_an_image_type_of_one_value_stays_one(make, tmp_path, ring):
    _, after = marked_like(
        make(noise(32, 32), extra={"ImageType": ["ORIGINAL"]}), tmp_path / "o.dcm", ring.current,
        image_type="derived",
    )  # fmt: skip
    assert after.header.ImageType == "DERIVED"


ENHANCED = ("ct_enhanced/pydicom-data__eCT_Supplemental.dcm",
            "mr_enhanced_noise_pixels/dicom2nifti__IM-0001-9600-0001.dcm")  # fmt: skip


@pytest.mark.parametrize("name", ENHANCED)
def test_derived_is_said_of_every_frame_of_an_enhanced_object(name, shared, tmp_path, ring):
    before, after = marked_like(
        shared / "dicom" / name, tmp_path / "o.dcm", ring.current, image_type="derived"
    )

    def types(header):
        found = [header.ImageType]
        groups = [*header.SharedFunctionalGroupsSequence, *header.PerFrameFunctionalGroupsSequence]
        for group in groups:
            for element in group:
                if element.VR == "SQ" and "FrameType" in element.value[0]:
                    found.append(element.value[0].FrameType)
        return [list(kind) for kind in found]

    was, is_now = types(before.header), types(after.header)
    assert len(was) > 1
    assert is_now == [["DERIVED", *kind[1:]] for kind in was]
    if is_now[0] != was[0]:
        [item] = after.header.OriginalAttributesSequence
        assert list(item.ModifiedAttributesSequence[0].ImageType) == was[0]


@pytest.mark.parametrize("of_frames", [False, True])
def test_an_enhanced_object_with_a_new_uid_names_its_source_in_its_functional_groups(
    of_frames, shared, tmp_path, ring
):
    import pydicom

    ds = pydicom.dcmread(shared / "dicom" / ENHANCED[0])
    for frame in ds.PerFrameFunctionalGroupsSequence if of_frames else ():
        frame.DerivationImageSequence = Sequence([Dataset()])
    ds.save_as(tmp_path / "source.dcm")
    _, after = marked_like(
        tmp_path / "source.dcm", tmp_path / "o.dcm", ring.current, sop_instance_uid="2.25.7"
    )
    header = after.header
    groups = header.SharedFunctionalGroupsSequence
    if of_frames:
        assert "DerivationImageSequence" not in groups[0]
        groups = header.PerFrameFunctionalGroupsSequence
        assert len(groups) == after.frame_count
    for group in groups:
        item = group.DerivationImageSequence[-1]
        [source] = item.SourceImageSequence
        assert source.ReferencedSOPInstanceUID == ds.SOPInstanceUID
        assert source.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        assert item.DerivationCodeSequence[0].CodeValue == "REVWM"
    [study] = header.SourceImageEvidenceSequence
    assert study.StudyInstanceUID == ds.StudyInstanceUID
    [listed] = study.ReferencedSeriesSequence
    assert listed.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == ds.SOPInstanceUID
    [series] = header.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == ds.SeriesInstanceUID
    assert series.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == ds.SOPInstanceUID
