"""Image quality is what the formulas in the papers say, checked against a second formula."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest

from dicom_node.bench import frames, measures
from dicom_node.instance.display import display_of
from dicom_node.instance.frames import open_instance
from dicom_node.instance.model import StoredFrame
from dicom_node.watermark import quality


def _ssim_by_definition(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004 window by window: weighted moments about the mean, not E[x2] - E[x]2."""
    axis = np.arange(11) - 5
    weights = np.exp(-(axis[:, None] ** 2 + axis[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    total = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            x, y = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mx, my = (weights * x).sum(), (weights * y).sum()
            vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
            vxy = (weights * (x - mx) * (y - my)).sum()
            top = (2 * mx * my + 1e-4) * (2 * vxy + 9e-4)
            total.append(top / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    return float(np.mean(total))


@pytest.mark.parametrize("noise", [0.0, 0.005, 0.1])
def test_ssim_is_the_mean_over_gaussian_windows(noise: float) -> None:
    rng = np.random.default_rng(3)
    a = np.clip(np.add.outer(np.linspace(0, 0.5, 40), np.linspace(0, 0.4, 52)), 0, 1)
    a += 0.05 * rng.random(a.shape)
    b = np.clip(a + noise * rng.standard_normal(a.shape), 0, 1)
    measured = quality.ssim(a.astype(np.float32), b.astype(np.float32))
    assert measured == pytest.approx(_ssim_by_definition(a, b), abs=2e-4)


def test_psnr_of_one_grey_level_everywhere_is_48_13_db() -> None:
    a = np.full((32, 32), 0.5, np.float32)
    assert quality.psnr_db(a, a + np.float32(1 / 255)) == pytest.approx(48.13, abs=0.01)


def test_psnr_of_equal_frames_is_infinite() -> None:
    a = np.full((32, 32), 0.5, np.float32)
    assert quality.psnr_db(a, a) == float("inf")


def test_a_marked_frame_is_compared_in_the_window_of_its_cover(tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(20, 200, (64, 64), np.uint8)
    assert cv2.imwrite(str(tmp_path / "a.png"), values)
    path = frames.wrap_picture(tmp_path / "a.png", tmp_path / "a.dcm")
    ds = pydicom.dcmread(path)
    del ds.WindowCenter, ds.WindowWidth  # so that percentiles decide
    ds.save_as(path)
    with closing(open_instance(path, max_pixels=1 << 20)) as instance:
        display, cover = display_of(instance), instance.frame(0)
        brighter = StoredFrame(cover.values + 10)
        found = measures.quality_of(instance, display, 0, cover, brighter)
    # By its own percentiles the brighter frame would look the same: infinite PSNR.
    assert found.psnr_db == pytest.approx(-20 * np.log10(10 / 180), abs=0.5)
    assert found.largest_change == 10
    assert found.stored_psnr_db == pytest.approx(20 * np.log10(255 / 10), abs=0.01)
