"""Strips of pictures to look at: original, marked, their difference, and what a forger did."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom_node.demo.children import StepFailed
from dicom_node.demo.comparing import Comparison
from dicom_node.demo.samples import MAX_PIXELS
from dicom_node.instance.display import display_of
from dicom_node.instance.frames import open_instance
from dicom_node.watermark.box import Box

Picture = NDArray[np.uint8]
Panel = tuple[str, Picture]

_GAIN = 20
_HEIGHT_PX, _WIDTH_PX = 280, 360
_TITLE_PX = 26
_GAP_PX = 6
_RED = (40, 40, 230)


def picture_of(path: Path) -> Picture:
    """Return frame 1 as a viewer shows it, uint8 ``(rows, columns, 3)``, blue green red."""
    with closing(open_instance(path, max_pixels=MAX_PIXELS)) as instance:
        return _bgr(display_of(instance).export_8bit(instance.frame(0), 0))


def panels_of(comparison: Comparison) -> list[Panel]:
    """Return original, marked, and the change 20 times around middle grey."""
    change = np.clip(128 + _GAIN * 255 * comparison.change, 0, 255).astype(np.uint8)
    return [
        ("original", _bgr(comparison.original)),
        ("marked", _bgr(comparison.marked)),
        (f"difference x {_GAIN}", _bgr(change)),
    ]


def outlined(picture: Picture, boxes: Sequence[Box], width_px: int) -> Picture:
    """Return a copy with the boxes drawn around in red."""
    drawn = picture.copy()
    for box in boxes:
        corner = (int(box.column + box.columns) - 1, int(box.row + box.rows) - 1)
        cv2.rectangle(drawn, (int(box.column), int(box.row)), corner, _RED, width_px)
    return drawn


def around(picture: Picture, centre: tuple[int, int], reach_px: int) -> Picture:
    """Return the part of a picture within `reach_px` rows and columns of `centre`."""
    top, left = (max(0, at - reach_px) for at in centre)
    return picture[top : centre[0] + reach_px, left : centre[1] + reach_px]


def save_strip(path: Path, panels: Sequence[Panel]) -> None:
    """Write panels of one height side by side, a title over each, as PNG (StepFailed)."""
    height = min(_HEIGHT_PX, *(p.shape[0] * _WIDTH_PX // p.shape[1] for _, p in panels))
    columns: list[Picture] = []
    for title, picture in panels:
        scale = height / picture.shape[0]
        size = (round(picture.shape[1] * scale), height)
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        panel = np.full((height + _TITLE_PX, size[0] + _GAP_PX, 3), 255, np.uint8)
        panel[_TITLE_PX:, : size[0]] = cv2.resize(picture, size, interpolation=how)
        where, font = (2, _TITLE_PX - 9), cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(panel, title, where, font, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        columns.append(panel)
    strip = np.hstack(columns)[:, :-_GAP_PX]
    if not cv2.imwrite(str(path), strip, [cv2.IMWRITE_PNG_COMPRESSION, 9]):
        raise StepFailed(f"{path} cannot be written")


def _bgr(shown: NDArray[Any]) -> Picture:
    code = cv2.COLOR_GRAY2BGR if shown.ndim == 2 else cv2.COLOR_RGB2BGR
    return np.asarray(cv2.cvtColor(shown, code), np.uint8)
