"""Frames up to 96 pixels: of several choices the one is put in that JPEG leaves most of."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest
from robust_key import Key

from dicom_node.inference import open_engine
from dicom_node.watermark import small
from dicom_node.watermark.covers import Chosen, Cover, Look
from dicom_node.watermark.detecting import FOLDS
from dicom_node.watermark.robust import RobustWatermark
from dicom_node.watermark.words import WAYS, code_word

KEYS = [Key(bytes([each])) for each in range(6)]


@pytest.fixture(scope="module")
def frames(shared: Path) -> list[np.ndarray]:
    """Three frames of the validation split at 64 x 64, 8 bit."""
    names = sorted((shared / "whole" / "val").rglob("mr_*.webp"))[:3]
    whole = (cv2.imread(str(name), cv2.IMREAD_GRAYSCALE) for name in names)
    return [cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA) for frame in whole]


@pytest.fixture(scope="module")
def folded() -> RobustWatermark:
    return RobustWatermark(open_engine("onnx"), "robust", second=True, folds=FOLDS)


def _chosen(folded: RobustWatermark, frame: np.ndarray, key: Key) -> list[Chosen]:
    shown = (frame / 255).astype(np.float32)
    message = folded.message(shown, key)
    covers = folded._chooser.covers(
        frame.astype(np.int32), shown, folded.resample(shown), 1.0, 0, 255,
        code_word(message, key), folded._nearest(message, key),
    )  # fmt: skip
    made = [folded._chosen(cover, 41.05, None) for cover in covers]
    return [each for each in made if each is not None]


def _left(folded: RobustWatermark, marked: np.ndarray, message: bytes, key: Key) -> float:
    """Return what JPEG 70, 60 and 50 leave of a finished mark, as `small.survives` counts it."""
    total = 0.0
    for quality in (70, 60, 50):
        code = cv2.imencode(".jpg", marked, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        shown = cv2.imdecode(code, cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255
        soft = folded.look_closely(shown, FOLDS)[0]
        words = np.stack([code_word(message, key, way) for way in range(WAYS)])
        total += min(float((words @ soft).max() / np.linalg.norm(soft) / 160**0.5), 0.56)
    return total


def test_what_jpeg_leaves_of_a_mark_is_what_was_foreseen_of_its_choice(
    folded: RobustWatermark, frames: list[np.ndarray]
) -> None:
    apart = []
    for frame, key in product(frames, KEYS):
        best = max(folded._chooser.survives(each) for each in _chosen(folded, frame, key))
        mark = folded.embed(frame.astype(np.int32), (frame / 255).astype(np.float32), step=1.0,
                            low=0, high=255, padding=None, key=key)  # fmt: skip
        apart.append(_left(folded, mark.marked.astype(np.uint8), mark.message, key) - best)
    assert np.abs(apart).mean() < 0.05
    assert np.abs(apart).max() < 0.15


def test_no_single_way_to_choose_leaves_as_much_as_the_best_of_them(
    folded: RobustWatermark, frames: list[np.ndarray]
) -> None:
    by_way = np.array([
        [folded._chooser.survives(each) for each in _chosen(folded, frame, key)]
        for frame in frames for key in KEYS
    ])  # fmt: skip
    assert by_way.shape == (len(frames) * len(KEYS), len(small._CHOSEN_FOR))
    gained = by_way.max(axis=1).mean() - by_way.mean(axis=0)
    assert (gained > 0.005).all(), gained


def test_more_than_enough_is_worth_no_more(
    folded: RobustWatermark, frames: list[np.ndarray]
) -> None:
    chosen = _chosen(folded, frames[0], KEYS[0])[0]
    scores = [folded._chooser.survives(chosen._replace(rms=chosen.rms * by)) for by in (0, 1, 8)]
    assert scores == sorted(scores)
    assert scores[-1] == pytest.approx(3 * small._ENOUGH)


def test_every_aim_leads_towards_the_word_that_is_put_in() -> None:
    """Soft bits and aims are given times the word: of another word they change their signs."""
    rng = np.random.default_rng(0)
    word, other = np.sign(rng.normal(size=(2, 160))).astype(np.float32)
    soft = rng.normal(size=160).astype(np.float32)
    display = rng.random((64, 64), np.float32)
    sharp = Cover(display, display, display, np.zeros((64, 64), np.int32), 1.0, 0, 255, word,
                  soft * word, word, None)  # fmt: skip
    look = Look(128, lambda pictures: np.repeat(soft[None], len(pictures), 0), FOLDS)
    for cover in small.covers(sharp, look, lambda aim: other):
        np.testing.assert_array_equal(cover.word, other)
        np.testing.assert_allclose(cover.soft, soft * other, rtol=1e-5)
        np.testing.assert_allclose(cover.aim, soft * other / np.linalg.norm(soft), rtol=1e-3)
    kept = small.covers(replace(sharp, word=other, soft=soft * other), look, None)
    np.testing.assert_array_equal(kept[0].word, other)
