"""What the node's dependencies suffice for: packing frames, marking them, comparing models."""

from __future__ import annotations

import sys
from pathlib import Path

import compare_engines
import cv2
import frames
import mark_frames
import numpy as np
import pack as packing
import pytest
import small_pictures
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


def run_mark_frames(out: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> dict:
    monkeypatch.setattr(sys, "argv", ["mark_frames.py", "--out", str(out), *options])
    mark_frames.main()
    with np.load(out) as data:
        return dict(data)


def test_training_pictures_are_marked_at_every_strength_and_read(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run_mark_frames(tmp_path / "marked.npz", monkeypatch, "--pack", str(pack))
    assert 20 <= len(made["pictures"]) <= 25  # five a frame, less what cannot carry
    assert made["pictures"].shape[1:] == (256, 256)
    assert made["psnr_db"].min() < 42.5
    assert made["psnr_db"].max() > 47
    assert (np.sign(soft_bits(made["pictures"])) == made["words"]).mean() > 0.93


@pytest.mark.parametrize("psnr_db", mark_frames.STRENGTHS_DB)
def test_a_frame_is_marked_as_strongly_as_is_asked_for(pack: Path, psnr_db: float) -> None:
    watermark = mark_frames.RobustWatermark(mark_frames.open_engine("onnx"))
    for frame in frames.read_pack(pack).val:
        key = mark_frames.Key(b"k" * 32)
        mark = mark_frames.mark_at(watermark, frame.astype(np.int32), key, psnr_db)
        mse = np.mean((mark.marked.astype(float) - frame) ** 2)
        assert abs(10 * np.log10(255**2 / mse) - psnr_db) < 1


def test_pictures_to_look_at_are_unaugmented_and_marked_at_one_strength(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run_mark_frames(tmp_path / "test.npz", monkeypatch, "--pack", str(pack), "--test")
    val = frames.read_pack(pack).val
    assert made["pictures"].shape == val.shape
    assert (made["psnr_db"] == mark_frames.LOOKED_AT_DB).all()
    mse = np.mean((made["pictures"].astype(float) - val) ** 2, (1, 2))
    assert (np.abs(10 * np.log10(255**2 / mse) - 44.5) < 1).all()
    assert (np.sign(soft_bits(made["pictures"])) == made["words"]).mean() > 0.93


def test_small_pictures_are_marked_folded_at_sizes_of_their_own(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run_mark_frames(tmp_path / "small.npz", monkeypatch, "--pack", str(pack), "--small")
    assert len(set(made["sides"])) > 2
    assert set(made["sides"]) <= set(mark_frames.SMALL_SIDES)
    engine, right = mark_frames.open_engine("onnx"), []
    look = mark_frames.RobustWatermark(engine, folds=mark_frames.FOLDS).look_closely
    for picture, side, word in zip(made["pictures"], made["sides"], made["words"], strict=True):
        assert not picture[side:].any()
        assert not picture[:, side:].any()
        shown = (picture[:side, :side] / 255).astype(np.float32)
        right.append(np.mean(np.sign(look(shown, mark_frames.FOLDS)[0]) == word))
    assert np.mean(right) > 0.8


@pytest.mark.parametrize("side", [64, 96])
def test_a_small_frame_is_cut_out_of_a_picture_where_it_was_turned_to(
    real_frames: np.ndarray, side: int
) -> None:
    rng = np.random.default_rng(3)
    for frame in real_frames[:4]:
        frame = cv2.GaussianBlur(cv2.resize(frame, (side, side)), (0, 0), 1.5)
        there = small_pictures.turning(frame.shape, rng)
        moved = cv2.warpAffine(frame, there[:2], frame.shape, flags=cv2.INTER_LINEAR)
        shown = cv2.warpAffine(np.ones(frame.shape, np.float32), there[:2], frame.shape)
        seen = small_pictures.cut_out(moved, there, 2 * side)
        inside = small_pictures.cut_out(255 * shown, there, 2 * side) > 0.999
        wanted = frames.seen(frame, 2 * side)
        assert inside.mean() > 0.2
        assert np.abs(seen - wanted)[inside].mean() < 0.01


def test_pictures_of_small_frames_are_drawn_alike_with_the_same_seed(
    real_frames: np.ndarray
) -> None:
    small = cv2.resize(real_frames[0], (64, 64), interpolation=cv2.INTER_AREA)
    once, again = (
        [small_pictures.drawn(small, rng, 128) for _ in range(12)]
        for rng in (np.random.default_rng(4), np.random.default_rng(4))
    )
    np.testing.assert_array_equal(once, again)
    for picture in once:
        assert (picture.shape, picture.dtype) == ((128, 128), np.float32)
        assert picture.min() >= 0
        assert picture.max() <= 1
    assert len({picture.tobytes() for picture in once}) == len(once)


def soft_bits(pictures: np.ndarray) -> np.ndarray:
    """Return D1's soft bits of 8-bit pictures."""
    seen = np.stack([frames.seen(p) for p in pictures])[:, None]
    return mark_frames.open_engine("onnx").decode(seen)
