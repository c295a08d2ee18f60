"""Informed embedding: a message has many words, and the one nearest to the cover says it too."""

from __future__ import annotations

import hashlib
from itertools import product

import numpy as np
import pytest
from Crypto.Hash import KMAC256
from robust_key import Key

from dicom_node.watermark import closely, expecting, informed, reading, trellis, words
from dicom_node.watermark.reading import UPRIGHT

KEY = Key(b"k")
PICTURE = np.random.default_rng(8).random((64, 64), np.float32)
GUESSES = expecting.hashes(PICTURE)


def _message(hashed: bytes, key: Key = KEY) -> bytes:
    return hashed + words.tag(hashed, key)


def _nearest(message: bytes, soft: np.ndarray, key: Key = KEY) -> np.ndarray:
    return informed.nearest_word(message, key.robust_key, key.owner, soft)


def _soft(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(160).astype(np.float32)


def _turned(soft: np.ndarray, word: np.ndarray, cosine: float) -> np.ndarray:
    """Return soft bits moved towards a word until they agree with it by a cosine."""
    along = word / np.linalg.norm(word)
    across = soft - (soft @ along) * along
    across /= np.linalg.norm(across)
    return (cosine * along + (1 - cosine**2) ** 0.5 * across).astype(np.float32)


def test_the_best_path_is_the_best_of_all_paths() -> None:
    """Of the first 12 bits all 4,096 paths are tried, bit by bit through the shift register."""
    for seed in range(3):
        soft, best = _soft(seed)[:48], -np.inf
        for bits in product((0, 1), repeat=12):
            register, total = 0, 0.0
            for stage, bit in enumerate(bits):
                register = (register >> 1) | (bit << 6)
                for place, taps in enumerate((0o135, 0o135, 0o147, 0o163)):
                    odd = (register & taps).bit_count() & 1
                    total += float(soft[4 * stage + place]) * (1 - 2 * odd)
            best = max(best, total)
        word = trellis.best_word(soft)
        assert float(word @ soft) == pytest.approx(best, rel=1e-5)
        assert trellis.best_sums(soft[None])[0] == pytest.approx(best, rel=1e-5)


def test_a_word_of_any_message_is_half_the_way_to_any_cover() -> None:
    agreed = [
        float(_nearest(_message(bytes([seed]) * 8), _soft(seed)) @ _soft(seed))
        / float(np.linalg.norm(_soft(seed)) * 160**0.5)
        for seed in range(60)
    ]
    assert 0.46 < float(np.mean(agreed)) < 0.52
    assert min(agreed) > 0.38


@pytest.mark.parametrize("rank", [0, 3, 60, 500])
def test_a_message_is_recognised_in_whichever_word_was_put_in(rank: int) -> None:
    message = _message(GUESSES[rank].tobytes())
    for seed in range(5):
        cover = _soft(seed)
        marked = _turned(cover, _nearest(message, cover), 0.82)
        found = reading.recognise_any(marked, GUESSES, [Key(b"x"), KEY], UPRIGHT)
        assert found.message == message
        assert found.recognised
        assert found.bit_accuracy > 0.8
        assert not reading.recognise(marked, GUESSES, [KEY], UPRIGHT).decoded


def test_it_takes_less_to_turn_a_cover_to_the_nearest_word_than_to_the_code_word() -> None:
    """The turn that recognising takes, in degrees: 31 to the code word, 14 to the nearest."""
    message, turns = _message(GUESSES[0].tobytes()), []
    for seed in range(12):
        cover = _soft(seed)
        cover -= (cover @ words.code_word(message, KEY)) / 160 * words.code_word(message, KEY)
        needed = []
        for word, find in (
            (words.code_word(message, KEY), reading.recognise),
            (_nearest(message, cover), reading.recognise_any),
        ):
            before = float(word @ cover / np.linalg.norm(cover) / 160**0.5)
            asked = next(
                cosine for cosine in np.arange(max(before, 0.4), 1, 0.005)
                if find(_turned(cover, word, cosine), GUESSES, [KEY], UPRIGHT).decoded
            )
            needed.append(np.degrees(np.arccos(before) - np.arccos(asked)))
        turns.append(needed)
    code, nearest = np.mean(turns, axis=0)
    assert 28 < code < 34
    assert nearest < 18


def test_neither_chance_nor_another_key_owner_or_message_is_recognised() -> None:
    message = _message(GUESSES[0].tobytes())
    elsewhere = expecting.hashes(np.random.default_rng(9).random((64, 64), np.float32))
    for seed in range(40):
        cover = _soft(seed)
        assert not reading.recognise_any(cover, GUESSES, [KEY], UPRIGHT).decoded
        marked = _nearest(message, cover)
        others = [Key(b"x"), Key(b"k", "OTHER")]
        assert not reading.recognise_any(marked, GUESSES, others, UPRIGHT).decoded
        assert not reading.recognise_any(marked, elsewhere, [KEY], UPRIGHT).decoded


def test_where_the_right_hash_is_not_guessed_no_other_is_taken_for_it() -> None:
    """Messages that look alike have words that do not: two bits of the hash change them all."""
    for guess in GUESSES[:30]:
        near = guess.copy()
        near[0] ^= 0x81
        if (near == GUESSES).all(axis=1).any():
            continue
        marked = _nearest(_message(near.tobytes()), _soft(1))
        assert not reading.recognise_any(marked, GUESSES, [KEY], UPRIGHT).decoded


def test_words_are_the_same_for_ever() -> None:
    """A mark made today is looked for in ten years: its keyed signs, and the paths."""
    message = _message(bytes(range(8)))
    signs = KMAC256.new(
        key=KEY.robust_key, mac_len=20, custom=b"dicom-node W1 word"
    ).update(bytes(range(8)) + b"GENERAL-HOSPITAL").digest()
    keyed = np.unpackbits(np.frombuffer(signs, np.uint8)).astype(np.float32) * 2 - 1
    ramp = np.sin(np.arange(160, dtype=np.float32) ** 1.5)
    word = _nearest(message, ramp)
    path = (word * keyed > 0).astype(np.uint8)
    assert hashlib.sha256(np.packbits(path).tobytes()).hexdigest()[:16] == "e11d5579dc6c12b7"


@pytest.mark.parametrize("tone", range(5))
def test_a_word_is_found_in_a_picture_whose_tones_were_changed(tone: int) -> None:
    """Frames of narrow windows carry such words, and contrast moves their hash farthest."""
    earlier = expecting.other_tones(PICTURE)[tone]
    message = _message(expecting.hashes(earlier)[0].tobytes())
    soft = _turned(_soft(tone), _nearest(message, _soft(tone)), 0.8)
    found = closely.read_toned(soft, PICTURE, [KEY], UPRIGHT)
    assert (found.message, found.recognised) == (message, True)
    assert not closely.read_toned(soft, PICTURE, [Key(b"o")], UPRIGHT).decoded
