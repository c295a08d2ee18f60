"""All shifts and all angles at once: they say what one by one would, and what chance would not."""

from __future__ import annotations

import numpy as np
import pytest
from turned_pictures import turned

from dicom_node.inference import open_engine
from dicom_node.watermark.alignment import Tools, tools_of
from dicom_node.watermark.fourier import ANGLES, TurnBank, chance, enlarged, evidence
from dicom_node.watermark.shifts import _likeliest


@pytest.fixture(scope="module")
def tools() -> Tools:
    return tools_of(open_engine("onnx"))


def _carrier(tools: Tools, seed: int = 3) -> np.ndarray:
    """Soft bits of one size and any signs, as a whitened picture."""
    signs = np.random.default_rng(seed).choice([-1, 1], len(tools.patterns)).astype(np.float32)
    return (signs @ tools.patterns).reshape(tools.side, tools.side)


def test_the_shift_bank_finds_a_shifted_carrier_where_it_is(tools: Tools) -> None:
    shifted = np.roll(_carrier(tools), (5, -9), (0, 1))
    peaks = list(tools.shifts.peaks(tools.shifts.ask(shifted, (12.0, 12.0), 6.0, 32)))
    best = max(peaks, key=lambda peak: peak.surprise)
    assert (best.down, best.right) == (5, -9)


def test_soft_bits_of_a_shift_are_those_of_the_plain_product(tools: Tools) -> None:
    plane = np.random.default_rng(1).normal(size=(tools.side, tools.side)).astype(np.float32)
    down, right = np.array([-7.5, 3.0], np.float32), np.array([0.5, 4.0], np.float32)
    soft = tools.shifts.soft_bits(plane, down, right)
    assert soft.shape == (2, 160)
    expected = tools.patterns @ np.roll(plane, (-3, -4), (0, 1)).ravel()
    np.testing.assert_allclose(soft[1], expected, rtol=1e-3, atol=1e-4)


def test_the_band_of_the_patterns_holds_what_tells_a_shift(tools: Tools) -> None:
    plane = _carrier(tools) + np.random.default_rng(1).normal(size=(tools.side, tools.side)) / 50
    down, right = np.array([-7.5, 0.0], np.float32), np.array([4.0, 0.0, 9.0], np.float32)
    energy, size = tools.shifts.sums(plane.astype(np.float32), down, right, 160)
    assert energy.shape == size.shape == (2, 3)
    soft = tools.shifts.soft_bits(plane.astype(np.float32), down[1:], right[1:2])
    assert 0.85 < energy[1, 1] / float(np.square(soft).sum()) < 1.0
    assert 0.92 < size[1, 1] / float(np.abs(soft).sum()) < 1.0


def test_one_entry_of_four_neighbours_is_told(tools: Tools) -> None:
    there = np.zeros((9, 9), np.float32)
    there[2, 2], there[3, 3], there[8, 8] = 3, 2, 1
    chosen = set(zip(*_likeliest(there), strict=True))
    assert {(2, 2), (8, 8)} <= chosen
    assert (3, 3) not in chosen


@pytest.mark.parametrize("degrees", [12.0, 200.0])
def test_the_turn_bank_finds_a_turned_carrier_at_its_angle(tools: Tools, degrees: float) -> None:
    bank = TurnBank(tools.doubled, 1.0)
    fine = enlarged(_carrier(tools), 4)[:-3, :-3]  # its middle is that of the samples
    plane = enlarged(turned(fine, degrees)[::4, ::4], 2)
    [asked] = bank.ask([(plane, 1.0)])
    assert asked.soft.shape == (ANGLES, 160)
    assert int(asked.there.argmax()) * 360 / ANGLES == pytest.approx(degrees, abs=1.0)


def test_chance_alone_hardly_exceeds_what_is_expected_of_it() -> None:
    rng = np.random.default_rng(4)
    soft = rng.normal(size=(20_000, 160)).astype(np.float32)
    there = evidence(np.square(soft).sum(1), np.abs(soft).sum(1), 160, 1.0)
    assert abs(float(there.mean())) < 0.2
    assert float(there.std()) == pytest.approx(2**0.5, abs=0.3)
    assert abs(float(there.max()) - chance(len(there))) < 1.5


def test_enlarging_keeps_every_sample(tools: Tools) -> None:
    plane = _carrier(tools)
    np.testing.assert_allclose(enlarged(plane, 2)[::2, ::2], plane, atol=1e-3)


def test_weighed_sums_of_soft_bits_are_those_of_every_shift(tools: Tools) -> None:
    plane = (np.random.default_rng(2).normal(size=160).astype(np.float32) @ tools.patterns)
    plane = plane.reshape(tools.side, tools.side)
    asked = tools.shifts.ask(plane, (3.0, 2.0), 0.5, 96)
    weights = np.random.default_rng(3).normal(size=(5, 64)).astype(np.float32)
    sums = tools.shifts.weighed(asked, weights)
    assert sums.shape == (len(asked.down), 5, len(asked.right))
    wanted = [
        weights @ tools.shifts.soft_bits(plane, asked.down[[y]], asked.right[[x]])[0, :64]
        for y in range(len(asked.down)) for x in range(len(asked.right))
    ]  # fmt: skip
    mine, whole = sums.transpose(0, 2, 1).ravel(), np.concatenate(wanted)
    # Only the patterns' band is summed, which holds nine tenths of their power.
    assert np.corrcoef(mine, whole)[0, 1] > 0.98
    assert 0.85 < np.linalg.norm(mine) / np.linalg.norm(whole) < 1.0
