"""Objects that former models marked: they come off bit for bit, and their messages are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from w1_make import RING, SIDES, original

from dicom_node.inference import open_engine
from dicom_node.inference.catalogue import read_card
from dicom_node.marking import restore
from dicom_node.verify.check import check_instance

MARKED = sorted((Path(__file__).parents[2] / "golden").glob("w1_*.dcm"))


@pytest.fixture(params=MARKED, ids=lambda path: path.stem)
def marked(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_every_model_that_shipped_has_left_its_objects() -> None:
    former = {Path(name).stem for name in read_card().former}
    assert "177153f7" in former
    left = {f"w1_{model}_{size}" for model in former for size in SIDES}
    assert left <= {path.stem for path in MARKED}


def test_what_a_former_model_marked_comes_off_bit_for_bit(marked: Path, tmp_path: Path) -> None:
    outcome = restore(marked, tmp_path / "back.dcm", RING)
    assert outcome.exact, outcome.reason
    before = original(marked.stem.rpartition("_")[2]).pixel_array
    assert not np.array_equal(pydicom.dcmread(marked).pixel_array, before)
    np.testing.assert_array_equal(pydicom.dcmread(tmp_path / "back.dcm").pixel_array, before)


def test_what_a_former_model_marked_is_authentic_and_its_message_is_read(marked: Path) -> None:
    verdict = check_instance(marked, RING, open_engine("onnx"))
    assert verdict.verdict == "authentic"
    assert all(frame.robust.decoded for frame in verdict.frames)
