"""W1 on real frames: what it promises of any picture of a marked frame."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from robust_key import Key

from dicom_node.errors import WatermarkError
from dicom_node.inference import open_engine
from dicom_node.watermark import choosing, expecting, perceptual, quality, words
from dicom_node.watermark.assured import SPARE_OF_D1, must_be_recognised
from dicom_node.watermark.choosing import (
    BLUR_SIGMA_PX,
    HARDLY,
    NOISE_DB,
    READS,
    Chooser,
    is_smooth,
)
from dicom_node.watermark.robust import DIHEDRAL, Pose, RobustWatermark, code_word, remove


@pytest.fixture(scope="module")
def watermark() -> RobustWatermark:
    return RobustWatermark(open_engine("onnx"))


@pytest.fixture(scope="module")
def frames(shared: Path) -> list[np.ndarray]:
    """Ten whole frames of the validation split, 256 x 256, 8 bit."""
    names = sorted((shared / "whole" / "val").rglob("*.webp"))
    chosen = names[:: max(1, len(names) // 10)][:10]
    return [cv2.imread(str(name), cv2.IMREAD_GRAYSCALE) for name in chosen]


def _display(frame: np.ndarray) -> np.ndarray:
    return (frame / 255).astype(np.float32)


def _embed(watermark: RobustWatermark, frame: np.ndarray, key: Key) -> object:
    return watermark.embed(frame.astype(np.int32), _display(frame), step=1.0, low=0, high=255,
                           padding=None, key=key)  # fmt: skip


def _recovered(
    watermark: RobustWatermark, frames: list[np.ndarray], attack: Callable[[np.ndarray], np.ndarray]
) -> int:
    key, count = Key(b"k"), 0
    for frame in frames:
        mark = _embed(watermark, frame, key)
        picture = attack(mark.marked.astype(np.uint8))
        found = watermark.detect(_display(picture), [key], dihedral=True, weak=True)
        count += found.decoded and found.message == mark.message
    return count


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(lambda p: p, id="plain 8-bit export"),
        pytest.param(lambda p: cv2.imdecode(cv2.imencode(".jpg", p, [1, 70])[1], 0), id="JPEG 70"),
        pytest.param(lambda p: cv2.medianBlur(p, 3), id="3x3 median"),
        pytest.param(
            lambda p: cv2.resize(p, None, fx=0.5, fy=0.5, interpolation=3), id="half size"
        ),
        pytest.param(lambda p: np.rot90(p).copy(), id="quarter turn"),
        pytest.param(lambda p: p[:, ::-1].copy(), id="mirrored"),
    ],
)
def test_the_message_survives(
    watermark: RobustWatermark, frames: list[np.ndarray], attack: Callable[[np.ndarray], np.ndarray]
) -> None:
    assert _recovered(watermark, frames, attack) >= len(frames) - 1


def test_a_marked_frame_stays_above_forty_decibels(
    watermark: RobustWatermark, frames: list[np.ndarray]
) -> None:
    for frame in frames:
        mark = _embed(watermark, frame, Key(b"k"))
        assert quality.psnr_db(_display(frame), _display(mark.marked)) >= 40.0


def test_the_agreement_foretold_is_the_agreement_there_is(
    watermark: RobustWatermark, frames: list[np.ndarray]
) -> None:
    """The strength is computed from two pictures; a third, of the result, has to agree."""
    key, reached = Key(b"k"), 0
    for frame in frames:
        mark = _embed(watermark, frame, key)
        small = watermark.resample(_display(mark.marked))
        blurred = cv2.GaussianBlur(small, (0, 0), BLUR_SIGMA_PX * len(small) / len(frame))
        soft = watermark.engine.decode(blurred[None, None])[0] * code_word(mark.message, key)
        assert soft.mean() / np.sqrt(np.mean(soft**2)) == pytest.approx(mark.reads, abs=0.06)
        reached += mark.reads >= READS
    assert reached >= len(frames) - 2


def test_what_must_be_recognised_is_read(
    watermark: RobustWatermark, frames: list[np.ndarray]
) -> None:
    """The worker is spared R2 where D1 alone leaves no doubt."""
    key, sure = Key(b"k"), 0
    for frame in frames:
        mark = watermark.embed(frame.astype(np.int32), _display(frame), step=1.0, low=0, high=255,
                               padding=None, key=key, largest=5)  # fmt: skip
        picture = _display(mark.marked)
        soft = watermark.engine.decode(watermark.resample(picture)[None, None])[0]
        rank = expecting.rank_of(mark.message[:8], picture)
        if must_be_recognised(soft, mark.message, key, rank, spare=SPARE_OF_D1):
            sure += 1
            assert watermark.detect(picture, [key], weak=True).message == mark.message
    assert sure >= len(frames) // 2


def test_a_frame_is_not_marked_more_strongly_than_it_takes(
    watermark: RobustWatermark, frames: list[np.ndarray]
) -> None:
    """More than `NOISE_DB` is given only to what does not read through a blur otherwise."""
    for frame in frames:
        mark = _embed(watermark, frame, Key(b"k"))
        psnr_db = -10 * np.log10(mark.mse)
        assert psnr_db >= NOISE_DB - 0.15 or mark.reads < READS + 0.02


def test_a_bound_on_the_largest_change_is_kept(
    watermark: RobustWatermark, frames: list[np.ndarray]
) -> None:
    key, read = Key(b"k"), 0
    for frame in frames:
        mark = watermark.embed(frame.astype(np.int32) * 16, _display(frame), step=16.0, low=0,
                               high=4095, padding=None, key=key, largest=73)  # fmt: skip
        assert np.abs(mark.marked - frame.astype(np.int32) * 16).max() <= 73
        read += watermark.detect(_display(mark.marked / 16), [key], weak=True).decoded
    assert read >= len(frames) - 1


def test_a_smooth_frame_gets_less_for_the_sake_of_noise(
    watermark: RobustWatermark, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, key, weaker = np.random.default_rng(5), Key(b"k"), 0
    for frame in frames:
        smooth = cv2.GaussianBlur(frame, (0, 0), 5)
        noisy = np.clip(smooth + rng.normal(0, 6, frame.shape), 0, 255).astype(np.uint8)
        assert is_smooth(watermark.resample(_display(smooth)))
        assert not is_smooth(watermark.resample(_display(noisy)))
        as_it_is = _embed(watermark, smooth, key)
        monkeypatch.setattr(choosing, "NOISE_SMOOTH_DB", NOISE_DB)
        weaker += as_it_is.mse < 0.9 * _embed(watermark, smooth, key).mse
        monkeypatch.undo()
    assert weaker >= 1


def _through_a_narrower_window(watermark: RobustWatermark, mark: Any) -> float:
    """Return how well D1 sees a mark once 0.6 of the window fill all of it, as a cosine."""
    narrow = np.clip((_display(mark.marked) - 0.2) / 0.6, 0, 1).astype(np.float32)
    word = code_word(mark.message, Key(b"k"))
    soft = watermark.look(narrow)[0]
    return float(soft @ word) / float(np.linalg.norm(soft) * np.linalg.norm(word))


def test_a_bright_frame_gets_more_where_a_narrower_window_would_leave_too_little(
    watermark: RobustWatermark, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    stronger, gained = 0, []
    for frame in frames:
        bright = np.rint(200 + 0.22 * frame).astype(np.uint8)
        mark = _embed(watermark, bright, Key(b"k"))
        monkeypatch.setattr(choosing, "NARROWED", -1.0)
        before = _embed(watermark, bright, Key(b"k"))
        monkeypatch.undo()
        assert mark.mse >= before.mse
        if mark.mse > 1.05 * before.mse:
            stronger += 1
            assert mark.mse <= 10 ** (-choosing.NARROWED_DB / 10) * 1.05
            gained.append(_through_a_narrower_window(watermark, mark)
                          - _through_a_narrower_window(watermark, before))  # fmt: skip
    assert 1 <= stronger < len(frames)
    assert min(gained) > 0.02


def test_what_no_strength_would_bring_through_a_narrower_window_gets_no_more(
    watermark: RobustWatermark, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearly black and nearly white, as a scanned form: beyond 0.8 and below 0.2 all of it."""
    for frame in frames[:4]:
        form = np.where(frame > np.median(frame), 225, 30).astype(np.uint8)
        mark = _embed(watermark, form, Key(b"k"))
        monkeypatch.setattr(choosing, "NARROWED", -1.0)
        assert mark.mse == _embed(watermark, form, Key(b"k")).mse
        monkeypatch.undo()
        assert _through_a_narrower_window(watermark, mark) < choosing.HOPELESS


