"""The erasure code against an independent implementation, and at its limits."""

from __future__ import annotations

import numpy as np
import pytest
import reedsolo
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.watermark import erasure

codes = st.integers(1, 255).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


def _data(k: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (k, width), dtype=np.uint8)


@given(codes, st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=20)
def test_code_words_are_those_of_reedsolo(code: tuple[int, int], width: int, seed: int) -> None:
    n, k = code
    data = _data(k, width, seed)
    words = erasure.encode(data, n)
    for column in range(width if n > k else 0):
        expected = reedsolo.RSCodec(n - k, nsize=n).encode(data[:, column].tobytes())
        assert words[:, column].tobytes() == bytes(expected)
    assert (words[:k] == data).all()


@given(codes, st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=20)
def test_as_many_rows_as_there_is_parity_may_be_lost(
    code: tuple[int, int], width: int, seed: int
) -> None:
    n, k = code
    rng = np.random.default_rng(seed)
    data = _data(k, width, seed)
    values = erasure.encode(data, n)
    erased = np.zeros(n, np.bool_)
    erased[rng.choice(n, n - k, replace=False)] = True
    values[erased] = rng.integers(0, 256, (n - k, width))
    found = erasure.decode(values, erased, k)
    assert found is not None
    assert (found == data).all()


@pytest.mark.parametrize(
    ("n", "k", "width", "wrong"), [(64, 51, 8, 8), (64, 51, 20, 12), (255, 204, 60, 50)]
)
def test_wrong_rows_are_found_beyond_half_the_parity(
    n: int, k: int, width: int, wrong: int
) -> None:
    rng = np.random.default_rng(3)
    data = _data(k, width, 3)
    values = erasure.encode(data, n)
    rows = rng.choice(n, wrong, replace=False)
    values[rows] = rng.integers(0, 256, (wrong, width))
    found = erasure.decode(values, np.zeros(n, np.bool_), k)
    assert found is not None
    assert (found == data).all()


def test_narrow_shares_are_decoded_to_half_the_parity() -> None:
    rng = np.random.default_rng(4)
    data = _data(204, 2, 4)
    values = erasure.encode(data, 255)
    rows = rng.choice(255, 25, replace=False)
    values[rows] ^= rng.integers(1, 256, (25, 2), dtype=np.uint8)
    found = erasure.decode(values, np.zeros(255, np.bool_), 204)
    assert found is not None
    assert (found == data).all()


def test_lost_and_wrong_rows_may_come_together() -> None:
    rng = np.random.default_rng(5)
    data = _data(51, 9, 5)
    values = erasure.encode(data, 64)
    erased = np.zeros(64, np.bool_)
    erased[:5] = True
    values[:5] = 0
    values[[20, 30, 63, 40]] = rng.integers(0, 256, (4, 9))
    found = erasure.decode(values, erased, 51)
    assert found is not None
    assert (found == data).all()


def test_too_much_damage_is_admitted() -> None:
    rng = np.random.default_rng(6)
    values = rng.integers(0, 256, (64, 30), dtype=np.uint8)
    assert erasure.decode(values, np.zeros(64, np.bool_), 51) is None
    erased = np.arange(64) < 14
    assert erasure.decode(erasure.encode(_data(51, 3, 1), 64), erased, 51) is None


def test_a_code_of_too_many_symbols_is_refused() -> None:
    with pytest.raises(ValueError, match="no Reed-Solomon code"):
        erasure.encode(np.zeros((5, 1), np.uint8), 256)
