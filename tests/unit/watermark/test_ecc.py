"""The code of W1: promises about what it corrects, and that it never changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.watermark import ecc


def _soft(word: np.ndarray) -> np.ndarray:
    return (2.0 * word - 1.0).astype(np.float32)


def test_a_known_message_keeps_its_code_word_for_ever() -> None:
    word = ecc.encode(bytes(range(12)))
    assert np.packbits(word).tobytes().hex() == "000102030405060708090a0b0e30d2ac53dcce7e"


def test_code_words_differ_in_at_least_seventeen_bits() -> None:
    weights = ecc.generator().sum(axis=1)
    assert weights.min() >= 17


@given(message=st.binary(min_size=12, max_size=12), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_eight_wrong_bits_are_mended_wherever_they_are(message: bytes, seed: int) -> None:
    rng = np.random.default_rng(seed)
    soft = _soft(ecc.encode(message)) * rng.uniform(0.5, 1.0, ecc.CODE_BITS).astype(np.float32)
    wrong = rng.choice(ecc.CODE_BITS, 8, replace=False)
    soft[wrong] *= np.float32(-0.4)
    assert next(ecc.candidates(soft))[0] == message


def test_gaussian_noise_that_flips_five_percent_is_read_in_nearly_every_case() -> None:
    rng = np.random.default_rng(3)
    read = 0
    for _ in range(60):
        message = rng.bytes(12)
        noise = rng.normal(0, 0.61, ecc.CODE_BITS).astype(np.float32)
        read += next(ecc.candidates(_soft(ecc.encode(message)) + noise))[0] == message
    assert read >= 57


def test_candidates_come_by_falling_likelihood() -> None:
    soft = np.random.default_rng(5).normal(size=ecc.CODE_BITS).astype(np.float32)
    agreements = [agreement for _, agreement in ecc.candidates(soft, most=4)]
    assert agreements == sorted(agreements, reverse=True)


def test_a_message_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="12 bytes"):
        ecc.encode(b"short")
