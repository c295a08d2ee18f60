"""The attacks in torch do what OpenCV's do, and let gradients through at full resolution."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="no torch: `make train-test` runs these")

import attacks  # noqa: E402
import families  # noqa: E402
import gpu_attacks  # noqa: E402

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def x(real_frames: np.ndarray):
    torch.set_num_threads(1)
    return torch.from_numpy(real_frames[:, None]).float() / 255


@pytest.fixture
def g():
    return torch.Generator().manual_seed(1)


def eight_bits(y) -> np.ndarray:
    picture: np.ndarray = (255 * y[:, 0]).round().to(torch.uint8).numpy()
    return picture


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    mse = ((a.astype(float) - b) ** 2).mean((1, 2))
    db: np.ndarray = 10 * np.log10(255**2 / np.maximum(mse, 1e-6))
    return db


def by_opencv(name: str, pictures: np.ndarray, u: float) -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.stack([families.FAMILIES[name](p, u, rng) for p in pictures])


def severity(name: str, count: int, u: float):
    return u if name in gpu_attacks.OF_THE_HOST else torch.full((count,), u)


def test_both_ways_have_the_same_families() -> None:
    assert list(gpu_attacks.FAMILIES) == list(families.FAMILIES) == list(families.WEIGHTS)


@pytest.mark.parametrize("quality", range(10, 91, 10))
def test_jpeg_is_opencv_s_to_within_rounding(x, real_frames: np.ndarray, quality: int) -> None:
    """47 dB on every frame, 52 on average: a coefficient halfway between two levels may differ."""
    rng = np.random.default_rng(1)
    ours = eight_bits(gpu_attacks.jpeg_of(x, torch.full((len(x),), float(quality))))
    theirs = np.stack([attacks.jpeg(p, rng, quality) for p in real_frames])
    between = psnr(ours, theirs)
    assert between.min() > 47, between
    assert between.mean() > 52, between
    assert between.min() > psnr(theirs, real_frames).min() + 5  # what JPEG itself does is far more


def test_jpeg_takes_a_quality_for_each_picture_and_any_size(x) -> None:
    odd = x[:3, :, :61, :83]
    together = gpu_attacks.jpeg_of(odd, torch.tensor([10.0, 50.0, 90.0]))
    assert together.shape == odd.shape
    for place, quality in enumerate((10.0, 50.0, 90.0)):
        alone = gpu_attacks.jpeg_of(odd[place : place + 1], torch.tensor([quality]))
        torch.testing.assert_close(together[place : place + 1], alone)


@pytest.mark.parametrize("name", ["mean", "median", "equalise"])
def test_filters_and_equalisation_are_opencv_s(x, g, real_frames: np.ndarray, name: str) -> None:
    ours = eight_bits(gpu_attacks.FAMILIES[name](x, torch.ones(len(x)), g))
    assert np.abs(ours.astype(int) - by_opencv(name, real_frames, 1.0)).max() <= 1


@pytest.mark.parametrize("u", [0.0, 0.5, 1.0])
def test_a_blur_is_opencv_s_at_every_severity(x, g, real_frames: np.ndarray, u: float) -> None:
    ours = eight_bits(gpu_attacks.blur(x, torch.full((len(x),), u), g))
    assert np.abs(ours.astype(int) - by_opencv("blur", real_frames, u)).max() <= 1


@pytest.mark.parametrize("u", [0.0, 0.3, 1.0])
def test_clahe_is_opencv_s_to_six_grey_levels(x, g, real_frames: np.ndarray, u: float) -> None:
    ours = eight_bits(gpu_attacks.clahe(x, torch.full((len(x),), u), g))
    apart = np.abs(ours.astype(int) - by_opencv("clahe", real_frames, u))
    assert apart.max() <= 6
    assert apart.mean() < 1


def test_the_wavelet_gives_back_what_was_not_quantised(x) -> None:
    torch.testing.assert_close(gpu_attacks.synthesis(*gpu_attacks.analysis(x)), x)
    fine = gpu_attacks.wavelet_of(x, torch.full((len(x), 1, 1, 1), 1e-5))
    torch.testing.assert_close(fine, x, atol=1e-4, rtol=0)


def test_wavelets_lose_what_jpeg_2000_does_at_6_to_30_to_1(x, g) -> None:
    """Measured on 17 frames of 256 x 256: OpenCV's leaves 41 dB at severity 0.1, 33 dB at 1."""
    hits = [gpu_attacks.jpeg_2000(x, torch.full((len(x),), u), g) for u in (0.0, 0.5, 1.0)]
    left = [psnr(eight_bits(hit), eight_bits(x)).mean() for hit in hits]
    assert 46 > left[0] > left[1] + 2 > left[2] + 4 > 32


