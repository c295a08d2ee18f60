"""What turns stored values into display values, as the header describes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.instance.datafile import DataFile
from dicom_node.instance.frames import Instance

Float = NDArray[np.float32]

_TAGS = {
    "WindowCenter": 0x00281050,
    "WindowWidth": 0x00281051,
    "RescaleIntercept": 0x00281052,
    "RescaleSlope": 0x00281053,
    "VOILUTFunction": 0x00281056,
    "ModalityLUTSequence": 0x00283000,
    "VOILUTSequence": 0x00283010,
    "PresentationLUTShape": 0x20500020,
    "SharedFunctionalGroupsSequence": 0x52009229,
    "PerFrameFunctionalGroupsSequence": 0x52009230,
}

# Center and width a viewer opens an image of the modality with when it carries no window.
_USUAL_WINDOW: dict[str, tuple[float, float]] = {"CT": (40.0, 400.0)}
LEAST = 1e-6


@dataclass(frozen=True, slots=True)
class Window:
    """A linear or sigmoid VOI function (PS3.3 C.11.2.1.2), in modality values."""

    center: float
    width: float
    function: str = "LINEAR"

    @property
    def ends(self) -> tuple[float, float]:
        """Modality values shown as black and as white; for SIGMOID its steepest tangent's."""
        if self.function == "LINEAR":
            middle, half = self.center - 0.5, max(self.width - 1, 1) / 2
        else:
            middle, half = self.center, self.width / 2
        return middle - half, middle + half


@dataclass(frozen=True, slots=True)
class Lut:
    """A lookup table (PS3.3 C.11.1.1, C.11.2.1.1); its ends hold outside."""

    first: int
    table: Float

    def __call__(self, values: NDArray[Any]) -> Float:
        """Return the table's entries for `values`."""
        index = np.clip(np.rint(values).astype(np.int64) - self.first, 0, len(self.table) - 1)
        found: Float = self.table[index]
        return found


@dataclass(frozen=True, slots=True)
class Transform:
    """What turns stored values of one frame into display values.

    Attributes
    ----------
    modality
        A table, or (slope, intercept).
    voi
        A table scaled to 0..1, a window, or None: no VOI in the header, take percentiles.
    """

    modality: Lut | tuple[float, float]
    voi: Lut | Window | None

    @property
    def slope(self) -> float:
        """Modality units of one stored unit, without sign; a table's is its mean."""
        if isinstance(self.modality, tuple):
            return abs(self.modality[0]) or 1.0
        table = self.modality.table
        return float(np.ptp(table)) / len(table) or 1.0


def transforms_of(instance: Instance) -> tuple[Transform, ...]:
    """Return the transform of every frame, or the one of all; () for colour.

    The first window or VOI LUT counts; per-frame functional groups override shared ones, those
    the top level. Values that cannot be used are treated as absent.

    References
    ----------
    DICOM PS3.3 C.11.1 (Modality LUT), C.11.2 (VOI LUT), C.7.6.16.2.9 and .10 (per frame).
    """
    if instance.samples == 3:
        return ()
    top, modality = _TopLevel(instance.data), instance.modality
    common: list[_Level] = [top, *_groups(top.item("SharedFunctionalGroupsSequence"))]
    per_frame = top.items("PerFrameFunctionalGroupsSequence")
    if len(per_frame) != instance.frame_count:
        return (_transform_of(common, modality, instance.signed),)
    return tuple(
        _transform_of([*common, *_groups(own)], modality, instance.signed) for own in per_frame
    )


def is_inverted(instance: Instance) -> bool:
    """Whether small values are white."""
    inverse = instance.data.text(_TAGS["PresentationLUTShape"]) == "INVERSE"
    return inverse or instance.photometric_interpretation == "MONOCHROME1"


