"""What the keys of ``[watermark]`` do to a file that is marked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from dicom_node.cli.main import main

SLICE = Path(__file__).parents[3] / "demo/mr_brain/brain_014.dcm"
Mark = Callable[..., tuple[dict[str, Any], Path]]


@pytest.fixture
def mark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Mark:
    """Return a function that marks the slice: ``line, file = mark(profile="robust")``."""
    conf, made = tmp_path / "node.toml", 0
    keys = f'[keys]\ndirectory = "{tmp_path}/keys"\n[watermark]\nengine = "onnx"\n'

    def marking(**settings: object) -> tuple[dict[str, Any], Path]:
        nonlocal made
        made += 1
        conf.write_text(keys + "".join(f"{k} = {json.dumps(v)}\n" for k, v in settings.items()))
        if made == 1:
            assert main(["keys", "init", "--config", str(conf)]) == 0
        capsys.readouterr()
        out = tmp_path / f"out{made}"
        main(["mark", str(SLICE), "--out", str(out), "--json", "--config", str(conf)])
        return json.loads(capsys.readouterr().out), out / SLICE.name

    return marking


def residual(marked: Path) -> np.ndarray:
    before, after = (pydicom.dcmread(path).pixel_array.astype(int) for path in (SLICE, marked))
    return after - before


def test_the_robust_profile_changes_pixels_more_than_the_diagnostic_one(mark: Mark) -> None:
    diagnostic, first = mark(profile="diagnostic")
    robust, second = mark(profile="robust")
    weak, strong = (np.sqrt(np.mean(residual(path) ** 2)) for path in (first, second))
    assert strong > 1.2 * weak
    assert 1.5 < diagnostic["psnr_db"] - robust["psnr_db"] < 6


def test_image_type_says_derived_only_if_told_to(mark: Mark) -> None:
    for setting, value in (("keep", "ORIGINAL"), ("derived", "DERIVED")):
        _, out = mark(image_type=setting)
        assert pydicom.dcmread(out).ImageType[0] == value


def test_a_frame_above_max_pixels_is_not_decoded(mark: Mark) -> None:
    line, _ = mark(max_pixels=256 * 256)
    assert line["action"] == "marked"
    line, out = mark(max_pixels=256 * 256 - 1)
    assert line["action"] == "sealed"
    assert not residual(out).any()


@pytest.mark.parametrize(
    ("policy", "action", "written"),
    [
        ("forward-sealed", "sealed", True), ("forward-untouched", "untouched", True),
        ("hold", "held", False), ("reject", "rejected", False),
    ],
)  # fmt: skip
def test_on_unmarkable_decides_what_becomes_of_it(
    mark: Mark, policy: str, action: str, written: bool
) -> None:
    line, out = mark(max_pixels=1, on_unmarkable=policy)
    assert (line["action"], out.exists()) == (action, written)
    assert "over the limit of 1" in line["reason"]


def test_derive_gives_a_marked_instance_a_uid_of_its_own(mark: Mark) -> None:
    before = pydicom.dcmread(SLICE).SOPInstanceUID
    for policy, kept in (("keep", True), ("derive", False)):
        _, out = mark(uid_policy=policy)
        assert (pydicom.dcmread(out).SOPInstanceUID == before) is kept
