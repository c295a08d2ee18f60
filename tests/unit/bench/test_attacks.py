"""Attacks do what their names say, and the ones that turn a picture know how to turn it back."""

from __future__ import annotations

import numpy as np
import pytest

from dicom_node.bench.attacks import ATTACKS, Attack, gamma, half, jpeg

PICTURE = (np.add.outer(np.arange(60) * 3, np.arange(80)) % 256).astype(np.uint8)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name)
def test_an_attack_gives_an_8_bit_picture_and_leaves_its_input_alone(attack: Attack) -> None:
    before = PICTURE.copy()
    out = attack.apply(PICTURE)
    assert out.dtype == np.uint8
    assert out.ndim == 2
    np.testing.assert_array_equal(PICTURE, before)


@pytest.mark.parametrize(
    "attack", [a for a in ATTACKS if "rotated" in a.name or "flip" in a.name], ids=lambda a: a.name
)
def test_turning_back_gives_the_picture_again(attack: Attack) -> None:
    assert not np.array_equal(attack.apply(PICTURE), PICTURE)
    np.testing.assert_array_equal(attack.upright(attack.apply(PICTURE)), PICTURE)


def test_gamma_keeps_black_and_white_and_brightens_below_one() -> None:
    out = gamma(np.array([[0, 64, 255]], np.uint8), 0.5)
    assert out.tolist() == [[0, 128, 255]]


def test_half_size_halves_both_sides() -> None:
    assert half(PICTURE).shape == (30, 40)


def test_jpeg_changes_a_picture_a_little() -> None:
    change = np.abs(jpeg(PICTURE, 70).astype(int) - PICTURE)
    assert 0 < change.mean() < 10
