"""How rarely chance agrees with soft bits is never said to be rarer than it is."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dicom_node.watermark import chance

_SIGNS = np.array(list(product((-1, 1), repeat=14)), np.float32)


@given(
    soft=arrays.arrays(
        np.float32, 14, elements=st.floats(-100, 100, width=32).filter(lambda v: abs(v) > 1e-3)
    )
)
@settings(max_examples=60)
def test_no_sum_is_reached_more_often_than_its_surprise_says(soft: np.ndarray) -> None:
    """All 16,384 words there are of 14 signs, whatever the soft bits: counted, not estimated."""
    sums = np.sort(_SIGNS.astype(np.float64) @ soft.astype(np.float64))[::-1]
    reached = np.arange(1, len(sums) + 1) / len(sums)
    for how in (chance.nats, chance.counted):
        said = np.exp(-how(soft, sums.astype(np.float32)))
        assert (reached <= said * (1 + 1e-4) + 1e-12).all()


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
def test_counting_gains_a_little_over_the_bounds_and_never_loses(spread: float) -> None:
    soft = (1 + spread * np.random.default_rng(3).standard_normal(160)).astype(np.float32)
    sums = (np.linspace(0.4, 0.7, 7) * np.linalg.norm(soft) * 160**0.5).astype(np.float32)
    gained = chance.counted(soft, sums) - chance.nats(soft, sums)
    assert (gained > 0.3).all()
    assert (gained < 3.0).all()


def test_what_falls_a_little_short_of_the_bounds_is_counted() -> None:
    soft = np.random.default_rng(4).standard_normal(160).astype(np.float32)
    sums = (np.array([0.2, 0.54]) * np.linalg.norm(soft) * 160**0.5).astype(np.float32)
    said, really = chance.nats(soft, sums), chance.counted(soft, sums)
    between = np.full(2, (said[1] + really[1]) / 2)
    assert chance.over(soft, sums, between)[1] > 0 > said[1] - between[1]
    assert chance.over(soft, sums, between + 5)[1] == pytest.approx(said[1] - between[1] - 5)


@pytest.mark.parametrize("cosine", [0.5, 0.6, 0.7])
def test_uneven_soft_bits_are_more_surprising_than_the_worst_that_could_be(cosine: float) -> None:
    """Noise has soft bits of all sizes; what is asked of it need not be what is of even ones."""
    noise = np.random.default_rng(1).standard_normal(160).astype(np.float32)
    even = np.ones(160, np.float32)
    told = []
    for soft in (noise, even):
        agreeing = np.float32(cosine * np.linalg.norm(soft) * 160**0.5)
        told.append(float(chance.nats(soft, agreeing[None])[0]))
    assert told[0] > told[1] + 0.5


def test_what_is_no_surprise_says_nothing_and_more_agreement_never_says_less() -> None:
    soft = np.random.default_rng(2).standard_normal(160).astype(np.float32)
    sums = np.linspace(-200, float(np.abs(soft).sum()), 500).astype(np.float32)
    said = chance.nats(soft, sums)
    assert (said[sums <= 0] == 0).all()
    assert (np.diff(said) >= -1e-6).all()
    assert chance.nats(np.zeros(160, np.float32), np.zeros(3, np.float32)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("guesses", [1, 64, 4096, 100_000])
def test_all_guesses_together_pass_by_chance_once_in_four_thousand_million(guesses: int) -> None:
    asked = chance.asked(guesses, 32)
    assert np.exp(-asked).sum() == pytest.approx(2**-32)
    assert (np.diff(asked) >= 0).all()


def test_as_much_of_the_chance_is_spent_on_a_guess_as_it_is_likely_to_be_right() -> None:
    """Of marks at the edge, the first is right in half, one of the first ten in three of four."""
    shares = np.exp(-chance.asked(4096, 0))
    assert 0.4 < shares[0] < 0.5
    assert 0.7 < shares[:10].sum() < 0.8
    assert shares[100:].sum() > 0.1
