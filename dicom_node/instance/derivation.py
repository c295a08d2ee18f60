"""What a marked instance's header says about our work, and how to take all of it back.

References
----------
DICOM PS3.3 C.12.1 (Contributing Equipment), C.12.4.1.1 (Derivation), C.12.1.1.9 (Original
Attributes), C.7.6.1.1.5 (lossy compression), C.7.6.3 (smallest and largest value).
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dicom_node import __version__
from dicom_node.instance.appending import append, append_item, code, put
from dicom_node.instance.block import block_tags, remove_block
from dicom_node.instance.datafile import DataFile
from dicom_node.instance.encoding import Spec
from dicom_node.instance.frames import Instance
from dicom_node.instance.parsing import put_raw, text_in
from dicom_node.instance.rewrite import changed_tags
from dicom_node.instance.signatures import (
    MAC_PARAMETERS,
    SIGNATURES,
    Signature,
    check_signatures,
)
from dicom_node.instance.source_image import name_source
from dicom_node.instance.syntaxes import LOSSY_METHOD
from dicom_node.instance.uids import changed_references
from dicom_node.instance.undo_block import original_transfer_syntax, undo, undo_block
from dicom_node.instance.values import encoded_text, known_vr, tag_of
from dicom_node.instance.work import DERIVATION_CODE, SealedWork, Work
from dicom_node.instance.writer import OutputFormat

__all__ = [
    "DERIVATION_CODE", "Derived", "SealedWork", "Work", "describe", "describe_sealed",
    "original_transfer_syntax", "undo",
]  # fmt: skip

MANUFACTURER = "dicom-node project"
MODEL = "dicom-node"
_SIGNATURES = (MAC_PARAMETERS, SIGNATURES)
_DESCRIPTION, _CODES, _EQUIPMENT = 0x00082111, 0x00089215, 0x0018A001
_CONTENT = 0x0040A730
_SOP_INSTANCE = 0x00080018
_ST_CHARACTERS = 1024
# A longer sequence is not written a second time into Original Attributes: the undo block has it.
_MOST_NOTED_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Derived:
    """The header that describes the work, and what takes it back.

    Attributes
    ----------
    header
        Complete but for our private block.
    undo
        Plain bytes for `undo`; encrypt them before they go into the private block.
    """

    header: Dataset
    undo: bytes


def describe(instance: Instance, output: OutputFormat, work: Work) -> Derived:
    """Describe the marked instance.

    Parameters
    ----------
    instance
        The source.
    output
        How the marked instance will be coded.

    Raises
    ------
    PixelError
        If the header cannot be parsed.
    """
    data = instance.data
    header, signatures = _unsigned(data)
    output.apply(header)
    if work.image_type == "derived":
        _set_derived(header)
    followed = _follow(header, data, work)
    _set_extremes(header, instance, work)
    _set_lossy(header, instance)
    _append_derivation(header, data)
    return _described(header, data, work, signatures, followed)


def describe_sealed(data: DataFile, work: SealedWork) -> Derived:
    """Describe an instance that is sealed, and whose UID or references are others now.

    Parameters
    ----------
    data
        The source; its pixel data stays as it is.

    Raises
    ------
    PixelError
        If the header cannot be parsed.
    """
    header, signatures = _unsigned(data)
    followed = _follow(header, data, work)
    return _described(header, data, work, signatures, followed)


def _unsigned(data: DataFile) -> tuple[Dataset, list[Signature]]:
    """Return the header without our private block and without signatures, and what these were."""
    header = data.read_header()
    remove_block(header)
    signatures = check_signatures(data)
    for tag in map(tag_of, _SIGNATURES):
        if tag in header:
            del header[tag]
    return header, signatures


def _follow(header: Dataset, data: DataFile, work: SealedWork) -> Collection[int]:
    """Let UID and references be the new ones; return the tags of changed sequences."""
    own = work.sop_instance_uid or data.text(_SOP_INSTANCE).strip(" \0")
    followed = changed_references(header, work.references.get, own=own)
    for tag, element in followed.items():
        if isinstance(element, RawDataElement):
            put_raw(header, element)
        else:
            header[tag] = element
    if work.sop_instance_uid not in ("", data.text(_SOP_INSTANCE).strip(" \0")):
        name_source(header, data, work.sop_instance_uid)
    return followed.keys()


def _described(
    header: Dataset, data: DataFile, work: SealedWork, signatures: list[Signature],
    followed: Collection[int],
) -> Derived:  # fmt: skip
    """Add what every change leaves behind, and note what takes it back."""
    signed_before = any(tag in data.elements for tag in _SIGNATURES)
    _append_original_attributes(header, data, work, followed)
    _append_equipment(header, data, work, signatures, signed_before=signed_before)
    changed = list(changed_tags(data.read_header(), header))
    return Derived(_as_stored(data, header, changed), undo_block(data, changed))


def _as_stored(data: DataFile, header: Dataset, changed: list[int]) -> Dataset:
    """Return `header` with the source's own bytes for whatever was only looked at.

    pydicom parses a value when it is read, and would write it in another form (leading spaces).
    """
    kept = {int(tag): item for tag, item in data.read_header().items()}
    for tag in changed:
        kept.pop(tag, None)
    return Dataset({tag: kept.get(int(tag), item) for tag, item in header.items()})


def _append_equipment(
    header: Dataset, data: DataFile, work: SealedWork, signatures: list[Signature], *,
    signed_before: bool,
) -> None:  # fmt: skip
    text = f"{work.said}; reversible"
    if signatures:
        text += f"; digital signatures: {', '.join(map(str, signatures))}"
    if signed_before:
        text += "; digital signatures over the original removed"
    item: Spec = (
        (0x00080070, "LO", MANUFACTURER),
        (0x00081010, "SH", work.station_name[:16]),
        (0x00081090, "LO", MODEL),
        (0x00181020, "LO", __version__),
        (0x0018A002, "DT", work.time),
        (0x0018A003, "ST", text[:_ST_CHARACTERS]),
        (0x0040A170, "SQ", code("109103", "DCM", "Modifying Equipment")),
    )
    append(header, data, _EQUIPMENT, item)


def _append_derivation(header: Dataset, data: DataFile) -> None:
    said = text_in(header, _DESCRIPTION)
    text = f"{said}; {DERIVATION_CODE[2]}" if said else DERIVATION_CODE[2]
    if len(text) <= _ST_CHARACTERS:
        old: DataElement | RawDataElement | None = header.get_item(tag_of(_DESCRIPTION))
        plain = old is None or (isinstance(old, RawDataElement) and old.VR in (None, "ST"))
        value = encoded_text(text, "ST") if plain else None
        if value is None:
            header.DerivationDescription = text
        else:
            put(header, data, _DESCRIPTION, "ST", value)
    append(header, data, _CODES, code(*DERIVATION_CODE))


def _append_original_attributes(
    header: Dataset, data: DataFile, work: SealedWork, followed: Collection[int]
) -> None:
    """Record the values that were replaced so far; the undo block has them as bytes, too."""
    replaced = list(_replaced(data, header, followed))
    if not replaced:
        return
    before = Dataset()
    for tag in replaced:
        before[tag] = data.header[tag_of(tag)]
    item = Dataset()
    item.SourceOfPreviousValues = ""
    item.AttributeModificationDateTime = work.time
    item.ModifyingSystem = f"{MODEL} {work.station_name}"[:64]
    item.ReasonForTheAttributeModification = "COERCE"
    item.ModifiedAttributesSequence = Sequence([before])
    append_item(header, "OriginalAttributesSequence", item)


def _replaced(data: DataFile, header: Dataset, followed: Collection[int]) -> Iterator[int]:
    before = data.read_header()
    own, present = set(block_tags(before)), before.keys()
    for tag in changed_tags(before, header):
        if tag_of(tag) in present and tag not in own and tag not in _SIGNATURES:
            if tag in (_DESCRIPTION, _CODES) or tag >> 16 == 0x7FE0:
                continue
            item = before.get_item(tag_of(tag))
            is_sequence = (item.VR or known_vr(tag)) == "SQ" or tag in followed
            if is_sequence and not _is_noted(data, tag, followed):
                continue
            yield tag


def _is_noted(data: DataFile, tag: int, followed: Collection[int]) -> bool:
    """Whether a sequence is told of: not one that only grew, nor one that fills a header.

    Nor a report's content: who looks for it takes what stands there for the report's own.
    """
    place = data.elements[tag]
    return tag in followed and tag != _CONTENT and place.end - place.start <= _MOST_NOTED_BYTES


def _set_derived(header: Dataset) -> None:
    """Set value 1 of Image Type, and of Frame Type in every functional group."""
    if header.get("ImageType"):
        header.ImageType = _derived_type(header.ImageType)
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        if keyword not in header:
            continue
        groups = copy.deepcopy(header[keyword])
        for item in groups.value:
            for element in [e for e in item if e.VR == "SQ" and e.value]:
                if element.value[0].get("FrameType"):
                    element.value[0].FrameType = _derived_type(element.value[0].FrameType)
        header[keyword] = groups


def _derived_type(kind: str | Iterable[str]) -> list[str]:
    """Return Image Type or Frame Type with value 1 replaced; pydicom gives one value as itself."""
    values = [kind] if isinstance(kind, str) else list(kind)
    return ["DERIVED", *values[1:]]


def _set_extremes(header: Dataset, instance: Instance, work: Work) -> None:
    vr = "SS" if instance.signed else "US"
    for tag, value in ((0x00280106, work.smallest), (0x00280107, work.largest)):
        if _signed_value(header, tag, instance.signed) not in (None, value):
            header[tag] = DataElement(tag, vr, value)
    for tag, value, wider in ((0x00280108, work.smallest, min), (0x00280109, work.largest, max)):
        said = _signed_value(header, tag, instance.signed)
        if said is not None and wider(said, value) != said:
            header[tag] = DataElement(tag, vr, value)


def _signed_value(header: Dataset, tag: int, signed: bool) -> int | None:
    key = tag_of(tag)
    value = header[key].value if key in header.keys() else None  # noqa: SIM118 - ten times faster
    if not isinstance(value, int):
        return None
    value &= 0xFFFF
    return value - 0x10000 if signed and value >= 0x8000 else value


def _set_lossy(header: Dataset, instance: Instance) -> None:
    """Say that the pixels went through a lossy process, where the source left it to its syntax."""
    if instance.syntax.loss != "always" or header.get("LossyImageCompression") == "01":
        return
    header.LossyImageCompression = "01"
    coded = max(instance.coded_bytes, 1)
    ratio = instance.form.pixels * instance.samples * instance.bits_allocated / 8
    if "LossyImageCompressionRatio" not in header:
        header.LossyImageCompressionRatio = f"{ratio * instance.frame_count / coded:.2f}"
    if "LossyImageCompressionMethod" not in header:
        header.LossyImageCompressionMethod = LOSSY_METHOD[instance.syntax.family]
