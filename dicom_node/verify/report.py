"""Pictures of a verdict: each frame as a viewer shows it, changed regions outlined."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import NodeError, PixelError
from dicom_node.instance.display import display_of
from dicom_node.instance.frames import open_instance
from dicom_node.verify.check import MAX_PIXELS
from dicom_node.verify.verdict import InstanceVerdict
from dicom_node.watermark.integrity import Box

Picture = NDArray[np.uint8]  # (rows, columns, 3), blue green red

_RED = (40, 40, 235)
_MOST_FRAMES = 64  # pictures of one instance; changed frames come first


class ReportError(NodeError):
    """A picture could not be written."""


def outlined(grey_or_rgb: NDArray[np.uint8], boxes: Iterable[Box]) -> Picture:
    """Return a colour copy of an 8-bit picture with `boxes` drawn in red."""
    code = cv2.COLOR_GRAY2BGR if grey_or_rgb.ndim == 2 else cv2.COLOR_RGB2BGR
    drawn = np.ascontiguousarray(cv2.cvtColor(grey_or_rgb, code))
    width_px = max(1, min(drawn.shape[:2]) // 256)
    for box in boxes:
        corner = (int(box.column + box.columns) - 1, int(box.row + box.rows) - 1)
        cv2.rectangle(drawn, (int(box.column), int(box.row)), corner, _RED, width_px)
    return np.asarray(drawn, np.uint8)


def write_pictures(path: Path, verdict: InstanceVerdict, folder: Path, stem: str) -> list[Path]:
    """Write a PNG of every frame that is not authentic; of the first one when all are.

    Parameters
    ----------
    path
        The instance the verdict is on.
    folder
        Made if missing; pictures are ``<stem>-frame<n>-<verdict>.png``.

    Returns
    -------
    list of Path
        What was written: [] for an instance without frames, at most 64 pictures.

    Raises
    ------
    ReportError
        A picture cannot be written.
    PixelError
        The instance cannot be read any more.
    """
    chosen: Sequence[int] = [f.frame for f in verdict.frames if f.verdict != "authentic"]
    chosen = (chosen or [f.frame for f in verdict.frames[:1]])[:_MOST_FRAMES]
    if not chosen:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with closing(open_instance(path, max_pixels=MAX_PIXELS)) as instance:
        display = display_of(instance)
        for number in chosen:
            said = verdict.frames[number - 1]
            try:
                shown = display.export_8bit(instance.frame(number - 1), number - 1)
            except PixelError as error:
                raise PixelError(f"{path}: {error}") from error
            target = folder / f"{stem}-frame{number}-{said.verdict}.png"
            if not cv2.imwrite(str(target), outlined(shown, said.tampered)):
                raise ReportError(f"{target}: cannot be written; is the disk full?")
            written.append(target)
    return written
