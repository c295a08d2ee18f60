"""A hash that has moved far is found where the soft bits point, and chance is not taken for it."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest
from robust_key import Key

from dicom_node.watermark import closely, ecc, expecting, guided, perceptual, reading, words

KEY = Key(b"k")


@pytest.fixture(scope="module")
def frames(shared: Path) -> list[np.ndarray]:
    """Twenty whole frames of the validation split, 128 x 128, display values."""
    names = sorted((shared / "whole" / "val").rglob("*.webp"))[::4][:20]
    pictures = [cv2.imread(str(name), cv2.IMREAD_GRAYSCALE) for name in names]
    return [
        (cv2.resize(p, (128, 128), interpolation=cv2.INTER_AREA) / 255).astype(np.float32)
        for p in pictures
    ]


def _word(hashed: bytes, key: Key = KEY) -> np.ndarray:
    return words.code_word(hashed + words.tag(hashed, key), key)


def _moved(frame: np.ndarray, pairs: int, rng: np.random.Generator) -> bytes:
    """Return the hash of a picture with bits exchanged among the likelier half of each side."""
    above = expecting.margins(frame)
    order = np.argsort(np.abs(above), kind="stable")
    bits = above > 0
    for side in (order[above[order] > 0], order[above[order] <= 0]):
        turned = rng.choice(side[:14], pairs, replace=False)
        bits[turned] = ~bits[turned]
    return np.packbits(bits).tobytes()


def _guided(soft: np.ndarray, frame: np.ndarray, keys: list[Key]) -> reading.Detection:
    """Ask it of a picture as it lies, and of what it may have been before its tones changed."""
    earlier = [expecting.told(each) for each in (frame, *expecting.other_tones(frame))]
    return reading.recognise_guided(soft, earlier, keys, reading.UPRIGHT)


def test_a_hash_ten_bits_away_is_found_where_the_soft_bits_point(frames: list[np.ndarray]) -> None:
    """A cosine of 0.75: too many wrong bits to decode, and among no 16,384 likeliest guesses."""
    rng, found, guessed = np.random.default_rng(1), 0, 0
    for frame in frames:
        hashed = _moved(frame, 5, rng)
        soft = (_word(hashed) + rng.normal(0, 0.9, ecc.CODE_BITS)).astype(np.float32)
        read = _guided(soft, frame, [Key(b"x"), KEY])
        assert read.message[:8] in (b"", hashed)
        found += read.decoded and read.recognised
        every = expecting.hashes(frame, expecting.MANY)
        guessed += reading.recognise(soft, every, [KEY], reading.UPRIGHT).decoded
    assert guessed <= 2
    assert found >= 0.7 * len(frames)


def test_the_deepest_reading_asks_the_soft_bits_last(frames: list[np.ndarray]) -> None:
    rng, found = np.random.default_rng(1), 0
    for frame in frames[:8]:
        soft = (_word(_moved(frame, 5, rng)) + rng.normal(0, 0.9, ecc.CODE_BITS)).astype(np.float32)
        found += closely.read_deepest(soft, frame, [KEY], reading.UPRIGHT).decoded
    assert found >= 4


def test_two_readers_point_together_to_what_neither_points_to_alone(
    frames: list[np.ndarray],
) -> None:
    """Each agrees with the word by 0.6; as they err apart, their sum does by 0.73."""
    rng, alone, together = np.random.default_rng(5), 0, 0
    for frame in frames:
        word = _word(_moved(frame, 4, rng))
        one, other = (word + rng.normal(0, 1.33, (2, ecc.CODE_BITS))).astype(np.float32)
        for both in (None, one / np.linalg.norm(one) + other / np.linalg.norm(other)):
            found = closely.read_deepest(one, frame, [KEY], reading.UPRIGHT, both=both)
            assert not found.decoded or (_word(found.message[:8]) == word).all()
            alone += both is None and found.decoded
            together += both is not None and found.decoded
    assert together >= alone + 3


def test_soft_bits_that_know_the_hash_and_not_the_key_are_not_recognised(
    frames: list[np.ndarray],
) -> None:
    """The whitened hash is all there: what an attacker reaches who was told those 64 signs."""
    rng = np.random.default_rng(2)
    for frame in frames:
        word = _word(perceptual.perceptual_hash(frame))
        for _ in range(3):
            soft = np.concatenate([word[:64], rng.choice([-1, 1], 96)]).astype(np.float32)
            assert not _guided(soft, frame, [KEY]).decoded


def test_neither_noise_nor_another_key_or_owner_is_recognised(frames: list[np.ndarray]) -> None:
    rng = np.random.default_rng(3)
    for frame in frames:
        word = _word(perceptual.perceptual_hash(frame))
        noise = rng.normal(size=ecc.CODE_BITS).astype(np.float32)
        others = [Key(b"x"), Key(b"k", "OTHER")]
        assert not _guided(noise, frame, [KEY]).decoded
        assert not _guided(word, frame, others).decoded


def test_where_the_right_hash_cannot_be_guessed_no_other_is_taken_for_it(
    frames: list[np.ndarray],
) -> None:
    """Our key, and a hash of 33 bits set: every guess has 32, and many differ in one bit."""
    rng, taken = np.random.default_rng(4), 0
    for frame in frames:
        bits = np.unpackbits(np.frombuffer(_moved(frame, 3, rng), np.uint8))
        bits[rng.choice(np.flatnonzero(bits == 0))] = 1
        soft = _word(np.packbits(bits).tobytes()) + rng.normal(0, 0.6, ecc.CODE_BITS)
        found = _guided(soft.astype(np.float32), frame, [KEY])
        taken += found.decoded
    assert taken == 0


def test_a_picture_that_shows_nothing_points_nowhere() -> None:
    soft = np.ones(ecc.CODE_BITS, np.float32)
    black = np.zeros((64, 64), np.float32)
    assert not _guided(soft, black, [KEY]).decoded


def test_a_hash_is_as_rare_as_all_that_would_have_cost_less_are_many() -> None:
    """Of twelve bits that cost little every exchange is counted; rounding only makes it rarer."""
    rng = np.random.default_rng(5)
    above = np.where(np.arange(64) % 2, 1.0, -1.0) * rng.uniform(1.0, 1.1, 64)
    above[:12] *= rng.uniform(0.02, 0.1, 12)
    on, off = np.flatnonzero(above[:12] > 0), np.flatnonzero(above[:12] <= 0)
    turned = [
        (*some, *others)
        for count in range(7)
        for some in combinations(on, count)
        for others in combinations(off, count)
    ]
    costs = np.array([np.abs(above[list(each)]).sum() for each in turned])
    hashes = []
    for each in turned:
        bits = above > 0
        bits[list(each)] = ~bits[list(each)]
        hashes.append(np.packbits(bits))
    bits = guided.rarity(above, np.stack(hashes))
    ranks = np.log2([(costs <= cost + 1e-12).sum() for cost in costs])
    assert len(turned) == 924
    assert (bits >= ranks - 1e-9).all()
    assert (bits - ranks).max() < 6  # twelve costs of a few steps each, rounded down
    assert np.median(bits - ranks) < 1.0
