"""Attacks do what their names say, draw the same for the same frame, and know their way back."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dicom_node.bench.attacks import ATTACKS, SUITE, Attack, choose, gamma, half, jpeg
from dicom_node.bench.attacks.compression import jpeg_2000, webp
from dicom_node.bench.attacks.cropping import blackened, covered, lines_removed
from dicom_node.bench.attacks.geometry import cut, rotation, scaling, shift
from dicom_node.bench.attacks.noise import gaussian, poisson, salt_and_pepper, speckle
from dicom_node.bench.attacks.tone import contrast
from dicom_node.errors import ConfigError

PICTURE = (np.add.outer(np.arange(60) * 3, np.arange(80)) % 256).astype(np.uint8)
GREY = np.full((200, 300), 128, np.uint8)
PLAIN_ONES = [a for a in SUITE if a.knowing is None]


def _smooth(rows: int, columns: int) -> np.ndarray:
    """A picture without edges, in which interpolation costs next to nothing."""
    noise = np.random.default_rng(1).random((rows, columns), np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), 8)
    return cv2.normalize(soft, None, 20, 235, cv2.NORM_MINMAX).astype(np.uint8)


def _rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.mark.parametrize("attack", PLAIN_ONES, ids=lambda a: a.name)
def test_an_attack_gives_an_8_bit_picture_and_leaves_its_input_alone(attack: Attack) -> None:
    before = PICTURE.copy()
    out = attack.apply(PICTURE, attack.rng("frame"))
    assert out.dtype == np.uint8
    assert out.ndim == 2
    np.testing.assert_array_equal(PICTURE, before)


@pytest.mark.parametrize("attack", PLAIN_ONES, ids=lambda a: a.name)
def test_an_attack_does_the_same_to_the_same_frame_in_every_run(attack: Attack) -> None:
    first, second = (attack.apply(PICTURE, attack.rng("a.dcm/3")) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_noise_differs_from_frame_to_frame() -> None:
    [attack] = choose(["Gaussian noise 0.001"])
    assert not np.array_equal(*(attack.apply(GREY, attack.rng(name)) for name in ("a", "b")))


MOVES = [a for a in PLAIN_ONES if a.family in {"geometry", "cropping", "combined"}
         and not a.name.startswith("covered")]  # fmt: skip


@pytest.mark.parametrize("attack", MOVES, ids=lambda a: a.name)
@pytest.mark.parametrize("shape", [(256, 256), (200, 320)])
def test_who_knows_the_pose_lays_the_picture_back_over_the_frame(
    attack: Attack, shape: tuple[int, int]
) -> None:
    picture = _smooth(*shape)
    attacked = attack.apply(picture, attack.rng("frame"))
    upright = attack.upright(attacked, shape, attack.rng("frame"))
    if upright.shape != shape:  # a change of size, which no decoder needs to know
        upright = cv2.resize(upright, shape[::-1], interpolation=cv2.INTER_CUBIC)
    from_middle = np.hypot(*np.ogrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j])
    change = np.abs(upright.astype(float) - picture)[from_middle < 0.3]
    paper = attack.name == "printed and scanned"  # which has tones of its own
    assert np.mean(change) < (12 if paper else 2)


@pytest.mark.parametrize(
    "attack", [a for a in SUITE if a.name.startswith(("rotated 90", "rotated 180", "flip"))],
    ids=lambda a: a.name,
)
def test_quarter_turns_and_flips_go_back_exactly(attack: Attack) -> None:
    attacked = attack.apply(PICTURE, attack.rng())
    assert not np.array_equal(attacked, PICTURE)
    np.testing.assert_array_equal(attack.upright(attacked, PICTURE.shape, attack.rng()), PICTURE)


def test_gamma_keeps_black_and_white_and_brightens_below_one() -> None:
    out = gamma(np.array([[0, 64, 255]], np.uint8), 0.5)
    assert out.tolist() == [[0, 128, 255]]


def test_contrast_turns_about_middle_grey() -> None:
    assert contrast(np.array([[0, 100, 128, 255]], np.uint8), 1.5).tolist() == [[0, 86, 128, 255]]


def test_half_size_halves_both_sides() -> None:
    assert half(PICTURE).shape == (30, 40)


@pytest.mark.parametrize(("coder", "mild", "harsh"), [(jpeg, 90, 10), (webp, 90, 10),
                                                      (jpeg_2000, 5, 50)])  # fmt: skip
def test_stronger_compression_changes_more(coder: object, mild: int, harsh: int) -> None:
    picture = np.clip(_smooth(128, 128) + 8 * _rng().standard_normal((128, 128)), 0, 255)
    picture = picture.astype(np.uint8)
    little, much = (
        float(np.abs(coder(picture, level).astype(int) - picture).mean())  # type: ignore[operator]
        for level in (mild, harsh)
    )
    assert 0 < little < much


@pytest.mark.parametrize("variance", [0.0005, 0.001, 0.005, 0.01])
def test_gaussian_noise_has_the_variance_it_names(variance: float) -> None:
    noise = (gaussian(GREY, _rng(), variance).astype(float) - GREY) / 255
    assert np.var(noise) == pytest.approx(variance, rel=0.05)


def test_salt_and_pepper_reaches_the_share_it_names_half_of_it_white() -> None:
    out = salt_and_pepper(GREY, _rng(), 0.04)
    assert np.mean(out == 0) == pytest.approx(0.02, abs=0.003)
    assert np.mean(out == 255) == pytest.approx(0.02, abs=0.003)


def test_speckle_grows_with_the_grey_value() -> None:
    dark, bright = (np.full((200, 300), value, np.uint8) for value in (40, 160))
    deviations = [float(np.std(speckle(p, _rng(), 0.01).astype(float))) for p in (dark, bright)]
    assert deviations == pytest.approx([4, 16], rel=0.05)


def test_poisson_noise_of_one_photon_a_grey_level_has_the_variance_of_the_grey_value() -> None:
    assert np.var(poisson(GREY, _rng(), 1.0).astype(float)) == pytest.approx(128, rel=0.05)
    assert np.std(poisson(GREY, _rng(), 0.08).astype(float)) == pytest.approx(
        0.08 * 128**0.5, rel=0.1
    )


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("corner", [False, True])
def test_cropping_removes_the_share_of_the_area_it_names(share: float, corner: bool) -> None:
    kept = cut(GREY.shape, share, corner=corner).apply(GREY)
    assert kept.size / GREY.size == pytest.approx(1 - share, abs=0.01)
    assert kept.min() == 128  # nothing from outside the picture
    assert np.mean(blackened(GREY, share) == 0) == pytest.approx(share, abs=0.01)
    assert np.mean(covered(GREY // 2, share) == 128) == pytest.approx(share, abs=0.01)


def test_a_larger_canvas_keeps_the_corners_of_a_rotated_picture() -> None:
    move = rotation(GREY.shape, 30, expand=True)
    assert np.count_nonzero(move.apply(GREY)) == pytest.approx(GREY.size, rel=0.02)
    assert np.count_nonzero(rotation(GREY.shape, 30).apply(GREY)) < 0.9 * GREY.size


def test_moves_follow_one_another() -> None:
    picture = _smooth(120, 160)
    first, second = shift(picture.shape, 0.1, 0.05), scaling(picture.shape, 1.5, 2.0)
    at_once = first.then(second).apply(picture).astype(float)
    in_turn = second.apply(first.apply(picture)).astype(float)
    assert at_once.shape == in_turn.shape == (180, 320)
    assert np.abs(at_once - in_turn)[40:, 40:].mean() < 1


def test_every_20th_line_is_gone() -> None:
    rows = np.repeat(np.arange(100, dtype=np.uint8)[:, None], 40, axis=1)
    out = lines_removed(rows, 20)
    assert out.shape == (95, 38)
    assert not set(range(0, 100, 20)) & set(out[:, 0].tolist())


def test_every_row_of_both_papers_tables_is_in_the_suite() -> None:
    names = {attack.name for attack in SUITE}
    assert {f"JPEG {q}" for q in range(10, 100, 10)} <= names
    assert {f"rotated {a}" for a in (1, 5, 10, 30, 45, 90, 180)} <= names
    assert {"flip horiz.", "flip vert.", "gamma 0.5", "gamma 2", "hist. equalised", "CLAHE",
            "blur 7 x 7", "mean 3 x 3", "median 3 x 3", "brightness +50", "contrast x 1.5",
            "salt and pepper 0.01", "Gaussian noise, half a grey level", "Gaussian noise 0.001",
            "Gaussian noise 0.005", "Gaussian noise 0.01", "Poisson 0.08", "speckle 0.01",
            "sharpened", "half size", "scaled x 0.75", "scaled x 1.5", "scaled x 2", "WebP 80",
            "JPEG 2000 20:1", "JPEG 2000 20:1 of stored values", "screenshot",
            "window 0.6 times as wide", "overwritten with another key"} <= names  # fmt: skip
    for share in ("10%", "25%", "50%"):
        assert {f"blackened {share}", f"cropped {share}, middle kept",
                f"cropped {share}, corner kept"} <= names  # fmt: skip


def test_names_are_unique_and_the_short_list_is_part_of_the_suite() -> None:
    names = [attack.name for attack in SUITE]
    assert len(names) == len(set(names))
    assert {attack.name for attack in ATTACKS} <= set(names)
    assert all(attack.target is not None for attack in ATTACKS)


def test_attacks_are_chosen_by_name_and_by_family() -> None:
    chosen = [attack.name for attack in choose(["tone", "JPEG 50"])]
    assert chosen[0] == "JPEG 50"
    assert "gamma 0.5" in chosen
    assert "JPEG 70" not in chosen
    assert choose([]) == SUITE


def test_a_misspelt_attack_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"JPG 50.*families: compression.*JPEG 50"):
        choose(["JPG 50"])
