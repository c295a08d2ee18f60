"""What a part of a frame tells of the whole frame's hash: no more than it knows."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from robust_key import Key

from dicom_node.watermark import closely, ecc, expecting, partial, perceptual, reading, words

KEY = Key(b"k")
SIDE = 256


@pytest.fixture(scope="module")
def frames(shared: Path) -> list[np.ndarray]:
    """Forty whole frames of the validation split, 256 x 256, display values."""
    names = sorted((shared / "whole" / "val").rglob("*.webp"))[::2][:40]
    pictures = [cv2.imread(str(name), cv2.IMREAD_GRAYSCALE) for name in names]
    return [
        (cv2.resize(p, (SIDE, SIDE), interpolation=cv2.INTER_AREA) / 255).astype(np.float32)
        for p in pictures
    ]


def _corner(share: float) -> np.ndarray:
    """Return 1 in the corner that is left when `share` of the area is cut off."""
    shown = np.zeros((SIDE, SIDE), np.float32)
    left = round(SIDE * (1 - share) ** 0.5)
    shown[:left, :left] = 1
    return shown


def _bits(frame: np.ndarray) -> np.ndarray:
    return np.unpackbits(np.frombuffer(perceptual.perceptual_hash(frame), np.uint8)) * 2.0 - 1


def _bits_missing(belief: np.ndarray, frame: np.ndarray) -> float:
    """Return how many bits somebody who believes this has still to be told."""
    return float(np.logaddexp(0, -_bits(frame) * belief).sum() / np.log(2))


@pytest.mark.parametrize(("share", "most"), [(0.25, 44), (0.5, 56)])
def test_a_corner_leaves_fewer_bits_to_be_told_than_if_it_were_the_whole(
    frames: list[np.ndarray], share: float, most: float
) -> None:
    shown = _corner(share)
    mine, naive = [], []
    for frame in frames:
        seen = np.where(shown > 0, frame, frame[shown > 0].mean()).astype(np.float32)
        mine.append(_bits_missing(partial.told(seen, shown).belief, frame))
        naive.append(_bits_missing(expecting.told(seen).belief, frame))
    assert np.mean(mine) < most < expecting.HASH_BITS
    assert np.mean(mine) < np.mean(naive) - 5


def test_the_surer_a_bit_the_oftener_it_is_right(frames: list[np.ndarray]) -> None:
    shown, thirds = _corner(0.5), []
    for frame in frames:
        belief = partial.told(frame * shown, shown).belief
        right = (np.sign(belief) == _bits(frame))[np.argsort(np.abs(belief))]
        thirds.append([each.mean() for each in np.array_split(right, 3)])
    least, middle, most = np.mean(thirds, 0)
    assert 0.5 < least < middle - 0.05
    assert middle < most - 0.05
    assert most > 0.75


def test_what_is_not_seen_has_no_say(frames: list[np.ndarray]) -> None:
    """But for what a filter carries over the edge, which reaches three of 32 samples."""
    shown = _corner(0.5)
    for frame in frames[:10]:
        one, other = frame.copy(), frame.copy()
        one[210:], other[210:] = 0, 1
        told = [partial.told(each, shown).above for each in (one, other)]
        assert np.allclose(*told, atol=1e-9)


@pytest.mark.parametrize("shown", [np.ones((SIDE, SIDE)), np.zeros((SIDE, SIDE))])
def test_a_whole_frame_and_none_tell_nothing_in_part(
    frames: list[np.ndarray], shown: np.ndarray
) -> None:
    assert partial.told(frames[0], shown.astype(np.float32)) is None


def test_a_flat_part_tells_nothing_for_sure() -> None:
    told = partial.told(np.full((SIDE, SIDE), 0.4, np.float32), _corner(0.5))
    assert np.isfinite(told.above).all()
    assert np.abs(told.belief[1:]).max() < 1e-6, "the first is the mean, above all others"


def test_a_mark_is_read_from_a_corner_and_by_no_other_key(frames: list[np.ndarray]) -> None:
    """A cosine of 0.75, half of the area: among few guesses, or pointed to."""
    rng, shown = np.random.default_rng(1), _corner(0.5)
    read = asked_whole = 0
    for frame in frames:
        hashed = perceptual.perceptual_hash(frame)
        word = words.code_word(hashed + words.tag(hashed, KEY), KEY)
        soft = (word + rng.normal(0, 0.85, ecc.CODE_BITS)).astype(np.float32)
        seen = np.where(shown > 0, frame, frame[shown > 0].mean()).astype(np.float32)
        told = partial.told(seen, shown)
        found = closely.read_in_part(soft, told, [Key(b"x"), KEY], reading.UPRIGHT)
        assert found.message[:8] in (b"", hashed)
        read += found.decoded
        asked_whole += closely.read_weak(soft, seen, [KEY], reading.UPRIGHT, toned=False).decoded
        assert not closely.read_in_part(soft, told, [Key(b"x")], reading.UPRIGHT).decoded
        noise = rng.normal(size=ecc.CODE_BITS).astype(np.float32)
        assert not closely.read_in_part(noise, told, [KEY], reading.UPRIGHT).decoded
    assert read > asked_whole
    assert read >= 0.5 * len(frames)


def test_a_known_hash_is_found_though_the_part_does_not_tell_it(frames: list[np.ndarray]) -> None:
    known = np.stack(
        [np.frombuffer(perceptual.perceptual_hash(frame), np.uint8) for frame in frames]
    )
    rng, shown, found = np.random.default_rng(2), _corner(0.7), 0
    for frame in frames[:10]:
        hashed = perceptual.perceptual_hash(frame)
        word = words.code_word(hashed + words.tag(hashed, KEY), KEY)
        soft = (word + rng.normal(0, 1.0, ecc.CODE_BITS)).astype(np.float32)
        told = partial.told(frame * shown, shown)
        read = closely.read_in_part(soft, told, [KEY], reading.UPRIGHT, known)
        found += read.message[:8] == hashed
    assert found >= 9


def _noise() -> np.ndarray:
    noise = np.random.default_rng(3).uniform(0.1, 1, (SIDE, SIDE))
    return cv2.GaussianBlur(noise, (0, 0), 1).astype(np.float32)


def test_a_black_border_is_seen_and_a_whole_frame_has_none() -> None:
    framed = np.zeros((SIDE, SIDE), np.float32)
    framed[40:220, 30:200] = _noise()[40:220, 30:200]
    seen = partial.inside_border(framed)
    assert seen[40:220, 30:200].all()
    assert seen.sum() == 180 * 170
    assert partial.inside_border(_noise()) is None
    assert list(partial.parts(_noise())) == []


def test_a_grey_box_is_seen_and_black_content_is_not_taken_for_one() -> None:
    covered, hole = _noise(), _noise()
    covered[80:170, 90:180] = 128 / 255
    seen = partial.beside_cover(covered)
    assert not seen[80:170, 90:180].any()
    assert seen.sum() > SIDE**2 - 90 * 90 - 300
    hole[80:170, 90:180] = 0
    assert partial.beside_cover(hole) is None


def test_a_cover_inside_a_border_is_told_both_ways() -> None:
    framed = np.zeros((SIDE, SIDE), np.float32)
    framed[40:220, 30:200] = _noise()[40:220, 30:200]
    assert len(list(partial.parts(framed))) == 1
    framed[80:170, 90:180] = 128 / 255
    one, other = (each.above for each in partial.parts(framed))
    assert not np.allclose(one, other)
