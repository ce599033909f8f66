"""In-memory data sets: batches by step, augmentation against a plain reference, scalings, digests, refusals."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from lottery.config.data import Data
from lottery.data.order import Split, integers
from lottery.data.transforms import FlipCrop
from lottery.errors import ConfigError, LotteryError

AUGMENTED = {"flip": True, "crop": 2}


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("options", [{}, AUGMENTED, {"shape": [1, 40], "scaling": "none"}])
def test_random_access_equals_sequential_access(options, make_dataset):
    data = make_dataset(**options)
    stream = data.stream(8, seed=3)
    sequential = [stream.batch(step) for step in range(3 * stream.steps_per_epoch)]
    jumps = data.stream(8, seed=3)
    steps = list(range(len(sequential)))
    random.Random(0).shuffle(steps)
    for step in steps:
        assert same(jumps.batch(step), sequential[step])


def test_a_resumed_stream_continues_the_interrupted_one(make_dataset):
    whole = make_dataset(**AUGMENTED).stream(8, seed=0)
    for step in range(10):
        whole.batch(step)
    resumed = make_dataset(**AUGMENTED).stream(8, seed=0)
    assert same(whole.batch(10), resumed.batch(10))


def test_seed_and_epoch_change_order_and_augmentation(make_dataset):
    data = make_dataset(**AUGMENTED)
    stream = data.stream(50, seed=0)
    first, second, other = stream.batch(0), stream.batch(1), data.stream(50, seed=1).batch(0)
    assert not torch.equal(first[1], second[1])
    assert not torch.equal(first[1], other[1])
    # One image throughout: what differs between epochs is then the augmentation alone.
    lone = make_dataset(count=1, **AUGMENTED).stream(1, seed=0)
    assert len({lone.batch(epoch)[0].numpy().tobytes() for epoch in range(20)}) > 5


def test_an_epoch_holds_every_image_once_with_its_label(make_dataset):
    stream = make_dataset(count=50).stream(8, seed=0)
    assert stream.steps_per_epoch == 7
    batches = [stream.batch(7 + position) for position in range(7)]
    assert [len(labels) for _, labels in batches] == [8] * 6 + [2]
    numbers = torch.cat([images[:, 0, 0, 0] * 255 for images, _ in batches]).round().long()
    assert sorted(numbers.tolist()) == list(range(50))
    assert torch.equal(numbers % 10, torch.cat([labels for _, labels in batches]))
    assert make_dataset(count=50).stream(8, seed=0, drop_last=True).steps_per_epoch == 6


def test_streams_leave_global_generators_alone(make_dataset):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    make_dataset(validation=10, **AUGMENTED).stream(8, seed=0).batch(9)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize("padding", ["black", "reflect"])
@pytest.mark.parametrize(("flip", "crop"), [(True, 0), (False, 2), (True, 2), (True, 4)])
def test_augmentation_equals_a_plain_loop(flip, crop, padding, make_arrays):
    """Per image: pad with zeros or by numpy's reflection, cut out at the drawn corner, mirror where drawn."""
    images = make_arrays(40, (3, 6, 5)).train_images
    augment = FlipCrop((3, 6, 5), flip, crop, torch.device("cpu"), padding)
    augment.draw_(40, 7, 3)
    dy, dx, mirror = (integers(40, n, 7, "augment", 3, word) for n, word in
                      ((2 * crop + 1, "dy"), (2 * crop + 1, "dx"), (2, "flip")))  # fmt: skip
    expected = torch.zeros_like(images)
    for i, image in enumerate(images):
        mode = "constant" if padding == "black" else "reflect"
        padded = torch.from_numpy(np.pad(image.numpy(), [(0, 0), (crop, crop), (crop, crop)], mode=mode))
        cut = padded[:, dy[i] : dy[i] + 6, dx[i] : dx[i] + 5]
        expected[i] = cut.flip(2) if flip and mirror[i] else cut
    assert torch.equal(augment(images, slice(0, 40)), expected)
    assert torch.equal(augment(images[8:16], slice(8, 16)), expected[8:16])


