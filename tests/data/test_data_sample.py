"""Samples by class, pixels in [0, 1], and network inputs from pixels: in memory and from a folder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lottery.data.load import load
from lottery.data.order import sampled, subset
from lottery.errors import ConfigError

STANDARD = {"scaling": "standard", "mean": [0.2, 0.5, 0.4], "std": [0.3, 0.2, 0.25]}


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Three classes of 4, 6 and 5 training pictures and 3 test pictures each."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for part, counts in (("train", (4, 6, 5)), ("val", (3, 3, 3))):
        for name, count in zip(("ant", "bee", "cat"), counts, strict=True):
            folder = root / "zoo" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / f"{number}.jpg")
    return root


@pytest.fixture
def folder(tree, read_options):
    def make(**overrides):
        small = {"folder": "zoo", "classes": 3, "shape": [3, 16, 12], "resize": 18, "workers": 0, "scaling": "unit"}
        return load(read_options("imagefolder", **{**small, **overrides}), tree, split_seed=0)

    return make


# --- Which images ---


def test_every_beginning_of_a_sample_is_balanced_and_no_image_comes_twice():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5), [9, 20, 7, 300, 8]))
    chosen = sampled(labels, 5, 7, seed=3, key="k")
    assert len(set(chosen.tolist())) == len(chosen) == 35
    for size in range(36):
        counts = np.bincount(labels[chosen[:size]], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert np.array_equal(chosen[:15], sampled(labels, 5, 3, seed=3, key="k"))
    assert not np.array_equal(chosen, sampled(labels, 5, 7, seed=4, key="k"))
    assert len({tuple(labels[chosen[start : start + 5]]) for start in range(0, 35, 5)}) > 1  # not class by class


def test_all_images_of_a_class_are_equally_likely():
    """Of 10 images of each class 2 are drawn: each in a fifth of 2000 draws, within 5 standard deviations (18)."""
    labels = np.arange(30) % 3
    hits = np.zeros(30)
    for seed in range(2000):
        hits[sampled(labels, 3, 2, seed, "k")] += 1
    assert np.abs(hits - 400).max() < 90


def test_a_subset_is_fixed_ascending_and_not_the_beginning():
    chosen = subset(100, 20, "test")
    assert np.array_equal(chosen, np.unique(chosen))
    assert len(chosen) == 20
    assert chosen.max() > 50
    assert np.array_equal(subset(100, None, "test"), np.arange(100))
    assert np.array_equal(subset(10, 20, "test"), np.arange(10))


# --- Samples ---


@pytest.mark.parametrize("augmentation", [{}, {"flip": True, "crop": 2}])
def test_a_sample_holds_training_images_not_augmented(augmentation, make_dataset):
    data = make_dataset(count=60, validation=10, **STANDARD, **augmentation)
    images, labels = data.sample(3, seed=1)
    assert torch.bincount(labels).tolist() == [3] * 10
    stored, numbers = data.splits["train"]
    scaled = data.scale(stored)
    for image, label in zip(images, labels, strict=True):
        [place] = (scaled == image).flatten(1).all(1).nonzero().flatten().tolist()
        assert numbers[place] == label
    assert same((images, labels), make_dataset(count=60, validation=10, **STANDARD).sample(3, seed=1))
    assert not torch.equal(images, data.sample(3, seed=2)[0])


def test_a_class_with_too_few_images_is_named(make_dataset):
    data = make_dataset(count=45)  # labels go round: classes 5 … 9 have 4 images
    assert data.class_sizes == [5] * 5 + [4] * 5
    assert len(data.sample(4, seed=0)[1]) == 40
    with pytest.raises(ConfigError, match=r"^criterion\.per_class: got 5, expected at most 4: class 5 has 4 training"):
        data.sample(5, seed=0)
    with pytest.raises(ConfigError, match=r"^mine: got 0, expected a number of images ≥ 1$"):
        data.sample(0, seed=0, key="mine")
    with pytest.raises(ConfigError, match=r"got 1, expected at most 0: class 7 has 0 training images$"):
        make_dataset(count=7).sample(1, seed=0)


def test_a_sample_from_a_folder(folder):
    data = folder()
    assert data.class_sizes == [4, 6, 5]
    images, labels = data.sample(4, seed=0)
    assert torch.bincount(labels).tolist() == [4, 4, 4]
    evaluated = {(image.numpy().tobytes(), int(y)) for x, ys in data.batches("train", 4) for image, y in zip(x, ys)}  # noqa: B905
    assert {(image.numpy().tobytes(), int(y)) for image, y in zip(images, labels, strict=True)} < evaluated
    assert same((images, labels), folder(flip=False, workers=1).sample(4, seed=0))
    with pytest.raises(ConfigError, match=r"^criterion\.per_class: got 5, expected at most 4: class 0 has 4"):
        data.sample(5, seed=0)


def test_a_sample_from_a_folder_knows_what_is_held_out(folder):
    data = folder(validation=6)
    assert sum(data.class_sizes) == 9
    trained = {image.numpy().tobytes() for images, _ in data.batches("train", 4) for image in images}
    images, _ = data.sample(min(data.class_sizes), seed=0)
    assert {image.numpy().tobytes() for image in images} <= trained


# --- Pixels ---


def test_pixels_are_the_images_in_order(make_dataset):
    data = make_dataset(**STANDARD)
    images, labels = (torch.cat(tensors) for tensors in zip(*data.pixels("test", 3), strict=True))
    assert torch.equal(images, data.splits["test"][0] / 255)
    assert torch.equal(labels, data.splits["test"][1])
    assert (images.dtype, len(list(data.pixels("test", 3)))) == (torch.float32, 3)
    some = torch.cat([labels for _, labels in data.pixels("train", 4, limit=10)])
    assert torch.equal(some, data.splits["train"][1][subset(50, 10, "train")])


def test_pixels_from_a_folder(folder):
    plain, scaled = folder(), folder(**STANDARD)
    for one, other in zip(plain.batches("test", 4), scaled.pixels("test", 4), strict=True):
        assert same(one, other)
    labels = torch.cat([labels for _, labels in plain.pixels("test", 4, limit=5)])
    assert labels.tolist() == (subset(9, 5, "test") // 3).tolist()


@pytest.mark.parametrize("scaling", [{"scaling": "unit"}, {"scaling": "l2"}, STANDARD])
def test_scaled_pixels_are_the_batches(scaling, make_dataset, folder):
    for data in (make_dataset(count=256, **scaling), folder(**scaling)):
        for split in ("train", "test"):
            for (images, _), (pixels, _) in zip(data.batches(split, 64), data.pixels(split, 64), strict=True):
                before = pixels.clone()
                torch.testing.assert_close(data.scaled(pixels), images, rtol=1e-6, atol=1e-6)
                assert torch.equal(pixels, before)


def test_every_grey_level_survives_the_way_over_pixels(make_dataset):
    """x/255, times 255, is x again in float32, bit for bit: so are the network's inputs."""
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(255 * (levels / 255), levels.float())
    data = make_dataset(**STANDARD)
    images = levels.view(-1, 1, 1, 1).expand(-1, 3, 6, 5)
    assert torch.equal(data.scaled(images / 255), data.scale(images))


