"""What the node's dependencies suffice for: packing frames, marking them, comparing models."""

from __future__ import annotations

import sys
from pathlib import Path

import compare_engines
import frames
import numpy as np
import pack as packing
import pytest
import steganalysis_pairs
from suite import suite

ENGINES = Path(packing.__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_training_set_fits_64_mib_and_no_group_is_on_both_sides(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "pack.npz"
    monkeypatch.setattr(sys, "argv", ["pack.py", "--data", str(shared), "--out", str(out)])
    packing.main()
    assert out.stat().st_size < 64 << 20
    with np.load(out) as data:
        assert not set(data["train_g"]) & set(data["test_g"])
        assert len(data["train"]) == len(data["train_g"]) == len(data["weight"]) > 1000
    read = frames.read_pack(out)
    assert read.train.shape[1:] == read.val.shape[1:] == (256, 256)
    assert read.weight.sum() == pytest.approx(1)


def test_a_training_set_that_is_too_large_is_an_error(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "MOST_BYTES", 1000)
    monkeypatch.setattr(packing, "read", lambda _: np.zeros((256, 256), np.uint8))
    command = ["pack.py", "--data", str(shared), "--out", str(tmp_path / "pack.npz")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="are wanted"):
        packing.main()


def test_augmented_frames_are_frames_of_the_same_kind(real_frames: np.ndarray) -> None:
    frame = np.repeat(np.repeat(real_frames[1], 2, 0), 2, 1)
    twice = [frames.augment(frame, np.random.default_rng(3)) for _ in range(2)]
    np.testing.assert_array_equal(*twice)
    rng = np.random.default_rng(3)
    made = [frames.augment(frame, rng) for _ in range(20)]
    assert {(m.shape, m.dtype) for m in made} == {((256, 256), np.dtype(np.uint8))}
    assert len({m.tobytes() for m in made}) == 20


def test_models_are_compared_at_the_same_strength(pack: Path) -> None:
    val = frames.read_pack(pack).val
    at_44 = compare_engines.figures(ENGINES, val, 44.0)
    as_chosen = compare_engines.figures(ENGINES, val, None)
    assert at_44["marked"] == len(val)
    assert 43.5 < at_44["psnr_db"] < 46  # less where only part of a frame can carry
    assert as_chosen["psnr_db"] != at_44["psnr_db"]
    assert list(at_44["attacks"]) == list(suite(np.random.default_rng(0)))
    assert at_44["attacks"]["plain"][1] > 0.95
    assert at_44 == compare_engines.figures(ENGINES, val, 44.0)


def test_pairs_for_steganalysis_are_marked_frames_and_their_covers(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "pairs.npz"
    command = ["steganalysis_pairs.py", "--pack", str(pack), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    steganalysis_pairs.main()
    with np.load(out) as pairs:
        apart = pairs["marked"].astype(int) - pairs["covers"]
        assert (np.abs(apart).max((1, 2)) > 0).all()
        assert (np.mean(apart**2, (1, 2)) < 255**2 / 10**4).all()  # 40 dB and more
        assert pairs["test"].sum() == 2
        assert not set(pairs["groups"][pairs["test"]]) & set(pairs["groups"][~pairs["test"]])
