"""The steganalysis figure is of frames that no detector saw, and finds what can be found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="no torch: `make train-test` runs these")
pytest.importorskip("onnx", reason="no onnx: `make train-test` runs these")

import steganalysis  # noqa: E402

pytestmark = pytest.mark.training

ENGINES = Path(steganalysis.__file__).resolve().parents[1]


def pairs(real_frames: np.ndarray, grey: float) -> tuple[dict, dict]:
    """Return 56 covers, the same with noise of so many grey levels, and a split."""
    rng = np.random.default_rng(1)
    covers = np.concatenate([np.roll(real_frames, 16 * i, (1, 2)) for i in range(8)])
    noisy = covers + grey * rng.standard_normal(covers.shape)
    marked = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    places = np.arange(len(covers))
    return ({"covers": covers, "marked": marked},
            {"train": places[:32], "choose": places[32:44], "test": places[44:]})  # fmt: skip


def test_a_crude_mark_is_found(real_frames: np.ndarray) -> None:
    told = steganalysis.blind(*pairs(real_frames, 6.0), epochs=6)
    assert told["accuracy"] > 0.9
    assert told["auc"] > 0.95


def test_what_is_not_there_is_not_found(real_frames: np.ndarray) -> None:
    told = steganalysis.blind(*pairs(real_frames, 0.0), epochs=2)
    assert told["auc"] == 0.5
    assert told["accuracy"] == 0.5


def test_whoever_looks_through_d1_sees_no_mark_in_unmarked_frames(real_frames: np.ndarray) -> None:
    assert steganalysis.informed(*pairs(real_frames, 0.0), ENGINES)["auc"] == 0.5


def test_no_group_is_trained_and_tested_on() -> None:
    groups = np.array([f"patient-{i // 3}" for i in range(300)])
    test = np.arange(300) >= 240
    places = steganalysis.split(groups, test)
    of = {name: set(groups[chosen]) for name, chosen in places.items()}
    assert sum(len(chosen) for chosen in places.values()) == 300
    assert not of["train"] & of["choose"]
    assert not of["test"] & (of["train"] | of["choose"])
    with pytest.raises(SystemExit, match="tested and trained on"):
        steganalysis.split(groups, np.arange(300) >= 241)


def test_the_area_under_the_curve_is_the_chance_to_rank_right() -> None:
    low, high = np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0])
    assert steganalysis.auc(low, high) == pytest.approx((1.5 + 3) / 6)
    assert steganalysis.judged(low, high, 1.0) == {
        "accuracy": pytest.approx((1 / 2 + 2 / 3) / 2, abs=1e-4), "auc": 0.75,
    }  # fmt: skip
