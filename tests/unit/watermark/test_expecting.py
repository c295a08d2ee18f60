"""Recognising weak marks: which messages are tried, and how rarely chance passes for one."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from robust_key import Key

from dicom_node.watermark import closely, ecc, expecting, perceptual, reading, words

KEY = Key(b"k")


@pytest.fixture(scope="module")
def frames(shared: Path) -> list[np.ndarray]:
    """Ten whole frames of the validation split as the networks see them, display values."""
    names = sorted((shared / "whole" / "val").rglob("*.webp"))
    chosen = names[:: max(1, len(names) // 10)][:10]
    pictures = [cv2.imread(str(name), cv2.IMREAD_GRAYSCALE) for name in chosen]
    small = [cv2.resize(p, (128, 128), interpolation=cv2.INTER_AREA) for p in pictures]
    return [(p / 255).astype(np.float32) for p in small]


def _word(hashed: bytes, key: Key = KEY) -> np.ndarray:
    return words.code_word(hashed + words.tag(hashed, key), key)


@pytest.mark.parametrize("most", [expecting.MESSAGES, expecting.MANY])
def test_the_first_guess_is_the_hash_of_the_picture_and_none_comes_twice(
    frames: list[np.ndarray], most: int
) -> None:
    for frame in frames:
        guesses = expecting.hashes(frame, most)
        assert guesses[0].tobytes() == perceptual.perceptual_hash(frame)
        assert len({each.tobytes() for each in guesses}) == most


def test_the_hash_a_frame_had_is_among_the_guesses_after_strong_noise(
    frames: list[np.ndarray],
) -> None:
    rng, found = np.random.default_rng(1), 0
    for frame in frames:
        noisy = np.clip(frame + 0.035 * rng.standard_normal(frame.shape), 0, 1).astype(np.float32)
        tried = {each.tobytes() for each in expecting.hashes(noisy)}
        found += perceptual.perceptual_hash(frame) in tried
    assert found >= len(frames) - 1


def test_what_had_its_tones_changed_is_guessed_as_it_was_before(frames: list[np.ndarray]) -> None:
    for frame in frames:
        steeper = np.clip(0.5 + 1.5 * (frame - 0.5), 0, 1)
        brighter, *_ = expecting.other_tones(np.square(frame))
        _, flat, falling, *_ = expecting.other_tones(steeper.astype(np.float32))
        *_, darker, _ = expecting.other_tones(np.sqrt(frame))
        assert perceptual.perceptual_hash(brighter) == perceptual.perceptual_hash(frame)
        assert perceptual.perceptual_hash(darker) == perceptual.perceptual_hash(frame)
        kept = (steeper > 0) & (steeper < 1)
        np.testing.assert_allclose(flat[kept], frame[kept], atol=1e-6)
        assert not flat[steeper == 0].any()
        kept &= (steeper >= 1 / 256) & (steeper <= 255 / 256)
        np.testing.assert_allclose(falling[kept], frame[kept], atol=1e-6)
        clipped = falling[steeper == 0]
        assert (clipped < 1 / 6 + 1e-6).all()
        assert not clipped.size or clipped.max() > 1.5 * clipped.min()


def test_what_was_clipped_at_white_was_brighter_the_farther_from_what_was_not() -> None:
    """A disc that grows brighter towards its middle, after more contrast: white all over."""
    rows, columns = np.mgrid[-64:64, -64:64] / 64
    frame = np.clip(1.05 - 0.75 * np.hypot(rows, columns), 0.2, 1).astype(np.float32)
    steeper = np.clip(0.5 + 1.5 * (frame - 0.5), 0, 1)
    _, _, before, *_ = expecting.other_tones(steeper)
    white = steeper == 1
    assert before[white].min() > 5 / 6 - 1e-6
    assert before[64, 64] > 0.99 > before[white].min() + 0.1
    assert np.abs(before - frame)[white].mean() < np.abs(steeper - frame)[white].mean()


def test_an_equalised_dark_picture_is_guessed_by_darkening_it_much(
    frames: list[np.ndarray],
) -> None:
    plain = darkened = 0
    for frame in frames:
        equalised = cv2.equalizeHist(np.rint(frame * 255).astype(np.uint8)) / np.float32(255)
        hashed = np.frombuffer(perceptual.perceptual_hash(equalised**5), np.uint8)
        *_, before = expecting.other_tones(equalised)
        wrong = [
            int(np.unpackbits(expecting.hashes(each)[0] ^ hashed).sum())
            for each in (equalised, before)
        ]
        plain, darkened = plain + wrong[0], darkened + wrong[1]
    assert darkened < plain / 2


def test_a_mark_too_weak_to_be_decoded_is_recognised(frames: list[np.ndarray]) -> None:
    """At equal power of mark and noise a fifth of the bits is wrong: no code of this rate helps."""
    rng, read, recognised = np.random.default_rng(2), 0, 0
    for frame in frames:
        hashed = perceptual.perceptual_hash(frame)
        soft = (_word(hashed) + rng.normal(0, 1.0, ecc.CODE_BITS)).astype(np.float32)
        read += reading.read(soft, [KEY], reading.UPRIGHT).decoded
        found = reading.recognise(soft, expecting.hashes(frame), [KEY], reading.UPRIGHT)
        recognised += found.message[:8] == hashed and found.recognised
    assert read <= len(frames) // 2
    assert recognised >= len(frames) - 1


def test_neither_chance_nor_another_key_or_owner_is_recognised(frames: list[np.ndarray]) -> None:
    rng = np.random.default_rng(3)
    for frame in frames:
        guesses = expecting.hashes(frame)
        noise = rng.normal(size=ecc.CODE_BITS).astype(np.float32)
        assert not reading.recognise(noise, guesses, [KEY], reading.UPRIGHT).decoded
        word = _word(perceptual.perceptual_hash(frame)).astype(np.float32)
        others = [Key(b"x"), Key(b"k", "OTHER")]
        assert not reading.recognise(word, guesses, others, reading.UPRIGHT).decoded


def test_what_the_first_guesses_say_beyond_doubt_is_taken_before_the_rest_is_asked(
    frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is near one of them without being it is not: the right one may be further on."""
    asked: list[int] = []
    messages = expecting.messages

    def counted(hashes: np.ndarray, key: bytes, owner: str) -> np.ndarray:
        asked.append(len(hashes))
        return messages(hashes, key, owner)

    monkeypatch.setattr(expecting, "messages", counted)
    rng = np.random.default_rng(9)
    for frame in frames:
        guesses = expecting.hashes(frame)
        for rank in (0, 200, expecting.FIRST, 3000):
            soft = _word(guesses[rank].tobytes()) + rng.normal(0, 0.5, ecc.CODE_BITS)
            asked.clear()
            found = reading.recognise(soft.astype(np.float32), guesses, [KEY], reading.UPRIGHT)
            assert found.message[:8] == guesses[rank].tobytes()
            first_alone = [expecting.FIRST]
            assert asked == (first_alone if rank < expecting.FIRST else [*first_alone, 4096])


