"""Stored values as a viewer would show them: 0 (black) to 1 (white)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.instance.frames import Instance
from dicom_node.instance.model import StoredFrame

Float = NDArray[np.float32]

# Center and width a viewer opens an image of the modality with when it carries no window.
_USUAL_WINDOW: dict[str, tuple[float, float]] = {"CT": (40.0, 400.0)}
_PERCENTILES = (0.5, 99.7)
_LEAST = 1e-6
_LUMA = np.array((0.299, 0.587, 0.114), np.float32)  # ITU-R BT.601
# PS3.3 C.7.6.3.1.2, YBR_FULL to RGB
_TO_RGB = np.array(((1, 1, 1), (0, -0.344136, 1.772), (1.402, -0.714136, 0)), np.float32)


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


class Display:
    """The display transform of an instance, frame by frame; made by `display_of`."""

    def __init__(self, instance: Instance, transforms: Sequence[Transform]) -> None:
        self._instance = instance
        self._transforms = transforms
        self._inverted = instance.photometric_interpretation == "MONOCHROME1"
        if instance.header.get("PresentationLUTShape") == "INVERSE":
            self._inverted = True
        self._seen: tuple[int, float, float] | None = None

    def image(self, frame: StoredFrame, index: int, *, like: StoredFrame | None = None) -> Float:
        """Return display values of the frame at `index`, float32 ``(rows, columns)`` in [0, 1].

        Colour is shown as its luma (BT.601, full range); padding pixels are 0.

        Parameters
        ----------
        like
            Where the header has no window, percentiles of the frame stand in for it; with `like`
            they are that frame's, so that two versions of a frame are shown alike.
        """
        if self._instance.samples == 3:
            return self._luma(frame.values)
        shown = self._shown(frame.values, index, (like or frame).values)
        if self._inverted:
            np.subtract(1, shown, out=shown)
        if self._instance.padding is not None:
            low, high = self._instance.padding
            shown[(frame.values >= low) & (frame.values <= high)] = 0
        return shown

    def step(self, index: int) -> float:
        """Return the stored units of one grey level of the window (its width / 256), > 0.

        Where the header has no window the percentiles of the frame decide: of the one last shown,
        else it is decoded (PixelError).
        """
        if self._instance.samples == 3:
            return (self._instance.high + 1) / 256
        transform = self._transform(index)
        slope = transform.slope
        if isinstance(transform.voi, Window):
            low, high = transform.voi.ends
            return max((high - low) / 256 / slope, _LEAST)
        if isinstance(transform.voi, Lut):
            return max(len(transform.voi.table) / 256 / slope, _LEAST)
        if self._seen is None or self._seen[0] != index:
            self.image(self._instance.frame(index), index)
        _, low, high = self._seen or (0, 0.0, 1.0)
        return max((high - low) / 256 / slope, _LEAST)

    def export_8bit(self, frame: StoredFrame, index: int) -> NDArray[np.uint8]:
        """Return the picture a viewer exports: uint8, ``(rows, columns)``, or RGB ``(..., 3)``."""
        if self._instance.samples == 1:
            return np.rint(self.image(frame, index) * 255).astype(np.uint8)
        scaled = frame.values.astype(np.float32) * (255.0 / self._instance.high)
        if self._instance.photometric_interpretation != "RGB":
            scaled[..., 1:] -= 128
            scaled = scaled @ _TO_RGB
        picture: NDArray[np.uint8] = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
        return picture

    def _transform(self, index: int) -> Transform:
        return self._transforms[index if len(self._transforms) > 1 else 0]

    def _luma(self, values: NDArray[np.int32]) -> Float:
        scale = np.float32(1 / self._instance.high)
        if self._instance.photometric_interpretation == "RGB":
            luma: Float = (values.astype(np.float32) @ _LUMA) * scale
            return np.clip(luma, 0, 1, out=luma)
        return values[..., 0].astype(np.float32) * scale

    def _shown(self, stored: NDArray[np.int32], index: int, like: NDArray[np.int32]) -> Float:
        transform = self._transform(index)
        slope, intercept = 1.0, 0.0
        values: NDArray[Any] = stored
        if isinstance(transform.modality, Lut):
            values = transform.modality(stored)
        else:
            slope, intercept = transform.modality
        voi = transform.voi
        if isinstance(voi, Lut):
            return voi(values * slope + intercept)
        if isinstance(voi, Window) and voi.function == "SIGMOID":
            wide = values.astype(np.float32) * np.float32(slope) + np.float32(intercept)
            curve: Float = 1 / (1 + np.exp(-4 * (wide - voi.center) / voi.width))
            return curve
        if isinstance(voi, Window):
            low, high = voi.ends
        else:
            modality = transform.modality
            seen = modality(like) if isinstance(modality, Lut) else like
            ends = sorted(end * slope + intercept for end in self._percentiles(seen, like))
            low, high = ends[0], max(ends[1], ends[0] + transform.slope)
            self._seen = (index, low, high)
        width = max(high - low, _LEAST)
        # One multiply-add from stored to display: modality and VOI are both linear.
        shown = values.astype(np.float32)
        shown *= np.float32(slope / width)
        shown += np.float32((intercept - low) / width)
        return np.clip(shown, 0, 1, out=shown)

    def _percentiles(self, values: NDArray[Any], stored: NDArray[np.int32]) -> tuple[float, float]:
        seen = values.ravel()
        if self._instance.padding is not None:
            low, high = self._instance.padding
            kept = values[(stored < low) | (stored > high)]
            seen = kept if kept.size else seen
        low, high = np.percentile(seen, _PERCENTILES)
        return float(low), float(high)


def display_of(instance: Instance) -> Display:
    """Return the display transform of `instance` from its header.

    The first window or VOI LUT counts; per-frame functional groups override shared ones, those
    the top level. Values that cannot be used are treated as absent.

    References
    ----------
    DICOM PS3.3 C.11.1 (Modality LUT), C.11.2 (VOI LUT), C.7.6.16.2.9 and .10 (per frame).
    """
    if instance.samples == 3:
        return Display(instance, ())
    header, modality = instance.header, instance.modality
    shared = _item(header, "SharedFunctionalGroupsSequence")
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or ()
    common = [header, *_groups(shared)]
    if len(per_frame) != instance.frame_count:
        return Display(instance, (_transform_of(common, modality, instance.signed),))
    transforms = [
        _transform_of([*common, *_groups(own)], modality, instance.signed) for own in per_frame
    ]
    return Display(instance, transforms)


def _groups(item: Dataset | None) -> Iterator[Dataset]:
    for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
        group = _item(item, name)
        if group is not None:
            yield group


def _transform_of(levels: list[Dataset], modality: str, signed: bool) -> Transform:
    """Build the transform from data sets, the later overriding the earlier ones."""
    rescale: Lut | tuple[float, float] | None = None
    voi: Lut | Window | None = None
    for level in levels:
        table = _lut(_item(level, "ModalityLUTSequence"), signed, normalised=False)
        slope = _first(level, "RescaleSlope")
        if table is not None:
            rescale = table
        elif slope:
            rescale = (slope, _first(level, "RescaleIntercept") or 0.0)
        center, width = _first(level, "WindowCenter"), _first(level, "WindowWidth")
        table = _lut(_item(level, "VOILUTSequence"), signed, normalised=True)
        if center is not None and width is not None and width >= _LEAST:
            voi = Window(center, width, str(level.get("VOILUTFunction") or "LINEAR"))
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


def _first(level: Dataset, keyword: str) -> float | None:
    """Return the first number of an attribute; None where absent or no number."""
    try:
        value = level.get(keyword)
        if value is None or value == "":
            return None
        number = float(value if isinstance(value, (int, float, str)) else value[0])
    except (TypeError, ValueError, IndexError):
        return None
    return number if np.isfinite(number) else None
