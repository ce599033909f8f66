"""Corruptions: moments, closed forms, references, determinism.

The strengths are those of CIFAR-10-C's own script, make_cifar_c.py (Hendrycks and Dietterich 2019).
"""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from lottery.errors import ConfigError
from lottery.probes.corruptions import CORRUPTIONS, SEVERITIES, Corruptions, Normals, corrupted, eight_bits

LEVEL = 1 / 255
SHAPES = [(3, 32, 32), (1, 28, 28), (3, 5, 4), (1, 1, 1)]


def random_images(*shape: int, seed: int = 0) -> Tensor:
    """Photograph-like enough: 8-bit values, all of them in use."""
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)) / 255


def apply(kind: str, severity: int, images: Tensor, size: int | None = None) -> Tensor:
    batches = [(part, torch.zeros(len(part), dtype=torch.long)) for part in images.split(size or len(images))]
    return torch.cat([found for found, _ in corrupted(batches, kind, severity)])


# --- All of them ---


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_results_are_images_of_8_bits(kind: str, shape: tuple[int, ...]) -> None:
    images = random_images(6, *shape)
    before = images.clone()
    for severity in SEVERITIES:
        found = apply(kind, severity, images)
        assert found.shape == images.shape
        assert found.dtype == torch.float32
        assert 0 <= float(found.min()) <= float(found.max()) <= 1
        assert torch.equal((255 * found).round() / 255, found)
        assert torch.equal(images, before)


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("shape", SHAPES[:3])
def test_neither_batches_nor_repetition_change_anything(kind: str, shape: tuple[int, ...]) -> None:
    images = random_images(7, *shape)
    whole = apply(kind, 3, images)
    assert torch.equal(apply(kind, 3, images), whole)
    # Sums may be taken in another order for another batch size: then a value may cross a level.
    assert float((apply(kind, 3, images, size=2) - whole).abs().max()) <= (0 if kind == "noise" else LEVEL + 1e-6)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_higher_severity_is_farther_away(kind: str) -> None:
    images = 0.2 + 0.5 * random_images(20, 3, 32, 32)
    distances = [float((apply(kind, severity, images) - images).abs().mean()) for severity in SEVERITIES]
    assert distances == sorted(distances)
    assert distances[0] > 0
    assert len(set(distances)) == 5


def test_severities_and_images_have_noise_of_their_own() -> None:
    grey = torch.full((2, 1, 28, 28), 0.5)
    found = [image for severity in SEVERITIES for image in apply("noise", severity, grey)]
    for i, one in enumerate(found):
        for other in found[:i]:
            correlation = float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])
            assert abs(correlation) < 5 / 28  # five standard deviations of 784 independent pairs


def test_values_are_cut_off_to_whole_levels() -> None:
    values = torch.tensor([-0.5, 0.0, 0.9 * LEVEL, 1.0 * LEVEL, 100.99 * LEVEL, 254.5 * LEVEL, 1.0, 1.7])
    assert (255 * eight_bits(values)).round().tolist() == [0, 0, 0, 1, 100, 254, 255, 255]
    levels = torch.arange(256) / 255
    assert torch.equal(eight_bits(levels), levels)


# --- Noise ---


@pytest.mark.parametrize(("severity", "sigma"), [(1, 0.04), (2, 0.06), (3, 0.08), (4, 0.09), (5, 0.10)])
def test_noise_has_the_published_strength(severity: int, sigma: float) -> None:
    """On mid-grey nothing is clipped (5 sigma): mean -1/2 level, from cutting off, and variance sigma² + level²/12."""
    found = apply("noise", severity, torch.full((100, 1, 32, 32), 0.5)).double() - 0.5
    count = found.numel()
    expected = (sigma**2 + LEVEL**2 / 12) ** 0.5
    assert float(found.mean()) == pytest.approx(-LEVEL / 2, abs=5 * expected / count**0.5 + 1e-5)
    assert float(found.std()) == pytest.approx(expected, rel=5 / (2 * count) ** 0.5 + 1e-3)


