"""The report as a DICOM structured report, Comprehensive SR, sealed with our key.

The tree, in our own terms (scheme ``99DICOMNODE``) where DICOM has none::

    CONTAINER Integrity Report
      observer context: device, its UID and name
      CODE Verdict, TEXT Finding ..., DATETIME Time of check, NUM Instances by verdict
      CONTAINER Chain: TEXT Received, Marked, Delivered, Checked
      CONTAINER Keys: TEXT Key
      CONTAINER Instance, for each with a finding: IMAGE or COMPOSITE, CODE Verdict, TEXT Finding,
                TEXT Changed attribute, SCOORD Changed region (selected from IMAGE, frame)
      CONTAINER Instances without findings: CODE Verdict, IMAGE or COMPOSITE ...
      CONTAINER Missing instances: UIDREF ...

References
----------
DICOM PS3.3 A.35.3 (Comprehensive SR IOD), C.18.6 (spatial coordinates), PS3.16 TID 1002, 1004
(observer context).
"""

from __future__ import annotations

import io
import tempfile
import uuid
import warnings
from collections.abc import Iterable, Sequence
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from highdicom.sr import (
    CodeContentItem,
    CodedConcept,
    CompositeContentItem,
    ComprehensiveSR,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    DateTimeContentItem,
    GraphicTypeValues,
    ImageContentItem,
    NumContentItem,
    RelationshipTypeValues,
    ScoordContentItem,
    TextContentItem,
    UIDRefContentItem,
)
from pydicom.dataset import Dataset
from pydicom.uid import UID, generate_uid

from dicom_node import __version__
from dicom_node.instance import seal
from dicom_node.instance.derivation import MANUFACTURER, MODEL
from dicom_node.keys import KeySet
from dicom_node.verify.report import ReportError
from dicom_node.verify.report_evidence import evidence_of, referable
from dicom_node.verify.report_facts import HeaderLine, InstanceFacts, StudyFacts, is_finding
from dicom_node.verify.report_text import printable
from dicom_node.verify.report_words import WORDS
from dicom_node.verify.study import CheckedInstance, StudyCheck
from dicom_node.verify.verdict import Verdict

if TYPE_CHECKING:
    from dicom_node.watermark.box import Box

SCHEME = "99DICOMNODE"
TERMS = {
    "INTREP": "Integrity Report",
    "VERDICT": "Verdict",
    "FINDING": "Finding",
    "CHECKED": "Time of check, UTC",
    "COUNT": "Instances with this verdict",
    "CHAIN": "Chain",
    "RECEIVED": "Received", "MARKED": "Marked", "DELIVERED": "Delivered", "RECHECK": "Checked",
    "KEYS": "Keys",
    "KEY": "Key",
    "INSTANCE": "Instance",
    "SOUND": "Instances without findings",
    "CHANGEDATTR": "Changed attribute",
    "CHANGED": "Changed region",
    "MISSING": "Missing instances",
}  # fmt: skip
"""Code value and meaning of our terms."""
VERDICT_CODES: dict[Verdict, str] = {
    "authentic": "AUTHENTIC", "content-preserved": "PRESERVED", "unmarked": "UNMARKED",
    "foreign": "FOREIGN", "tampered": "TAMPERED", "unreadable": "UNREADABLE",
}  # fmt: skip
"""Code value of a verdict; its meaning is `report_words.WORDS`."""

_CONTAINS = RelationshipTypeValues.CONTAINS
_CONTEXT = RelationshipTypeValues.HAS_OBS_CONTEXT
_SELECTED = RelationshipTypeValues.SELECTED_FROM
_MOST_REGIONS = 512  # of the whole report; highdicom takes milliseconds for each
_MOST_INSTANCES = 2000
_DEVICE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:dicom-node:verifier")
_IMAGE_CLASSES = "1.2.840.10008.5.1.4.1.1."
_STEP_CODES = {"Received": "RECEIVED", "Marked": "MARKED", "Delivered": "DELIVERED",
               "Checked": "RECHECK"}  # fmt: skip