def test_where_the_right_hash_is_not_guessed_no_other_is_taken_for_it(
    frames: list[np.ndarray],
) -> None:
    """Our key, a hash two bits away from every guess: those agree with it in 62 of 64 bits."""
    rng, taken, tried = np.random.default_rng(6), 0, 0
    for frame in frames:
        guesses = expecting.hashes(frame)
        for guess in guesses[:20]:
            near = guess.copy()
            near[rng.integers(8)] ^= 0x18
            if (guesses == near).all(axis=1).any():
                continue
            soft = _word(near.tobytes()) + rng.normal(0, 0.7, ecc.CODE_BITS)
            found = reading.recognise(
                soft.astype(np.float32), guesses, [KEY], reading.UPRIGHT
            )
            taken, tried = taken + found.decoded, tried + 1
    assert tried >= 50
    assert taken <= 1


def test_a_mark_made_for_a_picture_that_looks_different_is_not_recognised(
    frames: list[np.ndarray],
) -> None:
    """A mark pasted onto another picture carries a hash that nobody guesses there."""
    rng = np.random.default_rng(4)
    for frame, other in pairwise(frames):
        word = _word(perceptual.perceptual_hash(frame))
        soft = (word + rng.normal(0, 0.8, ecc.CODE_BITS)).astype(np.float32)
        found = reading.recognise(soft, expecting.hashes(other), [KEY], reading.UPRIGHT)
        assert not found.decoded


def test_a_remembered_hash_is_found_where_the_picture_no_longer_tells_it(
    frames: list[np.ndarray],
) -> None:
    known = np.stack(
        [np.frombuffer(perceptual.perceptual_hash(frame), np.uint8) for frame in frames]
    )
    rng, found = np.random.default_rng(5), 0
    for frame in frames:
        hashed = perceptual.perceptual_hash(frame)
        soft = (_word(hashed) + rng.normal(0, 0.9, ecc.CODE_BITS)).astype(np.float32)
        black = np.zeros_like(frame)
        black[40:90, 40:90] = frame[40:90, 40:90]
        seen = closely.read_weak(soft, black, [KEY], reading.UPRIGHT, known)
        found += seen.message[:8] == hashed
    assert found >= len(frames) - 1


def test_hashes_are_told_nearest_first() -> None:
    own = np.zeros(8, np.uint8)
    known = np.array([[255] * 8, [1] + [0] * 7, [3] + [0] * 7, [0] * 8], np.uint8)
    assert expecting.nearest_first(known, own)[:, 0].tolist() == [0, 1, 3, 255]
