"""What a marked instance's header says about our work, and how to take all of it back.

References
----------
DICOM PS3.3 C.12.1 (Contributing Equipment), C.12.4.1.1 (Derivation), C.12.1.1.9 (Original
Attributes), C.7.6.1.1.5 (lossy compression), C.7.6.3 (smallest and largest value).
"""

from __future__ import annotations

import copy
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dicom_node import __version__
from dicom_node.errors import PixelError
from dicom_node.instance.block import block_tags, remove_block
from dicom_node.instance.datafile import DataFile
from dicom_node.instance.encoding import Spec, data_set, item_bytes, raw_element
from dicom_node.instance.frames import Instance
from dicom_node.instance.parsing import own_copy, parse_header, put_raw, text_in
from dicom_node.instance.rewrite import changed_tags
from dicom_node.instance.signatures import (
    MAC_PARAMETERS,
    SIGNATURES,
    Signature,
    check_signatures,
)
from dicom_node.instance.syntaxes import LOSSY_METHOD
from dicom_node.instance.values import encoded_text, tag_of
from dicom_node.instance.writer import OutputFormat

__all__ = ["Derived", "Work", "describe", "original_transfer_syntax", "undo"]

MANUFACTURER = "dicom-node project"
MODEL = "dicom-node"
DERIVATION_CODE = ("REVWM", "99DICOMNODE", "Reversible watermark embedded")
_SIGNATURES = (MAC_PARAMETERS, SIGNATURES)
_DESCRIPTION, _CODES, _EQUIPMENT = 0x00082111, 0x00089215, 0x0018A001
_SOURCES = 0x00082112
_SOURCE_PURPOSE = ("121322", "DCM", "Source image for image processing operation")
_MAGIC = b"DNU1"
_ST_CHARACTERS = 1024


@dataclass(frozen=True, slots=True)
class Work:
    """What was done to the pixels.

    Attributes
    ----------
    marked_at
        Time zone aware.
    key_id
        Of the key set that signed.
    largest_change
        Largest absolute change of a stored value.
    smallest, largest
        Extremes of the marked stored values over all frames and samples.
    marks
        What was embedded, a few words.
    sop_instance_uid
        New UID of the marked instance (``uid_policy = "derive"``); "" to keep the source's.
    """

    marked_at: datetime
    owner: str
    key_id: bytes
    station_name: str
    largest_change: int
    smallest: int
    largest: int
    marks: str = "robust and integrity watermark"
    image_type: Literal["keep", "derived"] = "keep"
    sop_instance_uid: str = ""

    @property
    def time(self) -> str:
        """`marked_at` as DICOM writes it (VR DT)."""
        return self.marked_at.strftime("%Y%m%d%H%M%S.%f%z")


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
    header = instance.read_header()
    remove_block(header)
    present = header.keys()
    signatures = check_signatures(instance.data)
    signed = [tag for tag in map(tag_of, _SIGNATURES) if tag in present]
    for tag in signed:
        del header[tag]
    output.apply(header)
    if work.image_type == "derived":
        _set_derived(header)
    if work.sop_instance_uid not in ("", instance.sop_instance_uid):
        _set_uid(header, instance, work.sop_instance_uid)
    _set_extremes(header, instance, work)
    _set_lossy(header, instance)
    _append_derivation(header, instance.data)
    _append_original_attributes(header, instance, work)
    _append_equipment(header, instance.data, work, signatures, signed_before=bool(signed))
    changed = list(changed_tags(instance.read_header(), header))
    return Derived(_as_stored(instance, header, changed), _undo_block(instance, changed))


def undo(header: Dataset, block: bytes) -> Dataset:
    """Return `header` as it was before `describe`, our private block removed.

    Parameters
    ----------
    header
        Of a marked instance; elements we did not touch are taken over as they are now.
    block
        `Derived.undo` of that instance, decrypted.

    Raises
    ------
    PixelError
        If the block is malformed.
    """
    added, _, implicit, little, originals = _parsed(block)
    restored = own_copy(header)
    remove_block(restored)
    for tag in added:
        if tag in restored:
            del restored[tag]
    before = parse_header(originals, implicit=implicit, little=little)
    return Dataset({**dict(restored.items()), **dict(before.items())})


def original_transfer_syntax(block: bytes) -> str:
    """Return the transfer syntax UID the instance was received in (PixelError)."""
    return _parsed(block)[1]


def _as_stored(instance: Instance, header: Dataset, changed: list[int]) -> Dataset:
    """Return `header` with the source's own bytes for whatever was only looked at.

    pydicom parses a value when it is read, and would write it in another form (leading spaces).
    """
    kept = {int(tag): item for tag, item in instance.read_header().items()}
    for tag in changed:
        kept.pop(tag, None)
    return Dataset({tag: kept.get(int(tag), item) for tag, item in header.items()})