def test_a_narrower_window_is_looked_through_only_where_strength_is_left_to_choose_from(
    watermark: RobustWatermark, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is bound to two stored values mostly has one strength, whatever it is given."""
    looks: list[np.ndarray] = []
    narrowed = Chooser._narrowed
    monkeypatch.setattr(Chooser, "_narrowed", lambda self, cover, choice, rms: (
        looks.append(rms) or narrowed(self, cover, choice, rms)))  # fmt: skip
    for frame in frames:
        _embed(watermark, frame, Key(b"k"))
    free = len(looks)
    for frame in frames:
        watermark.embed(frame.astype(np.int32), _display(frame), step=1.0, low=0, high=255,
                        padding=None, key=Key(b"k"), largest=2)  # fmt: skip
    assert free > len(frames) // 2
    assert len(looks) - free < len(frames) // 2
    assert all(rms[0] < rms[-1] for rms in looks)


def test_a_frame_that_no_strength_carries_through_a_blur_is_marked_to_be_read_as_it_is(
    watermark: RobustWatermark, frames: list[np.ndarray]
) -> None:
    small = [cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA) for frame in frames]
    marks = [_embed(watermark, frame, Key(b"k")) for frame in small]
    blurred = [cv2.GaussianBlur(m.marked.astype(np.uint8), (7, 7), 0) for m in marks]
    hopeless = [not watermark.detect(_display(b), [Key(b"k")], weak=True).decoded for b in blurred]
    assert sum(hopeless) >= len(small) // 2
    read = 0
    for mark, is_hopeless in zip(marks, hopeless, strict=True):
        found = watermark.detect(_display(mark.marked), [Key(b"k")], weak=True)
        read += is_hopeless and found.message == mark.message
        assert mark.reads >= HARDLY or not is_hopeless
    assert read >= 0.9 * sum(hopeless)


def test_a_small_frame_takes_the_way_of_whitening_that_is_nearest_to_it(
    watermark: RobustWatermark, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA) for frame in frames]
    folded, key = RobustWatermark(watermark.engine, "robust", second=True, folds=2), Key(b"k")

    def agreement() -> float:
        agreed = []
        for frame in small:
            mark = _embed(folded, frame, key)
            code = cv2.imencode(".jpg", mark.marked, [cv2.IMWRITE_JPEG_QUALITY, 70])[1]
            shown = _display(cv2.imdecode(code, cv2.IMREAD_GRAYSCALE))
            word, folds = watermark.word_in(_display(mark.marked), mark.message, key)
            assert folds == 2
            soft = watermark.look_closely(shown, folds)[0]
            agreed.append(float(soft @ word) / (np.linalg.norm(soft) * 160**0.5))
        return float(np.mean(agreed))

    nearest = agreement()
    monkeypatch.setattr(words, "WAYS", 1)
    assert nearest > agreement() + 0.02


def test_a_larger_picture_is_read_folded_only_where_it_may_be_a_small_frame_enlarged(
    watermark: RobustWatermark, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading as a small frame is read, in 16 ways, takes longer than reading it as it is."""
    closer, looked, key = watermark._closer, list[int](), Key(b"k")

    def counted(*them: Any) -> Any:
        looked.append(them[4])
        return closer(*them)

    monkeypatch.setattr(watermark, "_closer", counted)
    folded = RobustWatermark(watermark.engine, "robust", second=True, folds=2)
    foreign = enlarged = 0
    for frame in frames[::2]:
        small = cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA)
        mark = _embed(folded, small, key)
        larger = cv2.resize(_display(mark.marked), (160, 160), interpolation=cv2.INTER_LINEAR)
        found = watermark.detect(larger, [key], dihedral=True, weak=True)
        enlarged += found.message == mark.message
        looked.clear()
        crop = np.ascontiguousarray(_display(frame)[:181, :181])
        assert not watermark.detect(crop, [key], dihedral=True, weak=True).decoded
        assert 1 in looked
        foreign += 2 in looked
    assert enlarged >= 4
    assert foreign <= 1
    looked.clear()
    remembered = np.zeros((1, 8), np.uint8)
    assert not watermark.detect(crop, [key], dihedral=True, weak=True, known=remembered).decoded
    assert 2 in looked, "its own hash need not be that of what is remembered"


