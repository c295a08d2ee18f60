"""A marked instance may get a UID of its own, and what refers to it follows."""

from __future__ import annotations

from datetime import UTC, datetime

import pydicom
from dicom_objects import noise
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID

from dicom_node.instance.block import PrivateBlock, write_block
from dicom_node.instance.derivation import Work, describe, undo
from dicom_node.instance.frames import open_instance
from dicom_node.instance.rewrite import changed_tags
from dicom_node.instance.uids import changed_references, derive_uid, rewrite_references
from dicom_node.instance.writer import FrameWriter

KEY = b"k" * 32
UIDS = st.text("0123456789.", min_size=1, max_size=64)


@given(UIDS, UIDS)
def test_a_derived_uid_is_legal_repeatable_and_one_for_each(one, other):
    uid = derive_uid(one, KEY)
    assert UID(uid).is_valid
    assert len(uid) <= 64
    assert uid == derive_uid(one, KEY)
    assert (uid == derive_uid(other, KEY)) == (one == other)
    assert uid != derive_uid(one, b"another key".ljust(32))


def test_a_marked_instance_with_a_new_uid_names_its_source_and_can_be_taken_back(make, tmp_path):
    instance = open_instance(make(noise(32, 32)), max_pixels=1 << 20)
    uid = derive_uid(instance.sop_instance_uid, KEY)
    work = Work(
        marked_at=datetime(2026, 11, 21, tzinfo=UTC), owner="TESTS", key_id=b"\x01" * 8,
        station_name="NODE1", largest_change=3, smallest=0, largest=4000, sop_instance_uid=uid,
    )  # fmt: skip
    with FrameWriter(tmp_path, instance) as writer:
        writer.append(instance.frame(0))
        derived = describe(instance, writer.format, work)
        write_block(derived.header, PrivateBlock())
        writer.finish(derived.header, tmp_path / "out.dcm")
    written = pydicom.dcmread(tmp_path / "out.dcm")
    assert written.SOPInstanceUID == written.file_meta.MediaStorageSOPInstanceUID == uid
    [source] = written.SourceImageSequence
    assert source.ReferencedSOPInstanceUID == "1.2.3.4.5"
    assert source.ReferencedSOPClassUID == instance.sop_class_uid
    assert source.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
    [before] = written.OriginalAttributesSequence
    assert before.ModifiedAttributesSequence[0].SOPInstanceUID == "1.2.3.4.5"
    marked = open_instance(tmp_path / "out.dcm", max_pixels=1 << 20)
    restored = undo(marked.read_header(), derived.undo)
    assert list(changed_tags(instance.read_header(), restored)) == []


def test_references_follow_however_deep_and_only_those_that_have_to(make, tmp_path):
    def reference(uid):
        item = Dataset()
        item.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        item.ReferencedSOPInstanceUID = uid
        return item

    series = Dataset()
    series.ReferencedSOPSequence = Sequence([reference("1.2.9"), reference("1.2.8")])
    extra = {
        "CurrentRequestedProcedureEvidenceSequence": Sequence([series]),
        "ReferencedImageSequence": Sequence([reference("1.2.8")]),
        "SourceImageSequence": Sequence([reference("1.2.9")]),
    }
    source, out = make(noise(16, 16), extra=extra), tmp_path / "out.dcm"
    original = source.read_bytes()
    assert rewrite_references(source, {"1.2.9": "2.25.1"}.get, out) == 1
    written = pydicom.dcmread(out)
    inside = written.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSOPSequence
    assert [item.ReferencedSOPInstanceUID for item in inside] == ["2.25.1", "1.2.8"]
    assert written.ReferencedImageSequence[0].ReferencedSOPInstanceUID == "1.2.8"
    assert written.SourceImageSequence[0].ReferencedSOPInstanceUID == "1.2.9"
    assert source.read_bytes() == original
    assert rewrite_references(source, {}.get, tmp_path / "none.dcm") == 0
    assert not (tmp_path / "none.dcm").exists()


def test_every_reference_of_real_documents_can_be_rewritten_and_back(shared, tmp_path):
    changed = 0
    for folder in ("sr", "seg", "rt", "pr", "ko"):
        for path in sorted((shared / "dicom" / folder).glob("*.dcm")):
            names = {}

            def forth(uid, names=names):
                names[f"2.25.{len(uid)}{len(names)}"] = uid
                return f"2.25.{len(uid)}{len(names) - 1}"

            if not rewrite_references(path, forth, tmp_path / "a.dcm"):
                continue
            assert rewrite_references(tmp_path / "a.dcm", names.get, tmp_path / "b.dcm")
            before, after = (pydicom.dcmread(p, force=True) for p in (path, tmp_path / "b.dcm"))
            for element in before:
                if element.VR == "SQ":
                    assert element.value == after[element.tag].value, path
            assert changed_references(after, {}.get) == {}
            changed += 1
    assert changed >= 5