def test_alternating_mirrors_an_image_in_every_second_epoch(make_dataset):
    data = make_dataset(flip=True, alternate=True)
    source = data.splits["train"][0] / 255
    mirrored = torch.zeros(4, 50, dtype=torch.bool)
    stream = data.stream(50, seed=0)
    for epoch in range(4):
        images, _ = stream.batch(epoch)
        for image in images:
            (which,) = [
                i for i, each in enumerate(source) if torch.equal(each, image) or torch.equal(each.flip(2), image)
            ]
            mirrored[epoch, which] = not torch.equal(source[which], image)
    assert torch.equal(mirrored[0], ~mirrored[1])
    assert torch.equal(mirrored[::2], mirrored[:1].expand(2, -1))
    assert torch.equal(mirrored[1::2], mirrored[1:2].expand(2, -1))
    assert 10 < mirrored[0].sum() < 40
    again = data.stream(50, seed=0)
    assert torch.equal(again.batch(3)[0], data.stream(50, seed=0).batch(3)[0]), "a function of (seed, step)"
    assert not torch.equal(data.stream(50, seed=1).batch(3)[0], again.batch(3)[0])


def test_padding_is_black_before_scaling(make_dataset):
    """A crop shifted as far as it goes shows (0 - mean)/std at the edge, not 0."""
    data = make_dataset(count=200, crop=2, scaling="standard", mean=[0.5] * 3, std=[0.25] * 3)
    images, _ = data.stream(200, seed=0).batch(0)
    assert images.min() == -2
    assert (images[:, :, 0] == -2).all(2).all(1).any()


