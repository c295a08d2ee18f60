"""What is known without decoding is what decoding finds."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dicom_node.watermark import expecting
from dicom_node.watermark.assured import must_be_read, must_be_recognised
from dicom_node.watermark.reading import UPRIGHT, read, recognise
from dicom_node.watermark.words import WAYS, code_word, tag, whitening

BITS = 160


class Key:
    owner, key_id, robust_key = "GENERAL-HOSPITAL", b"k" * 8, b"k" * 32


def _message(seed: int) -> bytes:
    hashed = np.random.default_rng(seed).bytes(8)
    return hashed + tag(hashed, Key())


def _soft(message: bytes, noise: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (code_word(message, Key()) + rng.normal(0, noise, BITS)).astype(np.float32)


@pytest.mark.parametrize("noise", [0.3, 0.45, 0.6, 0.9, 1.5])
def test_what_must_be_read_is_read(noise: float) -> None:
    sure = 0
    for seed in range(60):
        message = _message(seed)
        soft = _soft(message, noise, seed)
        read_it = read(soft, [Key()], UPRIGHT).message == message
        if must_be_read(soft, message, Key()):
            sure += 1
            assert read_it
    if noise == 0.3:
        assert sure > 50, "few wrong bits need no decoding"
    if noise == 1.5:
        assert not sure


def test_soft_bits_of_another_message_are_not_this_one() -> None:
    other, message = _message(1), _message(2)
    soft = _soft(other, 0.3, 0)
    assert must_be_read(soft, other, Key())
    assert not must_be_read(soft, message, Key())
    assert must_be_recognised(soft, other, Key(), 0)
    assert not must_be_recognised(soft, message, Key(), 0)


@pytest.mark.parametrize("way", range(WAYS))
def test_a_word_is_read_in_whichever_way_it_was_whitened_if_all_are_asked(way: int) -> None:
    message, rng = _message(4), np.random.default_rng(way)
    soft = (code_word(message, Key(), way) + rng.normal(0, 0.3, BITS)).astype(np.float32)
    found = read(soft, [Key()], UPRIGHT, ways=WAYS)
    assert found.message == message
    assert found.bit_accuracy > 0.95
    assert must_be_read(soft, message, Key(), ways=WAYS)
    assert read(soft, [Key()], UPRIGHT).decoded == (way == 0)


def test_more_is_asked_of_what_is_recognised_in_many_ways() -> None:
    message = _message(5)
    guesses = np.frombuffer(message[:8], np.uint8)[None]
    only_alone = 0
    for seed in range(200):
        soft = _soft(message, 1.6, seed)
        alone = recognise(soft, guesses, [Key()], UPRIGHT).decoded
        among = recognise(soft, guesses, [Key()], UPRIGHT, ways=WAYS).decoded
        assert alone or not among
        only_alone += alone and not among
    assert only_alone > 5


def test_the_ways_of_whitening_stay_what_they_are() -> None:
    signs = [np.packbits(whitening(Key(), way) > 0)[:4].tobytes().hex() for way in (0, 1, 15)]
    assert signs == ["76044d6e", "72f97ea5", "9cac50bf"]


def test_a_picture_that_does_not_guess_the_hash_is_not_sure_to_be_recognised() -> None:
    message = _message(3)
    soft = _soft(message, 0.3, 0)
    assert must_be_recognised(soft, message, Key(), 0)
    assert not must_be_recognised(soft, message, Key(), None)


@pytest.mark.parametrize("ways", [1, WAYS])
@pytest.mark.parametrize("noise", [1.0, 1.2, 1.35])
def test_what_must_be_recognised_is_recognised_whatever_rank_its_hash_has(
    noise: float, ways: int
) -> None:
    picture = cv2.GaussianBlur(np.random.default_rng(5).random((128, 128), np.float32), (0, 0), 6)
    picture = (picture - picture.min()) / np.ptp(picture)
    guesses, sure = expecting.hashes(picture), []
    for seed, rank in enumerate((0, 1, 7, 60, 500, 4000) * 4):
        hashed = guesses[rank].tobytes()
        assert expecting.rank_of(hashed, picture) == rank
        message = hashed + tag(hashed, Key())
        soft = _soft(message, noise, seed)
        recognised = recognise(soft, guesses, [Key()], UPRIGHT, ways=ways).message == message
        if must_be_recognised(soft, message, Key(), rank, ways=ways):
            sure.append(rank)
            assert recognised
        elif recognised and ways == 1:
            # Short of a bound by so little that counting, left to reading, makes up for it.
            assert must_be_recognised(soft, message, Key(), rank, spare=-0.03)
    assert sure, "some agree well enough"
    assert expecting.rank_of(b"another.", picture) is None