@pytest.mark.parametrize("scaling", [{"scaling": "unit"}, {"scaling": "l2"}, STANDARD])
def test_gradients_go_through_the_scaling(scaling, make_dataset):
    data = make_dataset(**scaling)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, 6, 5, generator=generator) * 0.8 + 0.1
    direction, weights = (torch.randn(pixels.shape, generator=generator) for _ in range(2))
    pixels.requires_grad_()
    (weights * data.scaled(pixels)).sum().backward()
    step = 1e-3
    with torch.no_grad():
        ends = [(weights * data.scaled(pixels + sign * step * direction)).double().sum() for sign in (1, -1)]
    assert float((pixels.grad * direction).sum()) == pytest.approx(float(ends[0] - ends[1]) / (2 * step), rel=1e-2)


def test_float_signals_have_no_pixels(make_dataset):
    data = make_dataset(shape=[1, 40], scaling="none")
    with pytest.raises(ConfigError, match=r"^data: got 'made', expected a data set of 8-bit images"):
        data.pixels("test", 4)  # at once, not when the first batch is asked for
    with pytest.raises(ConfigError, match="8-bit images"):
        data.scaled(torch.zeros(2, 1, 40))
    assert data.sample(2, seed=0)[0].shape == (20, 1, 40)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_samples_and_pixels_on_a_gpu_are_those_on_the_cpu(make_dataset):
    data = make_dataset(**STANDARD)
    on_gpu = data.to("cuda")
    for one, other in (
        (on_gpu.sample(3, 5), data.sample(3, 5)),
        (next(on_gpu.pixels("test", 4)), next(data.pixels("test", 4))),
    ):
        assert one[0].is_cuda
        assert same((tensor.cpu() for tensor in one), other)
