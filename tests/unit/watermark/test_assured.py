"""What is known without decoding is what decoding finds."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dicom_node.watermark import expecting
from dicom_node.watermark.assured import must_be_read, must_be_recognised
from dicom_node.watermark.reading import UPRIGHT, code_word, read, recognise, tag

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


def test_a_picture_that_does_not_guess_the_hash_is_not_sure_to_be_recognised() -> None:
    message = _message(3)
    soft = _soft(message, 0.3, 0)
    assert must_be_recognised(soft, message, Key(), 0)
    assert not must_be_recognised(soft, message, Key(), None)


@pytest.mark.parametrize("noise", [1.0, 1.2, 1.35])
def test_what_must_be_recognised_is_recognised_whatever_rank_its_hash_has(noise: float) -> None:
    picture = cv2.GaussianBlur(np.random.default_rng(5).random((128, 128), np.float32), (0, 0), 6)
    picture = (picture - picture.min()) / np.ptp(picture)
    guesses, sure = expecting.hashes(picture), []
    for seed, rank in enumerate((0, 1, 7, 60, 500, 4000) * 4):
        hashed = guesses[rank].tobytes()
        assert expecting.rank_of(hashed, picture) == rank
        message = hashed + tag(hashed, Key())
        soft = _soft(message, noise, seed)
        if must_be_recognised(soft, message, Key(), rank):
            sure.append(rank)
            assert recognise(soft, guesses, [Key()], UPRIGHT).message == message
        else:
            assert recognise(soft, guesses, [Key()], UPRIGHT).message != message
    assert sure, "some agree well enough"
    assert expecting.rank_of(b"another.", picture) is None