def test_the_frame_comes_back_bit_for_bit_without_any_network(
    watermark: RobustWatermark, frames: list[np.ndarray]
) -> None:
    engine = watermark.engine
    for frame in frames:
        mark = _embed(watermark, frame, Key(b"k"))
        assert mark.record is not None
        again = type(mark.record).from_bytes(mark.record.to_bytes())
        back = remove(mark.marked, again, engine.patterns, engine.model_id, 0, 255, None)
        np.testing.assert_array_equal(back, frame)


def test_another_key_reads_nothing(watermark: RobustWatermark, frames: list[np.ndarray]) -> None:
    mark = _embed(watermark, frames[0], Key(b"k"))
    picture = _display(mark.marked)
    assert not watermark.detect(picture, [Key(b"x")], dihedral=True).decoded
    assert not watermark.detect(picture, [Key(b"k", "OTHER")], dihedral=True).decoded


def test_a_noisy_turned_picture_is_recognised_in_its_pose(
    watermark: RobustWatermark, frames: list[np.ndarray]
) -> None:
    key, rng, found = Key(b"k"), np.random.default_rng(7), []
    for frame in frames[:4]:
        mark = _embed(watermark, frame, key)
        noise = 255 * np.sqrt(0.003) * rng.standard_normal(frame.shape)
        noisy = np.clip(np.rint(mark.marked + noise), 0, 255)
        picture = np.ascontiguousarray(np.rot90(_display(noisy))[:, ::-1])
        assert not watermark.detect(picture, [key], weak=True).decoded
        read = watermark.detect(picture, [key], dihedral=True, weak=True)
        found.append(read.message == mark.message and read.pose.flip)
    assert sum(found) >= 3