# Sizes are no matter of strength, and headers rule a JPEG 2000 of 128 x 128.
COMPARED = sorted(set(families.WEIGHTS) - {"plain", "resample", "jpeg_2000"})


@pytest.mark.parametrize("u", [0.2, 1.0])
def test_resampling_takes_the_sizes_opencv_takes(x, g, real_frames: np.ndarray, u: float) -> None:
    ours = {gpu_attacks.resample(x, either, g).shape[-1] for either in (u, -u)}
    rng = np.random.default_rng(1)
    assert ours == {families.resample(real_frames[0], u, rng).shape[-1] for _ in range(40)}
    assert len(ours) == 2


@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.parametrize("u", [0.2, 1.0])
def test_a_family_is_as_strong_as_opencv_s(
    x, g, real_frames: np.ndarray, name: str, u: float
) -> None:
    """Mean PSNR of what is left, over eight draws: within 2 dB."""
    rng, ours, theirs = np.random.default_rng(1), [], []
    for _ in range(8):
        hit = gpu_attacks.FAMILIES[name](x, severity(name, len(x), u), g)
        ours.append(psnr(eight_bits(hit), real_frames).clip(0, 50).mean())
        hit = np.stack([families.FAMILIES[name](p, u, rng) for p in real_frames])
        theirs.append(psnr(hit, real_frames).clip(0, 50).mean())
    assert abs(np.mean(ours) - np.mean(theirs)) < 2


@pytest.mark.parametrize("name", families.WEIGHTS)
def test_gradients_reach_the_full_frame_and_pictures_stay_on_the_8_bit_grid(
    x, g, name: str
) -> None:
    frames = x.clone().requires_grad_()
    hit = gpu_attacks.FAMILIES[name](frames, severity(name, len(x), 0.5), g)
    assert hit.min() >= 0
    assert hit.max() <= 1
    torch.testing.assert_close((255 * hit).round() / 255, hit, atol=1e-6, rtol=0)
    (hit * torch.randn(hit.shape)).sum().backward()
    assert frames.grad.isfinite().all()
    assert (frames.grad != 0).float().mean() > 0.4  # blackened, covered and clipped parts have none


def test_the_gradient_through_jpeg_is_that_of_doing_nothing(x) -> None:
    """Rounding is passed straight through: what a small change adds is taken as it is."""
    grey = (0.25 + 0.5 * x).clone().requires_grad_()  # away from clipping
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    hit = gpu_attacks.jpeg_of(grey, torch.full((len(x),), 30.0))
    (hit * weights).sum().backward()
    torch.testing.assert_close(grey.grad, weights, atol=1e-4, rtol=1e-4)


def test_the_same_generator_gives_the_same_pictures(x) -> None:
    for name in families.WEIGHTS:
        twice = []
        for _ in range(2):
            g = torch.Generator().manual_seed(3)
            twice.append(gpu_attacks.FAMILIES[name](x, severity(name, len(x), 0.7), g))
        assert torch.equal(*twice), name


def test_augmented_frames_are_frames(x, g) -> None:
    made = gpu_attacks.augment(x, g)
    assert made.shape == x.shape
    assert 0 <= made.min() <= made.max() <= 1
    assert (made - x).abs().mean((1, 2, 3)).gt(0.01).sum() >= len(x) - 1