def _undo_block(instance: Instance, changed: list[int]) -> bytes:
    """Encode tags added, and the original bytes of elements replaced or removed."""
    data = instance.data
    added, places = [], []
    for tag in changed:
        if tag in data.elements:
            places.append(data.elements[tag])
        else:
            added.append(tag)
    originals = b"".join(data.source.read(p.start, p.end - p.start) for p in places)
    syntax = instance.transfer_syntax_uid.encode("ascii")
    flags = data.implicit | data.little << 1
    head = _MAGIC + struct.pack("<BBH", flags, len(syntax), len(added)) + syntax
    return head + struct.pack(f"<{len(added)}I", *added) + originals


def _parsed(block: bytes) -> tuple[list[int], str, bool, bool, bytes]:
    try:
        if block[:4] != _MAGIC:
            raise PixelError("the undo block is of another format")
        flags, length, count = struct.unpack_from("<BBH", block, 4)
        syntax = block[8 : 8 + length].decode("ascii")
        added = list(struct.unpack_from(f"<{count}I", block, 8 + length))
    except (struct.error, UnicodeDecodeError) as error:
        raise PixelError("the undo block is malformed") from error
    return added, syntax, bool(flags & 1), bool(flags & 2), block[8 + length + 4 * count :]


def _append_equipment(
    header: Dataset, data: DataFile, work: Work, signatures: list[Signature], *,
    signed_before: bool,
) -> None:  # fmt: skip
    text = (
        f"{work.marks}; owner {work.owner}; key {work.key_id.hex()}; "
        f"largest change {work.largest_change} stored values; reversible"
    )
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
        (0x0040A170, "SQ", _code("109103", "DCM", "Modifying Equipment")),
    )
    _append(header, data, _EQUIPMENT, item)


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
            _put(header, data, _DESCRIPTION, "ST", value)
    _append(header, data, _CODES, _code(*DERIVATION_CODE))


def _append_original_attributes(header: Dataset, instance: Instance, work: Work) -> None:
    """Record the values that were replaced so far; the undo block has them as bytes, too."""
    replaced = list(_replaced(instance, header))
    if not replaced:
        return
    before = Dataset()
    for tag in replaced:
        before[tag] = instance.header[tag]
    item = Dataset()
    item.SourceOfPreviousValues = ""
    item.AttributeModificationDateTime = work.time
    item.ModifyingSystem = f"{MODEL} {work.station_name}"[:64]
    item.ReasonForTheAttributeModification = "COERCE"
    item.ModifiedAttributesSequence = Sequence([before])
    _append_item(header, "OriginalAttributesSequence", item)


def _replaced(instance: Instance, header: Dataset) -> Iterator[int]:
    before = instance.read_header()
    own, present = set(block_tags(before)), before.keys()
    for tag in changed_tags(before, header):
        if tag_of(tag) in present and tag not in own and tag not in _SIGNATURES:
            if tag in (_DESCRIPTION, _CODES) or tag >> 16 == 0x7FE0 or before[tag].VR == "SQ":
                continue
            yield tag


def _set_derived(header: Dataset) -> None:
    """Set value 1 of Image Type, and of Frame Type in every functional group."""
    if header.get("ImageType"):
        header.ImageType = ["DERIVED", *list(header.ImageType)[1:]]
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        if keyword not in header:
            continue
        groups = copy.deepcopy(header[keyword])
        for item in groups.value:
            for element in [e for e in item if e.VR == "SQ" and e.value]:
                if element.value[0].get("FrameType"):
                    kind = list(element.value[0].FrameType)
                    element.value[0].FrameType = ["DERIVED", *kind[1:]]
        header[keyword] = groups


def _set_uid(header: Dataset, instance: Instance, uid: str) -> None:
    """Make it a new instance whose source is the one received (PS3.3 C.7.6.1.1.2, C.12.4.1)."""
    source: Spec = (
        (0x00081150, "UI", instance.sop_class_uid),
        (0x00081155, "UI", instance.sop_instance_uid),
        (0x0040A170, "SQ", _code(*_SOURCE_PURPOSE)),
    )
    header.SOPInstanceUID = uid
    _append(header, instance.data, _SOURCES, source)


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


def _append(header: Dataset, data: DataFile, tag: int, item: Spec) -> None:
    """Append an item to a sequence, which is made where there is none."""
    value = None
    if tag_of(tag) not in header:
        value = item_bytes(item, implicit=data.implicit, little=data.little)
    if value is None:
        _append_item(header, keyword_for_tag(tag), data_set(item))
    else:
        _put(header, data, tag, "SQ", value)


def _append_item(header: Dataset, keyword: str, item: Dataset) -> None:
    """Append to a sequence without touching the one `header` shares with its source."""
    old = list(header.get(keyword) or ())
    setattr(header, keyword, Sequence([*old, item]))


def _put(header: Dataset, data: DataFile, tag: int, vr: str, value: bytes) -> None:
    put_raw(header, raw_element(tag, vr, value, implicit=data.implicit, little=data.little))


def _code(value: str, scheme: str, meaning: str) -> Spec:
    return (0x00080100, "SH", value), (0x00080102, "SH", scheme), (0x00080104, "LO", meaning)