def structured_report(check: StudyCheck, facts: StudyFacts, signer: KeySet | None = None) -> bytes:
    """Return the report as a DICOM file.

    Parameters
    ----------
    signer
        Seals the report, so that it is checked like any instance of the study; None: it is not.

    Raises
    ------
    PixelError
        No instance of the study is at hand to take patient and study from.
    ReportError
        It cannot be made from what the study says of itself.
    """
    evidence = evidence_of(check)
    try:
        report = _written(evidence, _root(check, facts))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        # What highdicom and pydicom raise on values and SOP classes they do not know.
        raise ReportError(f"no structured report can be made: {error}") from error
    return report if signer is None else _sealed(report, signer, check)


def _sealed(report: bytes, signer: KeySet, check: StudyCheck) -> bytes:
    try:
        with tempfile.TemporaryDirectory(prefix="dicom-node-") as folder:
            plain, sealed = Path(folder, "plain.dcm"), Path(folder, "sealed.dcm")
            plain.write_bytes(report)
            seal.seal_file(plain, sealed, signer, marked_at=int(check.checked_at.timestamp()))
            return sealed.read_bytes()
    except OSError as error:
        raise ReportError(f"the structured report cannot be sealed: {error}") from error


def _written(evidence: Sequence[Dataset], content: ContainerContentItem) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about values that came with the study
        report = ComprehensiveSR(
            evidence=evidence,
            content=content,
            series_instance_uid=generate_uid(),
            series_number=9001,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer=MANUFACTURER,
            is_complete=True,
            is_final=True,
            specific_character_set="ISO_IR 192",
            manufacturer_model_name=MODEL,
            software_versions=__version__,
            device_serial_number="0",
            series_description="Integrity report",
        )
        out = io.BytesIO()
        report.save_as(out, enforce_file_format=True)
    return out.getvalue()


def _root(check: StudyCheck, facts: StudyFacts) -> ContainerContentItem:
    root = ContainerContentItem(name=_term("INTREP"), is_content_continuous=False)
    items: list[ContentItem] = [*_observer(), _verdict(check.verdict or "unmarked")]
    items += [_text("FINDING", sentence) for sentence in (*facts.sentences, *facts.caveats)]
    # Without its offset, which DCMTK 3.6.7 does not take where it is +0000.
    when = check.checked_at.astimezone(UTC).replace(tzinfo=None, microsecond=0)
    items.append(DateTimeContentItem(_term("CHECKED"), when, relationship_type=_CONTAINS))
    items += [_count(word, check.counts[word]) for word in VERDICT_CODES if word in check.counts]
    items.append(_container("CHAIN", (
        _text(_STEP_CODES[step.what], "; ".join((step.when, *step.details)))
        for step in facts.chain
    )))  # fmt: skip
    if facts.keys:
        items.append(_container("KEYS", (
            _text("KEY", f"key id {key.key_id}; owner {key.owner or 'unknown'}; SHA-256 of the "
                         f"public key {key.fingerprint or 'not at hand'}")
            for key in facts.keys
        )))  # fmt: skip
    items += _instances(check, facts)
    missing = [uid for uid in check.missing if UID(uid).is_valid][:_MOST_INSTANCES]
    if missing:
        items.append(_container("MISSING", (
            UIDRefContentItem(_term("INSTANCE"), uid, relationship_type=_CONTAINS)
            for uid in missing
        )))  # fmt: skip
    root.ContentSequence = ContentSequence(items)
    return root


def _observer() -> list[ContentItem]:
    """Return who observed: a device (TID 1002, 1004)."""
    device = CodedConcept("121007", "DCM", "Device")
    uid = UID(f"2.25.{_DEVICE.int}")
    return [
        CodeContentItem(CodedConcept("121005", "DCM", "Observer Type"), device,
                        relationship_type=_CONTEXT),
        UIDRefContentItem(CodedConcept("121012", "DCM", "Device Observer UID"), uid,
                          relationship_type=_CONTEXT),
        TextContentItem(CodedConcept("121013", "DCM", "Device Observer Name"),
                        f"{MODEL} {__version__}", relationship_type=_CONTEXT),
        TextContentItem(CodedConcept("121014", "DCM", "Device Observer Manufacturer"),
                        MANUFACTURER, relationship_type=_CONTEXT),
    ]  # fmt: skip


