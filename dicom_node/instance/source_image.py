"""What a marked instance with a UID of its own says of the instance it was made of.

References
----------
DICOM PS3.3 C.12.4.1 (General Reference), C.7.6.16.2.6 (Derivation Image functional group), C.12.2
(Common Instance Reference), C.8.13.2 (Source Image Evidence Sequence); CID 7202.
"""

from __future__ import annotations

import copy

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dicom_node.instance.appending import append, code
from dicom_node.instance.datafile import DataFile
from dicom_node.instance.encoding import Spec, data_set
from dicom_node.instance.nested_references import SOURCE_IMAGES
from dicom_node.instance.values import tag_of
from dicom_node.instance.work import DERIVATION_CODE

PURPOSE = ("121322", "DCM", "Source image for image processing operation")
_SOP_CLASS, _SOP_INSTANCE = 0x00080016, 0x00080018
_STUDY, _SERIES = 0x0020000D, 0x0020000E
_PIXELS = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))
_SHARED_GROUPS, _EVIDENCE, _BY_SERIES = 0x52009229, 0x00089154, 0x00081115
# Enhanced CT, MR, MR colour, PET, XA and XRF: their IODs list it once more, by study and series.
_LISTS_EVIDENCE = frozenset(
    f"1.2.840.10008.5.1.4.1.1.{which}" for which in ("2.1", "4.1", "4.3", "130", "12.1.1", "12.2.1")
)


def name_source(header: Dataset, data: DataFile, uid: str) -> None:
    """Make `header` a new instance's, whose source is the one received.

    Parameters
    ----------
    header
        Changed; references of the source are the new ones already.
    data
        The source.
    uid
        The new SOP Instance UID.
    """
    header.SOPInstanceUID = uid
    if not data.bulk.keys() & _PIXELS:
        return  # no image, and no Source Image Sequence in its IOD
    sop_class = _uid(data, _SOP_CLASS)
    source: Spec = ((0x00081150, "UI", sop_class), (0x00081155, "UI", _uid(data, _SOP_INSTANCE)))
    purpose: Spec = ((0x0040A170, "SQ", code(*PURPOSE)),)
    append(header, data, SOURCE_IMAGES, (*source, *purpose))
    if tag_of(_SHARED_GROUPS) in header:
        _derive_groups(header, data_set((*source, *purpose)))
        if sop_class in _LISTS_EVIDENCE:
            series: Spec = ((0x00081199, "SQ", source), (0x0020000E, "UI", _uid(data, _SERIES)))
            study: Spec = ((_BY_SERIES, "SQ", series), (0x0020000D, "UI", _uid(data, _STUDY)))
            append(header, data, _EVIDENCE, study)
    if tag_of(_SHARED_GROUPS) in header or tag_of(_BY_SERIES) in header:
        _list_by_series(header, data, source)


def _derive_groups(header: Dataset, source: Dataset) -> None:
    """Say in the functional groups what the frames were derived from."""
    item = Dataset()
    item.SourceImageSequence = Sequence([source])
    item.DerivationCodeSequence = Sequence([data_set(code(*DERIVATION_CODE))])
    keyword = "SharedFunctionalGroupsSequence"
    frames = header.get("PerFrameFunctionalGroupsSequence") or ()
    if any("DerivationImageSequence" in frame for frame in frames):
        keyword = "PerFrameFunctionalGroupsSequence"  # a macro is in one place only
    groups = copy.deepcopy(list(header.get(keyword) or ()))
    for group in groups:
        before = list(group.get("DerivationImageSequence") or ())
        group.DerivationImageSequence = Sequence([*before, copy.deepcopy(item)])
    if groups:
        setattr(header, keyword, Sequence(groups))


def _list_by_series(header: Dataset, data: DataFile, source: Spec) -> None:
    """List the source among the referenced instances of its series."""
    series = _uid(data, _SERIES)
    listed = copy.deepcopy(list(header.get("ReferencedSeriesSequence") or ()))
    own = next((item for item in listed if item.get("SeriesInstanceUID") == series), None)
    if own is None:
        own = Dataset()
        own.SeriesInstanceUID = series
        listed.append(own)
    before = list(own.get("ReferencedInstanceSequence") or ())
    own.ReferencedInstanceSequence = Sequence([*before, data_set(source)])
    header.ReferencedSeriesSequence = Sequence(listed)


def _uid(data: DataFile, tag: int) -> str:
    return data.text(tag).strip(" \0")