@pytest.mark.parametrize("shape", [(64, 64), (3, 3), (1,)])
def test_the_stream_is_standard_normal(shape: tuple[int, ...]) -> None:
    """Moments of 200 000 draws within five standard errors, neighbours uncorrelated, and the tails."""
    images = torch.empty(200_000 // int(np.prod(shape)), *shape)
    found = Normals(5).like(images).double().flatten()
    count = len(found)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert float(found.pow(power).mean()) == pytest.approx(moment, abs=5 * (variance / count) ** 0.5)
    assert float((found[1:] * found[:-1]).mean()) == pytest.approx(0, abs=5 / count**0.5)
    assert float((found.abs() > 2).double().mean()) == pytest.approx(0.0455, abs=5 * (0.0455 / count) ** 0.5)


def test_the_stream_is_a_function_of_its_seed_alone() -> None:
    images, before = torch.empty(5, 3, 7, 7), torch.get_rng_state()
    whole = Normals(1).like(images)
    stream = Normals(1)
    assert torch.equal(torch.cat([stream.like(part) for part in images.split(2)]), whole)
    assert not torch.equal(Normals(2).like(images), whole)
    assert torch.equal(torch.get_rng_state(), before)


# --- Blur ---


@pytest.mark.parametrize(("severity", "sigma"), [(1, 0.4), (2, 0.6), (3, 0.7), (4, 0.8), (5, 1.0)])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 5, 4)])
def test_blur_is_scipys_filter(severity: int, sigma: float, shape: tuple[int, ...]) -> None:
    """skimage.filters.gaussian, which the script calls, is scipy's gaussian_filter with mode "nearest", truncate 4."""
    images = random_images(3, *shape)
    expected = gaussian_filter(images.double().numpy(), (0, 0, sigma, sigma), mode="nearest", truncate=4.0)
    blurred = CORRUPTIONS["blur"](severity)(images)
    np.testing.assert_allclose(blurred.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_blur_keeps_a_constant_image(severity: int) -> None:
    levels = (torch.arange(256) / 255).view(-1, 1, 1, 1).expand(-1, 3, 6, 6).contiguous()
    assert torch.equal(apply("blur", severity, levels), levels)


# --- Contrast ---


@pytest.mark.parametrize(("severity", "factor"), [(1, 0.75), (2, 0.5), (3, 0.4), (4, 0.3), (5, 0.15)])
def test_contrast_keeps_each_channels_mean_and_scales_its_deviation(severity: int, factor: float) -> None:
    images = random_images(5, 3, 16, 16) * torch.tensor([1.0, 0.6, 0.3]).view(3, 1, 1)
    found = CORRUPTIONS["contrast"](severity)(images)
    torch.testing.assert_close(found.mean((2, 3)), images.mean((2, 3)))
    torch.testing.assert_close(found.std((2, 3)), factor * images.std((2, 3)))
    rounded = apply("contrast", severity, images)
    assert float((rounded - found).abs().max()) <= LEVEL + 1e-6


# --- Brightness ---


@pytest.mark.parametrize(("severity", "added"), [(1, 0.05), (2, 0.1), (3, 0.15), (4, 0.2), (5, 0.3)])
def test_brightness_is_the_standard_librarys_hsv_value(severity: int, added: float) -> None:
    images = random_images(2, 3, 9, 9)
    images[0, :, 0, :3] = torch.tensor([[0.0, 1.0, 0.5]] * 3)  # black, white and grey
    found = CORRUPTIONS["brightness"](severity)(images)
    for before, after in zip(images.movedim(1, -1).reshape(-1, 3), found.movedim(1, -1).reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before.tolist())
        expected = colorsys.hsv_to_rgb(hue, saturation, min(1.0, value + added))
        np.testing.assert_allclose(after.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize(("severity", "added"), [(1, 0.05), (5, 0.3)])
def test_brightness_of_one_channel_is_an_addition(severity: int, added: float) -> None:
    levels = (torch.arange(256) / 255).view(1, 1, 16, 16)
    torch.testing.assert_close(CORRUPTIONS["brightness"](severity)(levels), (levels + added).clamp(max=1))


def test_limit_out_of_range() -> None:
    with pytest.raises(ConfigError, match=r"^limit: got -3, expected a number of test images ≥ 1, or null for all$"):
        Corruptions(limit=-3)
