"""Two files of one instance: how visible a change is, and whether there is any."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicom_node.demo.children import StepFailed
from dicom_node.demo.samples import MAX_PIXELS
from dicom_node.instance.display import Display, display_of
from dicom_node.instance.frames import Instance, open_instance
from dicom_node.instance.model import StoredFrame


@dataclass(frozen=True)
class Comparison:
    """A marked instance beside its original.

    Attributes
    ----------
    psnr_db
        Of the worst frame; the peak is the display window.
    original, marked
        Frame 1 as a viewer shows it, uint8, ``(rows, columns)`` or RGB ``(rows, columns, 3)``.
    change
        Of frame 1, float32, same shape; 1 = from black to white.
    """

    psnr_db: float
    original: NDArray[np.uint8]
    marked: NDArray[np.uint8]
    change: NDArray[np.float32]


def compare(original: Path, marked: Path) -> Comparison:
    """Compare every frame of two files (StepFailed if their shapes differ)."""
    worst = float("inf")
    first: tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]] | None = None
    with _both(original, marked) as (source, result):
        display, other = display_of(source), display_of(result)
        for index, (before, after) in enumerate(_pairs(source, result)):
            shown = display.export_8bit(before, index)
            change = _shown_change(source, display, index, before, after)
            error = float(np.mean(np.square(change, dtype=np.float64)))
            worst = min(worst, -10 * float(np.log10(error)) if error else float("inf"))
            first = first or (shown, other.export_8bit(after, index), change)
    if first is None:
        raise StepFailed(f"{original.name} has no frame")
    return Comparison(worst, *first)


def require_equal(original: Path, restored: Path) -> int:
    """Return how many samples were compared; StepFailed at the first frame that differs."""
    samples = 0
    with _both(original, restored) as (a, b):
        for index, (before, after) in enumerate(_pairs(a, b)):
            if not np.array_equal(before.values, after.values):
                raise StepFailed(f"{original.name}: frame {index + 1} differs after restoration")
            samples += before.values.size
    return samples


def _shown_change(
    instance: Instance, display: Display, index: int, before: StoredFrame, after: StoredFrame
) -> NDArray[np.float32]:
    """Return by how much display values differ in the window `before` was just shown in.

    Showing `after` by itself would not do: where the header names no window, each frame has its
    own percentiles. Clipping is left out, so that no viewer shows a larger change than this.
    """
    difference = (after.values - before.values).astype(np.float32)
    if instance.samples == 3:
        return difference / np.float32(instance.high)
    return difference / np.float32(256 * display.step(index))


@contextmanager
def _both(original: Path, other: Path) -> Iterator[tuple[Instance, Instance]]:
    with ExitStack() as stack:
        a, b = (
            stack.enter_context(closing(open_instance(path, max_pixels=MAX_PIXELS)))
            for path in (original, other)
        )
        if a.frame_count != b.frame_count or a.form.shape != b.form.shape:
            raise StepFailed(f"{original.name} came back in another shape")
        yield a, b


def _pairs(a: Instance, b: Instance) -> Iterator[tuple[StoredFrame, StoredFrame]]:
    return zip(a.frames(), b.frames(), strict=True)