def test_evaluation_is_ordered_and_not_augmented(make_dataset):
    data = make_dataset(validation=10, **AUGMENTED)
    assert data.sizes == {"train": 40, "validation": 10, "test": 7}
    for split, size in data.sizes.items():
        batches = list(data.batches(split, 4))
        assert [len(labels) for _, labels in batches] == [4] * (size // 4) + [size % 4] * (size % 4 > 0)
        images, labels = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
        source, numbers = data.splits[split]
        assert torch.equal(images, source / 255)
        assert torch.equal(labels, numbers)
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
    assert list(make_dataset().batches("validation", 4)) == []


def test_batches_are_the_callers_to_change(make_dataset):
    data = make_dataset(shape=[1, 40], scaling="none")
    for read in (lambda: next(data.batches("test", 4)), lambda: data.stream(4, 0).batch(0)):
        expected = [tensor.clone() for tensor in read()]
        for tensor in read():
            tensor.zero_()
        assert same(read(), expected)


def test_held_out_images_are_never_trained_on(make_dataset):
    data = make_dataset(count=50, validation=10, limit=25, split_seed=4)
    stream = data.stream(25, seed=0)
    trained = {int(number) for epoch in range(4) for number in (stream.batch(epoch)[0][:, 0, 0, 0] * 255).round()}
    held_out = {
        int(number) for images, _ in data.batches("validation", 10) for number in (images[:, 0, 0, 0] * 255).round()
    }
    split = Split.draw(50, 10, 25, 4)
    assert trained == set(split.train.tolist())
    assert held_out == set(split.validation.tolist())


# --- Scaling ---


def test_unit_and_standard_scaling(make_dataset):
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    unit, _ = next(make_dataset(scaling="unit").batches("test", 7))
    standard, _ = next(make_dataset(scaling="standard", mean=mean, std=std).batches("test", 7))
    expected = (unit.double() - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(standard.double(), expected, rtol=1e-6, atol=1e-6)
    assert unit.max() <= 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_l2_scaling_gives_every_image_norm_one_and_keeps_its_direction(dtype, make_arrays):
    arrays = make_arrays(dtype=dtype)
    arrays.test_images[0] = 0
    data = arrays.dataset(Data("none", "made", 10, [3, 6, 5], "l2"), Split.draw(50, 0, None, 0))
    images, _ = next(data.batches("test", 7))
    torch.testing.assert_close(images.flatten(1).norm(dim=1), torch.tensor([0.0] + [1.0] * 6))
    ratio = images[1:] / arrays.test_images[1:].float().clamp(min=1)
    assert (ratio.flatten(1)[:, 1:].std(1) < 1e-6).all()


@pytest.mark.parametrize(
    ("scaling", "dtype"), [("none", torch.uint8), ("unit", torch.float32), ("standard", torch.float32)]
)
def test_scaling_must_suit_the_type(scaling, dtype, make_arrays):
    options = Data("none", "made", 10, [3, 6, 5], scaling, [0.5] * 3, [0.5] * 3)
    with pytest.raises(ConfigError, match=rf"^data\.scaling: got '{scaling}', expected .* for {dtype} images$"):
        make_arrays(dtype=dtype).dataset(options, Split.draw(50, 0, None, 0))


# --- Digest ---


def test_digest_is_of_the_source_alone(make_dataset):
    digest = make_dataset().digest
    assert len(digest) == 64
    assert digest == make_dataset(validation=10, limit=5, split_seed=3, **AUGMENTED).digest
    assert digest == make_dataset().to("cpu").digest


@pytest.mark.parametrize("name", ["train_images", "train_labels", "test_images", "test_labels"])
def test_digest_sees_one_changed_value(name, make_arrays):
    arrays, changed = make_arrays(), make_arrays()
    getattr(changed, name).view(-1)[3] += 1
    assert arrays.digest != changed.digest


def test_digest_sees_shape_and_type(make_arrays):
    arrays = make_arrays()
    turned = replace(arrays, train_images=arrays.train_images.view(50, 3, 5, 6))
    retyped = replace(arrays, train_images=arrays.train_images.view(torch.int8))
    assert len({arrays.digest, turned.digest, retyped.digest}) == 3


# --- Refusals ---


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("train_images", lambda x: x.double(), "torch.float64"),
        ("test_images", lambda x: x.float(), "torch.float32"),
        ("train_images", lambda x: x[:, :, :5], r"shape \[50, 3, 5, 5\], expected \[N, 3, 6, 5\]"),
        ("test_images", lambda x: x[:0], r"shape \[0, 3, 6, 5\]"),
        ("train_images", lambda x: x[:, 0], r"shape \[50, 6, 5\]"),
        ("train_labels", lambda y: y.int(), "torch.int32"),
        ("train_labels", lambda y: y[:-1], r"shape \[49\], expected \[50\]"),
        ("test_labels", lambda y: y + 4, "labels 4 … 10, expected 0 … 9"),
        ("test_labels", lambda y: y - 1, "labels -1 … 5"),
    ],
)
def test_wrong_arrays_are_named_in_one_line(name, change, problem, make_arrays):
    arrays = make_arrays()
    arrays = replace(arrays, **{name: change(getattr(arrays, name))})
    with pytest.raises(LotteryError, match=problem) as caught:
        arrays.dataset(Data("none", "made", 10, [3, 6, 5], "unit"), Split.draw(50, 0, None, 0))
    assert str(caught.value).startswith(f"made-up arrays: {name}: got ")
    assert "\n" not in str(caught.value)


def test_undefined_values_are_refused(make_arrays):
    arrays = make_arrays(dtype=torch.float32)
    arrays.train_images[3, 0, 0, 0] = float("nan")
    with pytest.raises(LotteryError, match="train_images: got infinite or undefined"):
        arrays.dataset(Data("none", "made", 10, [3, 6, 5], "none"), Split.draw(50, 0, None, 0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_on_a_gpu_are_those_on_the_cpu(make_dataset):
    data = make_dataset(scaling="standard", mean=[0.5] * 3, std=[0.3] * 3, **AUGMENTED)
    on_gpu = data.to("cuda")
    for step in (0, 5, 6, 40):
        images, labels = on_gpu.stream(8, 0).batch(step)
        assert images.is_cuda
        assert labels.is_cuda
        assert same((images.cpu(), labels.cpu()), data.stream(8, 0).batch(step))