def _instances(check: StudyCheck, facts: StudyFacts) -> Iterable[ContentItem]:
    told = {each.sop_instance_uid: each for each in facts.findings}
    older = frozenset(check.superseded)
    found = [e for e in check.instances if is_finding(e, older)][:_MOST_INSTANCES]
    room = max(4, _MOST_REGIONS // max(1, len(told)))
    for each in found:
        yield _instance(each, told.get(each.sop_instance_uid), room)
    sound = [e for e in check.instances if not is_finding(e, older)][:_MOST_INSTANCES]
    if sound:
        yield _container("SOUND", [_verdict("authentic"), *map(_reference, sound)])


def _instance(each: CheckedInstance, told: InstanceFacts | None, room: int) -> ContainerContentItem:
    """Return what there is to say about one instance; regions only where it is told of at all."""
    items: list[ContentItem] = [_reference(each), _verdict(each.verdict.verdict)]
    if told is not None:
        items += [_text("FINDING", remark) for remark in told.remarks]
        items += [_text("CHANGEDATTR", _attribute(line)) for line in told.header]
        boxes = [(frame.frame, box) for frame in each.verdict.frames for box in frame.tampered]
        if referable(each):
            items += [_region(each, frame, box) for frame, box in boxes[:room]]
        if len(boxes) > room:
            items.append(_text("FINDING", f"{len(boxes) - room} more regions are changed."))
    return _container("INSTANCE", items)


def _attribute(line: HeaderLine) -> str:
    """Say what changed: digests and the value now; the value signed where it is proven."""
    if not line.tag:
        return line.name
    said = [
        line.name, f"digest signed {line.before or 'none'}, now {line.now or 'none'}",
        f"value now: {line.value or 'none'}",
    ]  # fmt: skip
    return "; ".join([*said, f"value signed: {line.original}"] if line.original else said)


def _reference(each: CheckedInstance) -> ContentItem:
    if not referable(each):
        return _text("INSTANCE", printable(each.sop_instance_uid) or "without a UID")
    of_pixels = each.sop_class_uid.startswith(_IMAGE_CLASSES) and bool(each.verdict.frames)
    kind = ImageContentItem if of_pixels else CompositeContentItem
    return kind(_term("INSTANCE"), each.sop_class_uid, each.sop_instance_uid,
                relationship_type=_CONTAINS)  # fmt: skip


def _region(each: CheckedInstance, frame: int, box: Box) -> ScoordContentItem:
    """Return a changed region, selected from its frame of the image."""
    region = ScoordContentItem(
        _term("CHANGED"), GraphicTypeValues.POLYLINE, _corners(box), relationship_type=_CONTAINS
    )
    image = ImageContentItem(
        _term("INSTANCE"), each.sop_class_uid, each.sop_instance_uid,
        referenced_frame_numbers=[frame] if len(each.verdict.frames) > 1 else None,
        relationship_type=_SELECTED,
    )  # fmt: skip
    region.ContentSequence = ContentSequence([image])
    return region


def _corners(box: Box) -> np.ndarray:
    """Return a closed line round a box, ``(5, 2)``, column and row; (0, 0) is a pixel's corner."""
    top, left = int(box.row), int(box.column)
    bottom, right = top + int(box.rows), left + int(box.columns)
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom), (left, top)],
                    np.float64)  # fmt: skip


def _verdict(verdict: Verdict, relationship: RelationshipTypeValues = _CONTAINS) -> CodeContentItem:
    meaning = CodedConcept(VERDICT_CODES[verdict], SCHEME, WORDS[verdict][0])
    return CodeContentItem(_term("VERDICT"), meaning, relationship_type=relationship)


def _count(verdict: Verdict, number: int) -> NumContentItem:
    unit = CodedConcept("{instances}", "UCUM", "instances")
    item = NumContentItem(_term("COUNT"), number, unit, relationship_type=_CONTAINS)
    item.ContentSequence = ContentSequence(
        [_verdict(verdict, RelationshipTypeValues.HAS_PROPERTIES)]
    )
    return item


def _container(term: str, items: Iterable[ContentItem]) -> ContainerContentItem:
    container = ContainerContentItem(_term(term), is_content_continuous=False,
                                     relationship_type=_CONTAINS)  # fmt: skip
    container.ContentSequence = ContentSequence(list(items))
    return container


def _text(term: str, text: str) -> TextContentItem:
    return TextContentItem(_term(term), text, relationship_type=_CONTAINS)


def _term(code: str) -> CodedConcept:
    return CodedConcept(code, SCHEME, TERMS[code])
