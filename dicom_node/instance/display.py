"""Stored values as a viewer would show them: 0 (black) to 1 (white)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.instance import kernels
from dicom_node.instance.frames import Instance
from dicom_node.instance.model import StoredFrame
from dicom_node.instance.transforms import (
    LEAST,
    Float,
    Lut,
    Transform,
    Window,
    is_inverted,
    transforms_of,
)

_PERCENTILES = (0.5, 99.7)
# A window of the header that shows less of a frame as grey than this is not one to look at it in.
_LEAST_GREY = 1 / 64
_BARELY = 0.02  # of the window, from black and from white
_NO_HOLE = (1, 0)
_LUMA = np.array((0.299, 0.587, 0.114), np.float32)  # ITU-R BT.601
# PS3.3 C.7.6.3.1.2, YBR_FULL to RGB
_TO_RGB = np.array(((1, 1, 1), (0, -0.344136, 1.772), (1.402, -0.714136, 0)), np.float32)


class Display:
    """The display transform of an instance, frame by frame; made by `display_of`."""

    def __init__(self, instance: Instance, transforms: Sequence[Transform]) -> None:
        self._instance = instance
        self._transforms = transforms
        self._inverted = is_inverted(instance)
        self._seen: tuple[int, float, float] | None = None

    def image(self, frame: StoredFrame, index: int, *, like: StoredFrame | None = None) -> Float:
        """Return display values of the frame at `index`, float32 ``(rows, columns)`` in [0, 1].

        Colour is shown as its luma (BT.601, full range); padding pixels are 0.

        Parameters
        ----------
        like
            Where the header has no window, or one that shows next to nothing of the frame,
            percentiles of the frame stand in for it; with `like` they are that frame's, so that
            two versions of a frame are shown alike.
        """
        if self._instance.samples == 3:
            return self._luma(frame.values)
        transform = self._transform(index)
        window = self._linear(index, transform, (like or frame).values)
        if window is not None:
            return self._windowed(frame.values, *window)
        shown = self._shown(frame.values, transform)
        if self._inverted:
            np.subtract(1, shown, out=shown)
        if self._instance.padding is not None:
            low, high = self._instance.padding
            shown[(frame.values >= low) & (frame.values <= high)] = 0
        return shown

    def step(self, index: int) -> float:
        """Return the stored units of one of the 256 grey levels from black to white, > 0.

        The frame decides, see `image`: the one last shown, else it is decoded (PixelError).
        """
        if self._instance.samples == 3:
            return (self._instance.high + 1) / 256
        transform = self._transform(index)
        if isinstance(transform.voi, Lut):
            return max(len(transform.voi.table) / 256 / transform.slope, LEAST)
        low, high = self._ends_seen(index)
        return max((high - low) / 256 / transform.slope, LEAST)

    def width(self, index: int) -> float:
        """Return the window's width in stored units, as its header states it.

        PS3.3 C.11.2.1.2.1: of a LINEAR window black and white lie one less apart. Where another
        window stands in for the header's, the narrower of the two counts.
        """
        if self._instance.samples == 1:
            transform = self._transform(index)
            if isinstance(transform.voi, Window):
                stated = max(transform.voi.width / transform.slope, LEAST)
                return min(stated, 256 * self.step(index)) if self.stands_in(index) else stated
        return 256 * self.step(index)

    def stands_in(self, index: int) -> bool:
        """Whether the frame is shown in another window than the header has, see `image`."""
        if self._instance.samples == 3:
            return False
        voi = self._transform(index).voi
        return isinstance(voi, Window) and self._ends_seen(index) != voi.ends

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

    def _linear(
        self, index: int, transform: Transform, like: NDArray[np.int32]
    ) -> tuple[np.float32, np.float32] | None:
        """Return factor and offset from stored to display values; None where it takes a table."""
        if isinstance(transform.voi, Lut):
            return None
        low, high = self._window(transform, like)
        self._seen = (index, low, high)
        if isinstance(transform.modality, Lut) or _is_curve(transform.voi):
            return None
        slope, intercept = transform.modality
        width = max(high - low, LEAST)
        return np.float32(slope / width), np.float32((intercept - low) / width)

    def _windowed(self, stored: NDArray[np.int32], factor: np.float32, offset: np.float32) -> Float:
        """Return the linear window of monochrome values, inverted and padded as the header says."""
        values = np.ascontiguousarray(stored)
        shown = np.empty(values.shape, np.float32)
        # One pass, and one multiply-add: modality and VOI are both linear.
        hole = self._instance.padding or _NO_HOLE
        kernels.show(values.reshape(-1), factor, offset, self._inverted, *hole, shown.reshape(-1))
        return shown

    def _shown(self, stored: NDArray[np.int32], transform: Transform) -> Float:
        """Return display values by a table or a curve."""
        slope, intercept = 1.0, 0.0
        values: NDArray[Any] = stored
        if isinstance(transform.modality, Lut):
            values = transform.modality(stored)
        else:
            slope, intercept = transform.modality
        voi = transform.voi
        if isinstance(voi, Lut):
            return voi(values * slope + intercept)
        if isinstance(voi, Window) and _is_curve(voi):
            wide = values.astype(np.float32) * np.float32(slope) + np.float32(intercept)
            curve: Float = 1 / (1 + np.exp(-4 * (wide - voi.center) / voi.width))
            return curve
        low, high = (self._seen or (0, 0.0, 1.0))[1:]
        width = max(high - low, LEAST)
        shown = values.astype(np.float32)
        shown *= np.float32(slope / width)
        shown += np.float32((intercept - low) / width)
        return np.clip(shown, 0, 1, out=shown)

    def _ends_seen(self, index: int) -> tuple[float, float]:
        """Return the modality values a frame is shown between, decoding it if need be."""
        if self._seen is None or self._seen[0] != index:
            self.image(self._instance.frame(index), index)
        return (self._seen or (0, 0.0, 1.0))[1:]

    def _window(self, transform: Transform, like: NDArray[np.int32]) -> tuple[float, float]:
        """Return the modality values a frame is shown between.

        PET mostly has one window for all slices, and a slice far from what is hot is black in it;
        other windows are simply wrong. Nobody looks at such a frame in its window.
        """
        voi = transform.voi
        if not isinstance(voi, Window):
            return self._ends(transform, like)
        if isinstance(transform.modality, Lut) or _is_curve(voi):
            return voi.ends
        share = self._grey_share(transform, voi.ends, like)
        if share >= _LEAST_GREY:
            return voi.ends
        others = self._ends(transform, like)
        return others if self._grey_share(transform, others, like) > share else voi.ends

    def _grey_share(
        self, transform: Transform, ends: tuple[float, float], like: NDArray[np.int32]
    ) -> float:
        """Return which part of a frame, padding left out, is neither black nor white."""
        assert not isinstance(transform.modality, Lut), "tables have no linear window"
        (slope, intercept), (low, high) = transform.modality, ends
        margin = _BARELY * (high - low)
        least, most = sorted((end - intercept) / slope for end in (low + margin, high - margin))
        grey, all_of_it = kernels.between(
            np.ascontiguousarray(like).reshape(-1), np.ceil(least), np.floor(most),
            *(self._instance.padding or _NO_HOLE),
        )  # fmt: skip
        return grey / max(all_of_it, 1)

    def _ends(self, transform: Transform, like: NDArray[np.int32]) -> tuple[float, float]:
        """Return the modality values that stand in for a window: percentiles of a frame."""
        if isinstance(transform.modality, Lut):
            slope, intercept = 1.0, 0.0
            found = self._percentiles_of(transform.modality(like), like)
        else:
            slope, intercept = transform.modality
            found = self._percentiles(like)
        low, high = sorted(end * slope + intercept for end in found)
        return low, max(high, low + transform.slope)

    def _percentiles(self, stored: NDArray[np.int32]) -> tuple[float, float]:
        """Return `_PERCENTILES` of the stored values that are no padding; of all if all are."""
        values, low = np.ascontiguousarray(stored).reshape(-1), self._instance.low
        counts = np.zeros(self._instance.high - low + 1, np.int64)
        fits = kernels.count(values, low, *(self._instance.padding or _NO_HOLE), counts)
        if not fits:
            return self._percentiles_of(stored, stored)
        if not counts.any():
            kernels.count(values, low, *_NO_HOLE, counts)
        below = np.cumsum(counts)
        return _ranked(below, low, _PERCENTILES[0]), _ranked(below, low, _PERCENTILES[1])

    def _percentiles_of(
        self, values: NDArray[Any], stored: NDArray[np.int32]
    ) -> tuple[float, float]:
        seen = values.ravel()
        if self._instance.padding is not None:
            low, high = self._instance.padding
            kept = values[(stored < low) | (stored > high)]
            seen = kept if kept.size else seen
        low, high = np.percentile(seen, _PERCENTILES)
        return float(low), float(high)


def _is_curve(voi: Lut | Window | None) -> bool:
    return isinstance(voi, Window) and voi.function == "SIGMOID"


def _ranked(below: NDArray[np.int64], least: int, percent: float) -> float:
    """Return a percentile as `numpy.percentile` does, from counts of values up to each.

    Parameters
    ----------
    below
        How many values are at most ``least + i``.
    """
    place = float((below[-1] - 1) * np.float64(percent / 100))
    rank = int(place)
    part = place - rank
    first, second = (
        least + int(np.searchsorted(below, k, side="right"))
        for k in (rank, min(rank + 1, int(below[-1]) - 1))
    )
    step = second - first
    return second - step * (1 - part) if part >= 0.5 else first + step * part


def display_of(instance: Instance) -> Display:
    """Return the display transform of `instance` from its header."""
    return Display(instance, transforms_of(instance))
