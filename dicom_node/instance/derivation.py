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

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dicom_node import __version__
from dicom_node.errors import PixelError
from dicom_node.instance.block import block_tags, remove_block
from dicom_node.instance.datafile import own_copy, parse_header
from dicom_node.instance.frames import Instance
from dicom_node.instance.rewrite import changed_tags
from dicom_node.instance.syntaxes import LOSSY_METHOD
from dicom_node.instance.writer import OutputFormat

__all__ = ["Derived", "Work", "describe", "original_transfer_syntax", "undo"]

MANUFACTURER = "dicom-node project"
MODEL = "dicom-node"
DERIVATION_CODE = ("REVWM", "99DICOMNODE", "Reversible watermark embedded")
_SIGNATURES = {0x4FFE0001: "MAC Parameters", 0xFFFAFFFA: "Digital Signatures"}
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
    signatures = [tag for tag in _SIGNATURES if tag in header]
    for tag in signatures:
        del header[tag]
    output.apply(header)
    if work.image_type == "derived":
        _set_derived(header)
    _set_extremes(header, instance, work)
    _set_lossy(header, instance)
    _append_derivation(header)
    _append_original_attributes(header, instance, work)
    _append_equipment(header, work, signed_before=bool(signatures))
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


def _append_equipment(header: Dataset, work: Work, *, signed_before: bool) -> None:
    text = (
        f"{work.marks}; owner {work.owner}; key {work.key_id.hex()}; "
        f"largest change {work.largest_change} stored values; reversible"
    )
    if signed_before:
        text += "; digital signatures over the original removed"
    item = Dataset()
    item.Manufacturer = MANUFACTURER
    item.StationName = work.station_name[:16]
    item.ManufacturerModelName = MODEL
    item.SoftwareVersions = __version__
    item.ContributionDateTime = work.time
    item.ContributionDescription = text[:_ST_CHARACTERS]
    item.PurposeOfReferenceCodeSequence = Sequence([_code("109103", "DCM", "Modifying Equipment")])
    _append(header, "ContributingEquipmentSequence", item)


def _append_derivation(header: Dataset) -> None:
    said = str(header.get("DerivationDescription") or "")
    text = f"{said}; {DERIVATION_CODE[2]}" if said else DERIVATION_CODE[2]
    if len(text) <= _ST_CHARACTERS:
        header.DerivationDescription = text
    _append(header, "DerivationCodeSequence", _code(*DERIVATION_CODE))


def _append_original_attributes(header: Dataset, instance: Instance, work: Work) -> None:
    """Record the values that were replaced so far; the undo block has them as bytes, too."""
    before = Dataset()
    for tag in _replaced(instance, header):
        before[tag] = instance.header[tag]
    if not len(before):
        return
    item = Dataset()
    item.SourceOfPreviousValues = ""
    item.AttributeModificationDateTime = work.time
    item.ModifyingSystem = f"{MODEL} {work.station_name}"[:64]
    item.ReasonForTheAttributeModification = "COERCE"
    item.ModifiedAttributesSequence = Sequence([before])
    _append(header, "OriginalAttributesSequence", item)


def _replaced(instance: Instance, header: Dataset) -> Iterator[int]:
    own = set(block_tags(instance.header))
    appended = {0x00082111, 0x00089215}
    for tag in changed_tags(instance.header, header):
        if tag in instance.header and tag not in own and tag not in _SIGNATURES:
            if tag in appended or instance.header[tag].VR == "SQ" or tag >> 16 == 0x7FE0:
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
    value = header[tag].value if tag in header else None
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


def _append(header: Dataset, keyword: str, item: Dataset) -> None:
    """Append to a sequence without touching the one `header` shares with its source."""
    old = list(header.get(keyword) or ())
    setattr(header, keyword, Sequence([*old, item]))


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue = value
    item.CodingSchemeDesignator = scheme
    item.CodeMeaning = meaning
    return item
