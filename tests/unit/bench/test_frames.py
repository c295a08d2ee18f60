"""The test set holds nothing twice and nothing that the networks were trained on."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest

from dicom_node.bench import frames
from dicom_node.errors import ConfigError
from dicom_node.instance.display import display_of
from dicom_node.instance.frames import open_instance


def _picture(path: Path, seed: int, *, colour: bool = False, side: int = 64) -> Path:
    shape = (side, side, 3) if colour else (side, side)
    values = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    assert cv2.imwrite(str(path), values)
    return path


@pytest.mark.parametrize("colour", [False, True])
def test_a_wrapped_picture_is_shown_as_it_was(tmp_path: Path, colour: bool) -> None:
    path = _picture(tmp_path / "a.png", 1, colour=colour)
    wrapped = frames.wrap_picture(path, tmp_path / "a.dcm")
    read = cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1]
    with closing(open_instance(wrapped, max_pixels=1 << 20)) as instance:
        shown = display_of(instance).export_8bit(instance.frame(0), 0)
    np.testing.assert_array_equal(shown, read if colour else read[..., 0])


def test_the_same_pixels_are_measured_once(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png", 1)
    _picture(tmp_path / "b.png", 1)
    _picture(tmp_path / "c.png", 2)
    assert [s.path.name for s in frames.select([tmp_path], limit=None)] == ["a.png", "c.png"]


def test_a_frame_too_small_for_the_robust_mark_is_left_out(tmp_path: Path) -> None:
    _picture(tmp_path / "small.png", 1, side=40)
    with pytest.raises(ConfigError, match="no frame of at least 48"):
        frames.select([tmp_path], limit=None)


def test_a_limit_takes_frames_from_all_over_a_modality(tmp_path: Path) -> None:
    for number in range(9):
        _picture(tmp_path / f"{number}.png", number)
    names = [s.path.stem for s in frames.select([tmp_path], limit=3)]
    assert names == ["0", "4", "8"]


def test_no_group_of_the_test_set_was_trained_on(shared: Path) -> None:
    """Training took whole/train without `held_out`; groups of dicom/ have other names there."""
    samples = frames.select([shared], limit=4)
    modalities = {sample.modality for sample in samples}
    assert len(modalities & {"CT", "MR", "CR", "DX", "MG", "US", "XA", "PT", "OP"}) >= 6
    trained = {"A002304", "A056642", "A058062", "A072894", "99000", "Anonimo", "10RG2", "11RG3",
               "8NM1", "021234567", "5MR2", "123565", "2178309"}  # fmt: skip
    used = {sample.group.rpartition(":")[2] for sample in samples}
    assert not used & trained
    assert not any("whole/train" in str(s.path) and s.group not in _held_out() for s in samples)


def _held_out() -> set[str]:
    return set(frames._rules()["pictures"]["held_out"])


def test_pictures_of_the_test_set_are_held_out_of_training() -> None:
    file = Path(__file__).resolve().parents[3] / "engines" / "train" / "held_out.txt"
    assert _held_out() <= set(file.read_text("utf-8").split())