class _Level(Protocol):
    """Where a transform may be described: the top level, or an item of functional groups."""

    def first(self, keyword: str) -> float | None:
        """Return the first number of an attribute; None where absent or no number."""

    def text(self, keyword: str) -> str:
        """Return a text, "" where absent."""

    def item(self, keyword: str) -> Dataset | None:
        """Return the first item of a sequence; None where absent or empty."""


class _TopLevel:
    """The data set itself, of which few attributes are looked at."""

    def __init__(self, data: DataFile) -> None:
        self._data = data

    def first(self, keyword: str) -> float | None:
        try:
            return _finite(self._data.first(_TAGS[keyword]))
        except (TypeError, ValueError, IndexError):
            return None

    def text(self, keyword: str) -> str:
        return self._data.text(_TAGS[keyword])

    def items(self, keyword: str) -> Sequence[Dataset]:
        if _TAGS[keyword] not in self._data.elements:
            return ()
        return self._data.header.get(keyword) or ()

    def item(self, keyword: str) -> Dataset | None:
        items = self.items(keyword)
        return items[0] if items else None


class _Group:
    """An item of a functional group sequence."""

    def __init__(self, item: Dataset) -> None:
        self._item = item

    def first(self, keyword: str) -> float | None:
        try:
            value = self._item.get(keyword)
            if value is None or value == "":
                return None
            return _finite(float(value if isinstance(value, (int, float, str)) else value[0]))
        except (TypeError, ValueError, IndexError):
            return None

    def text(self, keyword: str) -> str:
        return str(self._item.get(keyword) or "")

    def item(self, keyword: str) -> Dataset | None:
        return _item(self._item, keyword)


def _groups(item: Dataset | None) -> Iterator[_Group]:
    for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
        group = _item(item, name)
        if group is not None:
            yield _Group(group)


def _transform_of(levels: list[_Level], modality: str, signed: bool) -> Transform:
    """Build the transform from data sets, the later overriding the earlier ones."""
    rescale: Lut | tuple[float, float] | None = None
    voi: Lut | Window | None = None
    for level in levels:
        table = _lut(level.item("ModalityLUTSequence"), signed, normalised=False)
        slope = level.first("RescaleSlope")
        if table is not None:
            rescale = table
        elif slope:
            rescale = (slope, level.first("RescaleIntercept") or 0.0)
        center, width = level.first("WindowCenter"), level.first("WindowWidth")
        table = _lut(level.item("VOILUTSequence"), signed, normalised=True)
        if center is not None and width is not None and width >= LEAST:
            voi = Window(center, width, level.text("VOILUTFunction") or "LINEAR")
        elif table is not None:
            voi = table
    if voi is None and rescale is not None and modality in _USUAL_WINDOW:
        voi = Window(*_USUAL_WINDOW[modality])
    return Transform(rescale or (1.0, 0.0), voi)


def _lut(item: Dataset | None, signed: bool, *, normalised: bool) -> Lut | None:
    """Read a LUT item: entries, first mapped value, bits (PS3.3 C.11.1.1.1)."""
    try:
        if item is None or len(item.LUTDescriptor) != 3:
            return None
        count, first, bits = (int(number) for number in item.LUTDescriptor)
        data = item["LUTData"].value
        if isinstance(data, bytes):
            kind = np.uint8 if len(data) == (count or 65536) else np.dtype("<u2")
            entries = np.frombuffer(data, kind)
        else:
            entries = np.atleast_1d(np.asarray(data))
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    if signed and first >= 0x8000:
        first -= 0x10000
    entries = entries[: (count or 65536)]
    if entries.size == 0:
        return None
    scale = np.float32(1 / ((1 << bits) - 1)) if normalised and 0 < bits <= 16 else np.float32(1)
    return Lut(first, np.clip(entries.astype(np.float32) * scale, 0, 1 if normalised else None))


def _item(level: Dataset | None, keyword: str) -> Dataset | None:
    sequence = level.get(keyword) if level is not None else None
    return sequence[0] if sequence else None


def _finite(number: float | None) -> float | None:
    return number if number is not None and np.isfinite(number) else None
