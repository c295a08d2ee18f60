"""Real frames to train on; the scripts of engines/train are imported by name, as they run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

ENGINES = Path(__file__).resolve().parents[3] / "engines"


@pytest.fixture(scope="session")
def real_frames() -> np.ndarray:
    """Real frames of several modalities, ``(frames, 128, 128)`` uint8."""
    frames: np.ndarray = np.load(ENGINES / "check_frames.npy").reshape(-1, 128, 128)
    return frames


@pytest.fixture(scope="session")
def pack(real_frames: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A handful of frames as `pack.py` packs them: five to train on, two to look at."""
    path: Path = tmp_path_factory.mktemp("pack") / "pack.npz"
    big = np.stack([cv2.resize(f, (256, 256), interpolation=cv2.INTER_CUBIC) for f in real_frames])
    groups = np.array([f"group-{i}" for i in range(len(big))])
    np.savez_compressed(path, train=big[2:], weight=np.ones(len(big) - 2), train_g=groups[2:],
                        test=big[:2], test_g=groups[:2])  # fmt: skip
    return path


@pytest.fixture
def differences() -> Callable[[Any, Any], list[str]]:
    """Where two checkpoints are not the same, bit for bit."""
    import torch

    def compare(a: Any, b: Any, where: str = "") -> list[str]:
        if isinstance(a, torch.Tensor):
            return [] if torch.equal(a, b) else [where]
        if isinstance(a, dict):
            assert a.keys() == b.keys(), where
            return [d for k in a for d in compare(a[k], b[k], f"{where}.{k}")]
        if isinstance(a, (list, tuple)):
            assert len(a) == len(b), where
            pairs = enumerate(zip(a, b, strict=True))
            return [d for i, (x, y) in pairs for d in compare(x, y, f"{where}.{i}")]
        return [] if a == b else [where]

    return compare
