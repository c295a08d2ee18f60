"""A marked instance may get a UID of its own, and what refers to it follows."""

from __future__ import annotations

import contextlib
from contextlib import closing
from datetime import UTC, datetime

import pydicom
from dicom_objects import noise
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.uid import UID

from dicom_node.errors import PixelError
from dicom_node.instance import uids
from dicom_node.instance.block import PrivateBlock, write_block
from dicom_node.instance.datafile import open_data_file
from dicom_node.instance.derivation import Work, describe, undo
from dicom_node.instance.frames import open_instance
from dicom_node.instance.nested import Irregular
from dicom_node.instance.nested_references import ReferenceWalker
from dicom_node.instance.rewrite import changed_tags, copy_with_header
from dicom_node.instance.uids import changed_references, derive_uid, referenced_uids
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


CT = "1.2.840.10008.5.1.4.1.1.2"
STUDY = "1.2.840.10008.3.1.2.3.1"


def reference(uid, sop_class=CT):
    item = Dataset()
    if sop_class:
        item.ReferencedSOPClassUID = sop_class
    item.ReferencedSOPInstanceUID = uid
    return item


def nested(**sequences):
    item = Dataset()
    for keyword, members in sequences.items():
        setattr(item, keyword, Sequence(members))
    return item


def replaced(source, out, names, own=""):
    """Write `source` with its references changed; return how many elements that were."""
    with closing(open_data_file(source)) as data:
        changes = changed_references(data.read_header(), names, own=own)
    copy_with_header(source, changes, out)
    return len(changes)


def test_references_follow_however_deep_and_only_those_that_have_to(make, tmp_path):
    series = nested(ReferencedSOPSequence=[reference("1.2.9"), reference("1.2.8")])
    frame = nested(DerivationImageSequence=[nested(SourceImageSequence=[reference("1.2.9")])])
    extra = {
        "CurrentRequestedProcedureEvidenceSequence": Sequence([series]),
        "ReferencedImageSequence": Sequence([reference("1.2.8")]),
        "PerFrameFunctionalGroupsSequence": Sequence([frame, frame]),
        "SourceImageSequence": Sequence([reference("1.2.9", "")]),
        "OriginalAttributesSequence": Sequence(
            [nested(ModifiedAttributesSequence=[nested(ReferencedImageSequence=[reference("1.2.9")])])]
        ),
    }  # fmt: skip
    source, out = make(noise(16, 16), extra=extra), tmp_path / "out.dcm"
    original = source.read_bytes()
    assert replaced(source, out, {"1.2.9": "2.25.1"}.get) == 3
    written = pydicom.dcmread(out)
    inside = written.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSOPSequence
    assert [item.ReferencedSOPInstanceUID for item in inside] == ["2.25.1", "1.2.8"]
    assert written.ReferencedImageSequence[0].ReferencedSOPInstanceUID == "1.2.8"
    assert written.SourceImageSequence[0].ReferencedSOPInstanceUID == "2.25.1"
    for group in written.PerFrameFunctionalGroupsSequence:
        [source_image] = group.DerivationImageSequence[0].SourceImageSequence
        assert source_image.ReferencedSOPInstanceUID == "2.25.1"
    [past] = written.OriginalAttributesSequence[0].ModifiedAttributesSequence
    assert past.ReferencedImageSequence[0].ReferencedSOPInstanceUID == "1.2.9"
    assert source.read_bytes() == original


def test_what_no_archive_stores_is_no_reference(make):
    extra = {
        "ReferencedStudySequence": Sequence([reference("1.1", "")]),
        "ReferencedPerformedProcedureStepSequence": Sequence([reference("1.2", "")]),
        "RTReferencedStudySequence": Sequence([reference("1.3", STUDY)]),
        "ReferencedImageSequence": Sequence([reference("1.4"), reference("1.5", "1.2.3.4.5.6")]),
        "SourceImageSequence": Sequence([reference("")]),
    }
    with closing(open_data_file(make(noise(16, 16), extra=extra))) as data:
        assert referenced_uids(data.read_header()) == {"1.4", "1.5"}


