"""What a structured report takes over from the study it is about: references, patient, study."""

from __future__ import annotations

import re
import unicodedata
from contextlib import closing
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicom_node.errors import PixelError
from dicom_node.instance.datafile import open_data_file
from dicom_node.verify.study import CheckedInstance, StudyCheck

# Keyword, longest value, and what it must look like: what came in may break the report's rules.
_TAKEN: tuple[tuple[str, int, str], ...] = (
    ("PatientName", 194, r"[^\\]*"),
    ("PatientID", 64, r"[^\\]*"),
    ("IssuerOfPatientID", 64, r"[^\\]*"),
    ("PatientBirthDate", 8, r"(\d{8})?"),
    ("PatientSex", 1, r"[MFO]?"),
    ("StudyDate", 8, r"(\d{8})?"),
    ("StudyTime", 13, r"(\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?)?"),
    ("StudyID", 16, r"[^\\]*"),
    ("AccessionNumber", 16, r"[^\\]*"),
    ("ReferringPhysicianName", 194, r"[^\\]*"),
    ("StudyDescription", 64, r"[^\\]*"),
)
_TYPE_3 = frozenset(("IssuerOfPatientID", "StudyDescription"))
_PERSON_GROUP = 64  # characters in each of a name's three groups


def referable(each: CheckedInstance) -> bool:
    """Whether the instance has what a reference to it needs: four valid UIDs."""
    uids = (each.sop_instance_uid, each.sop_class_uid, each.study_instance_uid,
            each.series_instance_uid)  # fmt: skip
    return all(uid and UID(uid).is_valid for uid in uids)


def has_evidence(check: StudyCheck) -> bool:
    """Whether `evidence_of` finds an instance that describes the study."""
    try:
        return bool(evidence_of(check))
    except PixelError:
        return False


def evidence_of(check: StudyCheck) -> list[Dataset]:
    """Return a data set for each instance that can be referred to; the first describes the study.

    Values that a report must not repeat (too long, of another form) are left empty.

    Raises
    ------
    PixelError
        No instance of this very study can be read.
    """
    study = check.study_instance_uid
    found = [each for each in check.instances if referable(each)]
    own = [each for each in found if each.study_instance_uid == study]
    for first in own:
        about = _about(first.path) if first.path is not None else None
        if about is not None:
            rest = [each for each in found if each is not first]
            return [_reference(first, about), *(_reference(each, Dataset()) for each in rest)]
    raise PixelError("no instance of the study is at hand to take patient and study from")


def _reference(each: CheckedInstance, onto: Dataset) -> Dataset:
    onto.SOPClassUID, onto.SOPInstanceUID = each.sop_class_uid, each.sop_instance_uid
    onto.StudyInstanceUID, onto.SeriesInstanceUID = (
        each.study_instance_uid, each.series_instance_uid,
    )  # fmt: skip
    return onto


def _about(path: Path) -> Dataset | None:
    """Return patient and study of one file; None where it cannot be read."""
    try:
        with closing(open_data_file(path)) as data:
            header = data.read_header()
    except (PixelError, OSError):
        return None
    about = Dataset()
    for keyword, longest, form in _TAKEN:
        value = _plain(header, keyword)
        if keyword.endswith("Name") and any(len(g) > _PERSON_GROUP for g in value.split("=")):
            value = ""
        if len(value) > longest or re.fullmatch(form, value) is None:
            value = ""
        if value or keyword not in _TYPE_3:
            setattr(about, keyword, value)
    return about


def _plain(header: Dataset, keyword: str) -> str:
    """Return a value without what a text in DICOM must not hold, "" where it cannot be read."""
    try:
        value = str(header.get(keyword) or "")
    except Exception:  # noqa: BLE001 - pydicom raises nearly anything on such values
        return ""
    return "".join(c for c in value if unicodedata.category(c) not in ("Cc", "Cs")).strip()
