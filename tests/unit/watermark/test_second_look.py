"""R2 for small frames sees more of their marks than what was trained on others, and faster."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from robust_key import Key

from dicom_node.inference import open_engine
from dicom_node.inference.base import RobustEngine
from dicom_node.watermark import second_look
from dicom_node.watermark.covers import resample, unfolded
from dicom_node.watermark.detecting import FOLDS
from dicom_node.watermark.robust import RobustWatermark
from dicom_node.watermark.second_look import SecondLook
from dicom_node.watermark.words import nearest_way

KEY = Key(b"k")


@pytest.fixture(scope="module")
def engine() -> RobustEngine:
    return open_engine("onnx")


@pytest.fixture(scope="module")
def marked(shared: Path, engine: RobustEngine) -> list[tuple[np.ndarray, np.ndarray]]:
    """Eight frames of the validation split at 64 x 64, marked, 8 bit, and their words."""
    watermark, made = RobustWatermark(engine, folds=FOLDS), []
    names = sorted((shared / "whole" / "val").rglob("mr_*.webp"))
    for name in names[:: max(1, len(names) // 8)][:8]:
        frame = cv2.imread(str(name), cv2.IMREAD_GRAYSCALE)
        frame = cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA)
        before = (frame / 255).astype(np.float32)
        mark = watermark.embed(frame.astype(np.int32), before, step=1.0, low=0, high=255,
                               padding=None, key=KEY)  # fmt: skip
        after = (mark.marked / 255).astype(np.float32)
        put_in = watermark.look_closely(after, FOLDS)[0] - watermark.look_closely(before, FOLDS)[0]
        made.append((mark.marked.astype(np.uint8), nearest_way(mark.message, KEY, put_in)))
    return made


def _agreement(soft: np.ndarray, word: np.ndarray) -> float:
    return float(soft @ word / (np.linalg.norm(soft) * np.sqrt(word.size)))


def _turned_there_and_back(picture: np.ndarray) -> np.ndarray:
    """By 20 degrees: what an attack takes of it, and what seeing it upright again does."""
    middle = ((len(picture) - 1) / 2,) * 2
    for degrees in (20, -20):
        turn = cv2.getRotationMatrix2D(middle, degrees, 1.0)
        picture = cv2.warpAffine(picture, turn, picture.shape[::-1], flags=cv2.INTER_LINEAR)
    return picture


@pytest.mark.parametrize("attack", ["JPEG 60", "turned"])
def test_it_agrees_more_with_a_small_frames_word_than_d1_and_r2_do(
    attack: str, engine: RobustEngine, marked: list[tuple[np.ndarray, np.ndarray]]
) -> None:
    small, whole = SecondLook(engine, FOLDS), SecondLook(engine)
    agreed = []
    for picture, word in marked:
        if attack == "turned":
            hit = _turned_there_and_back(picture)
        else:
            code = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 60])[1]
            hit = cv2.imdecode(code, cv2.IMREAD_GRAYSCALE)
        shown = (hit / 255).astype(np.float32)
        mirrored = unfolded(resample(shown, whole.side // FOLDS), whole.side)
        of_d1 = RobustWatermark(engine).look(shown, FOLDS)[0]
        seen = (small.whiten(resample(shown, small.side)[None]), whole.whiten(mirrored[None]))
        ours, of_r2 = (engine.soft_bits(each)[0] for each in seen)
        agreed.append([_agreement(soft, word) for soft in (ours, of_r2, of_d1)])
    ours, *others = np.mean(agreed, axis=0)
    assert ours > max(others) + 0.015


def test_its_products_with_the_patterns_are_those_of_the_folded_carrier(
    engine: RobustEngine, marked: list[tuple[np.ndarray, np.ndarray]]
) -> None:
    small = SecondLook(engine, FOLDS)
    shown = resample((marked[0][0] / 255).astype(np.float32), small.side)
    plane = small.whiten(shown[None]).reshape(engine.side, engine.side)
    half = engine.side // FOLDS
    np.testing.assert_array_equal(plane[:half, half:], plane[:half, :half][:, ::-1])
    np.testing.assert_array_equal(plane[half:], plane[:half][::-1])


def test_where_a_model_has_none_d1_looks_at_a_frame_beside_its_mirror_images(
    engine: RobustEngine, marked: list[tuple[np.ndarray, np.ndarray]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(second_look, "open_reader", lambda *_, **__: None)
    small = SecondLook(engine, FOLDS)
    assert small.side == engine.side // FOLDS
    shown = (marked[0][0] / 255).astype(np.float32)
    soft = engine.soft_bits(small.whiten(resample(shown, small.side)[None]))
    np.testing.assert_array_equal(soft, RobustWatermark(engine).look(shown, FOLDS))
    assert SecondLook(engine).side == engine.side
