"""The pictures of a report: frames as a viewer shows them, and the lines round what changed."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import PixelError
from dicom_node.instance.display import display_of
from dicom_node.instance.frames import open_instance
from dicom_node.verify.check import MAX_PIXELS
from dicom_node.verify.verdict import FrameVerdict
from dicom_node.watermark.box import Box

Segment = tuple[int, int, int, int]  # column, row, column, row: corners of pixels
_JPEG_QUALITY = 85


@dataclass(frozen=True)
class Picture:
    """One frame.

    Attributes
    ----------
    frame
        Counted from 1.
    rows, columns
        Of the frame; `outline` and `boxes` are in its pixels, whatever size the picture has.
    jpeg
        The picture, scaled down to what a page needs.
    outline
        Lines round the changed regions, touching ones taken together.
    boxes
        The changed regions themselves.
    """

    frame: int
    rows: int
    columns: int
    jpeg: bytes
    outline: tuple[Segment, ...] = ()
    boxes: tuple[Box, ...] = ()

    @property
    def data_uri(self) -> str:
        """The picture as a page carries it within itself."""
        return "data:image/jpeg;base64," + base64.b64encode(self.jpeg).decode("ascii")

    @property
    def path(self) -> str:
        """The outline as an SVG path."""
        return "".join(f"M{x0} {y0}L{x1} {y1}" for x0, y0, x1, y1 in self.outline)

    @property
    def places(self) -> tuple[str, ...]:
        """The changed regions in words."""
        return tuple(
            f"rows {box.row}\u2013{box.row + box.rows - 1},"
            f" columns {box.column}\u2013{box.column + box.columns - 1}"
            for box in self.boxes
        )


def pictures_of(path: Path, frames: Sequence[FrameVerdict], longest_px: int) -> list[Picture]:
    """Return a picture of each of some frames of an instance.

    Parameters
    ----------
    frames
        Their verdicts.
    longest_px
        Longer side of a picture; larger frames are scaled down.

    Raises
    ------
    PixelError
        The instance cannot be read (any more).
    """
    made = []
    with closing(open_instance(path, max_pixels=MAX_PIXELS)) as instance:
        display = display_of(instance)
        for said in frames:
            index = said.frame - 1
            shown = display.export_8bit(instance.frame(index), index)
            boxes = tuple(said.tampered)
            made.append(
                Picture(
                    said.frame, shown.shape[0], shown.shape[1], _jpeg(shown, longest_px, path),
                    outline(boxes), boxes,
                )
            )  # fmt: skip
    return made


def outline(boxes: Iterable[Box]) -> tuple[Segment, ...]:
    """Return the lines round the union of some boxes, straight runs in one piece each."""
    boxes = [Box(*map(int, box)) for box in boxes]
    if not boxes:
        return ()
    ys = sorted({y for box in boxes for y in (box.row, box.row + box.rows)})
    xs = sorted({x for box in boxes for x in (box.column, box.column + box.columns)})
    # A border of nothing all round: what differs from its neighbour is an edge.
    inside = np.zeros((len(ys) + 1, len(xs) + 1), np.bool_)
    for box in boxes:
        top, bottom = ys.index(box.row), ys.index(box.row + box.rows)
        left, right = xs.index(box.column), xs.index(box.column + box.columns)
        inside[top + 1 : bottom + 1, left + 1 : right + 1] = True
    found: list[Segment] = []
    level = inside[1:, :] != inside[:-1, :]
    for row, y in enumerate(ys):
        found += [(x0, y, x1, y) for x0, x1 in _runs(level[row, 1:-1], xs)]
    upright = inside[:, 1:] != inside[:, :-1]
    for column, x in enumerate(xs):
        found += [(x, y0, x, y1) for y0, y1 in _runs(upright[1:-1, column], ys)]
    return tuple(found)


def _runs(edges: NDArray[np.bool_], places: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Yield where runs of edges begin and end; edge i lies between places i and i + 1."""
    start: int | None = None
    for i, edge in enumerate([*edges.tolist(), False]):
        if edge and start is None:
            start = places[i]
        elif not edge and start is not None:
            yield start, places[i]
            start = None


def _jpeg(grey_or_rgb: NDArray[np.uint8], longest_px: int, path: Path) -> bytes:
    factor = longest_px / max(grey_or_rgb.shape[:2])
    small: NDArray[np.uint8] = grey_or_rgb
    if factor < 1:
        rows, columns = (max(1, round(side * factor)) for side in grey_or_rgb.shape[:2])
        small = np.asarray(
            cv2.resize(grey_or_rgb, (columns, rows), interpolation=cv2.INTER_AREA), np.uint8
        )
    if small.ndim == 3:
        small = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2BGR), np.uint8)
    done, coded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not done:
        raise PixelError(f"{path}: no picture can be made of this frame")
    return bytes(coded)