def test_three_poses_looked_at_closely_read_what_all_seven_do(
    watermark: RobustWatermark, frames: list[np.ndarray]
) -> None:
    key, few, all_of_them = Key(b"k"), 0, 0
    for number, frame in enumerate(frames):
        mark = _embed(watermark, frame, key)
        pose = DIHEDRAL[number % len(DIHEDRAL)]
        turned = np.rot90(mark.marked.astype(np.uint8), round(pose.rotation_deg / 90))
        turned = np.ascontiguousarray(turned[:, ::-1] if pose.flip else turned)
        _, coded = cv2.imencode(".jpg", turned, [cv2.IMWRITE_JPEG_QUALITY, 30])
        picture = _display(cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE))
        few += watermark.detect(
            picture, [key], dihedral=True, weak=True, turned=3
        ).message == mark.message  # fmt: skip
        all_of_them += watermark.detect(
            picture, [key], dihedral=True, weak=True
        ).message == mark.message  # fmt: skip
    assert all_of_them >= 8
    assert few >= all_of_them - 1


def test_a_weak_upright_mark_is_read_after_one_glance_at_another_pose(
    watermark: RobustWatermark, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A glance at each of the seven others takes half as long as the close look that reads it."""
    key, rng, glances, look = Key(b"k"), np.random.default_rng(7), list[int](), watermark.look

    def counted(display: np.ndarray, folds: int, poses: list[Pose]) -> np.ndarray:
        glances.append(len(poses))
        return look(display, folds, poses)

    within = []
    for frame in frames:
        mark = _embed(watermark, frame, key)
        noise = 255 * np.sqrt(0.004) * rng.standard_normal(frame.shape)
        picture = _display(np.clip(np.rint(mark.marked + noise), 0, 255))
        with monkeypatch.context() as patched:
            patched.setattr(watermark, "look", counted)
            glances.clear()
            found = watermark.detect(picture, [key], dihedral=True, weak=True)
        assert not watermark.detect(picture, [key], dihedral=True).decoded
        if found.message == mark.message:
            within.append(sum(glances) <= 1)
    assert len(within) >= 8
    assert sum(within) >= 0.8 * len(within)


def test_so_many_poses_are_looked_at_closely_as_were_asked_for(
    watermark: RobustWatermark, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    whiten = watermark._second.whiten

    def counted(pictures: np.ndarray) -> np.ndarray:
        asked.append(len(pictures))
        return whiten(pictures)

    monkeypatch.setattr(watermark._second, "whiten", counted)
    large = cv2.resize(_display(frames[0]), (300, 300))
    for turned, looks in ((0, 1), (3, 4), (7, 8)):
        asked.clear()
        found = watermark.detect(large, [Key(b"k")], dihedral=True, weak=True, turned=turned)
        assert not found.decoded
        assert sum(asked) == looks


def test_an_unmarked_frame_is_not_recognised_either(
    watermark: RobustWatermark, frames: list[np.ndarray]
) -> None:
    messages = [watermark.message(_display(frame), Key(b"k")) for frame in frames]
    known = np.stack([np.frombuffer(message[:8], np.uint8) for message in messages])
    for frame in frames[:4]:
        picture = _display(frame)
        assert not watermark.detect(
            picture, [Key(b"k")], dihedral=True, weak=True, known=known
        ).decoded


def test_an_unmarked_frame_reads_as_nothing(
    watermark: RobustWatermark, frames: list[np.ndarray]
) -> None:
    assert not any(
        watermark.detect(_display(f), [Key(b"k")], dihedral=True).decoded for f in frames
    )


def test_a_flat_frame_carries_no_robust_mark_and_says_so(watermark: RobustWatermark) -> None:
    flat = np.full((256, 256), 90, np.uint8)
    mark = _embed(watermark, flat, Key(b"k"))
    assert mark.record is None
    assert "flat" in mark.reason
    np.testing.assert_array_equal(mark.marked, flat)


def test_a_tiny_frame_carries_no_robust_mark_and_says_so(watermark: RobustWatermark) -> None:
    mark = _embed(watermark, np.arange(900, dtype=np.uint8).reshape(30, 30), Key(b"k"))
    assert mark.record is None
    assert "48 px" in mark.reason


def test_an_inverted_frame_is_marked_in_the_same_picture(
    watermark: RobustWatermark, frames: list[np.ndarray]
) -> None:
    key, frame = Key(b"k"), frames[0]
    mark = watermark.embed(255 - frame.astype(np.int32), _display(frame), step=-1.0, low=0,
                           high=255, padding=None, key=key)  # fmt: skip
    assert watermark.detect(_display(255 - mark.marked), [key]).message == mark.message


def test_patterns_of_another_version_are_refused(
    watermark: RobustWatermark, frames: list[np.ndarray]
) -> None:
    mark = _embed(watermark, frames[0], Key(b"k"))
    assert mark.record is not None
    with pytest.raises(WatermarkError, match="carrier patterns"):
        remove(mark.marked, mark.record, watermark.engine.patterns, b"none", 0, 255, None)


@pytest.mark.parametrize("pose", DIHEDRAL)
def test_every_pose_is_turned_back(pose: Pose) -> None:
    picture = np.arange(12, dtype=np.float32).reshape(3, 4)
    turned = np.rot90(picture, round(pose.rotation_deg / 90))
    turned = turned[:, ::-1] if pose.flip else turned
    np.testing.assert_array_equal(pose.upright(turned), picture)


def test_the_perceptual_hash_hardly_moves_under_jpeg_and_halving(frames: list[np.ndarray]) -> None:
    for frame in frames:
        packed = cv2.imdecode(cv2.imencode(".jpg", frame, [1, 50])[1], 0)
        small = cv2.resize(packed, None, fx=0.5, fy=0.5, interpolation=3)
        a, b = (
            perceptual.perceptual_hash(_display(frame)),
            perceptual.perceptual_hash(_display(small)),
        )
        assert perceptual.distance(a, b) <= 8
