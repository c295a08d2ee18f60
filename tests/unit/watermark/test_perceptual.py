"""The perceptual hash is imagehash's, bit for bit, whoever computes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import imagehash
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dicom_node.watermark.perceptual import perceptual_hash


def as_imagehash_says(picture: np.ndarray) -> bytes:
    return np.packbits(imagehash.phash(Image.fromarray(picture)).hash.reshape(-1)).tobytes()


def ours(picture: np.ndarray) -> bytes:
    return perceptual_hash((picture / 255).astype(np.float32))


def test_of_real_frames(shared: Path) -> None:
    names = sorted((shared / "whole" / "val").rglob("*.webp"))[::3]
    assert len(names) > 20
    for name in names:
        picture = cv2.resize(cv2.imread(str(name), cv2.IMREAD_GRAYSCALE), (128, 128))
        assert ours(picture) == as_imagehash_says(picture), name


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((64, 64), np.uint8),
        np.full((64, 48), 77, np.uint8),
        np.tile(np.arange(64, dtype=np.uint8), (64, 1)),
        np.pad(np.full((32, 32), 200, np.uint8), 16),
        np.kron(np.indices((8, 8)).sum(0) % 2, np.ones((8, 8))).astype(np.uint8) * 255,
    ],
    ids=["black", "grey", "ramp", "square", "chessboard"],
)
def test_where_rounding_decides_bits(picture: np.ndarray) -> None:
    assert ours(picture) == as_imagehash_says(picture)


@given(st.integers(0, 2**32), st.integers(1, 5), st.sampled_from([2, 8, 32, 100]))
def test_of_any_picture(seed: int, levels: int, side: int) -> None:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, levels + 1, (side, side)) * (255 // levels)
    picture = cv2.resize(coarse.astype(np.uint8), (100, 100), interpolation=cv2.INTER_NEAREST)
    assert ours(picture) == as_imagehash_says(picture)


def test_a_hash_and_the_compiled_loops_load_no_scipy() -> None:
    script = """if True:
        import sys
        import numpy as np
        from dicom_node.watermark import kernels
        from dicom_node.watermark.integrity import frame_digest
        from dicom_node.watermark.perceptual import perceptual_hash
        picture = np.random.default_rng(0).random((64, 64), np.float32)
        perceptual_hash(picture)
        frame_digest((picture * 255).astype(np.int32), None)
        assert "dicom_node.compiled" in sys.modules
        print(sorted(name for name in sys.modules if name in ("scipy.linalg", "scipy.fftpack")))
    """
    told = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert told.strip() == "[]"