def test_no_instance_becomes_its_own_source(make, tmp_path):
    extra = {"SourceImageSequence": Sequence([reference("1.2.9"), reference("1.2.8")])}
    source, out = make(noise(16, 16), extra=extra), tmp_path / "out.dcm"
    names = {"1.2.9": "2.25.1", "1.2.8": "2.25.2"}
    assert replaced(source, out, names.get, own="2.25.1") == 1
    sources = pydicom.dcmread(out).SourceImageSequence
    assert [item.ReferencedSOPInstanceUID for item in sources] == ["1.2.9", "2.25.2"]


def test_a_sequence_that_is_written_as_unknown_is_read_as_what_it_is():
    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = True, True
    write_dataset(stream, nested(ReferencedImageSequence=[reference("1.2.9")]))
    value = stream.getvalue()[8:]
    tag = BaseTag(0x00081140)
    header = Dataset({tag: RawDataElement(tag, "UN", len(value), value, 0, False, True)})
    assert referenced_uids(header) == {"1.2.9"}
    [changed] = changed_references(header, {"1.2.9": "2.25.1"}.get).values()
    assert changed.value[0].ReferencedSOPInstanceUID == "2.25.1"


def test_what_is_read_from_bytes_is_what_pydicom_reads(shared):
    compared = 0
    for path in sorted((shared / "dicom").rglob("*")):
        if not path.is_file() or path.stat().st_size > 4 << 20:
            continue
        try:
            data = open_data_file(path)
        except PixelError:
            continue
        with closing(data):
            raw, header = data.read_header(), data.read_header()
            for tag in uids._suspects(raw):
                walker, _ = uids._walked(raw.get_item(BaseTag(tag)))
                if walker is None:
                    continue
                try:
                    seen = {r.uid for r in uids._references(header, header[BaseTag(tag)])}
                except Exception:  # noqa: BLE001 - pydicom reads no malformed values, bytes do
                    continue
                assert walker.found == seen, path
                names = {uid: derive_uid(uid, KEY) for uid in sorted(seen)[::2]}
                mine = changed_references(data.read_header(), names.get, own="1.2").get(tag)
                its = uids._by_pydicom(header, header[BaseTag(tag)], names.get, "1.2")
                assert (mine is None) == (its is None)
                if mine is not None:
                    assert Dataset({BaseTag(tag): mine})[BaseTag(tag)].value == its.value, path
                    compared += 1
    assert compared > 40


@given(st.binary(max_size=200), st.booleans(), st.booleans())
def test_no_bytes_make_the_walker_fail_otherwise_than_by_leaving_them(value, implicit, little):
    with contextlib.suppress(Irregular):
        assert isinstance(ReferenceWalker(value, little=little).walk(1, implicit=implicit), bytes)


def test_every_reference_of_real_documents_can_be_rewritten_and_back(shared, tmp_path):
    changed = 0
    for folder in ("sr", "seg", "rt", "pmap_float"):
        for path in sorted((shared / "dicom" / folder).glob("*.dcm")):
            with closing(open_data_file(path)) as data:
                before = referenced_uids(data.read_header())
            forth = {uid: f"2.25.{number}" for number, uid in enumerate(sorted(before), 1)}
            back = {new: old for old, new in forth.items()}
            if not replaced(path, tmp_path / "a.dcm", forth.get):
                assert not before
                continue
            with closing(open_data_file(tmp_path / "a.dcm")) as data:
                assert referenced_uids(data.read_header()) == back.keys(), path
            assert replaced(tmp_path / "a.dcm", tmp_path / "b.dcm", back.get)
            twice = tmp_path / "b.dcm"
            original, restored = (pydicom.dcmread(p, force=True) for p in (path, twice))
            for element in original:
                if element.VR == "SQ":
                    assert element.value == restored[element.tag].value, path
            changed += 1
    assert changed >= 15
