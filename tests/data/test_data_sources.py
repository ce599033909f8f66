"""The sources: the two embedded data sets, a user's own, and what is known of the real files."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lottery.config.data import Data
from lottery.data import sources
from lottery.data.cache import generated
from lottery.data.load import load
from lottery.errors import ConfigError, LotteryError
from lottery.models.build import check_fit

NOWHERE = Path("no-such-folder")


def everything(data, split):
    images, labels = zip(*data.batches(split, 1000), strict=True)
    return torch.cat(images), torch.cat(labels)


def test_mnist1d(read_options):
    """4000 + 1000 standardised signals of 40 floats (Greydanus and Kobak 2024), about as many of each class."""
    data = load(read_options("mnist1d", validation=0), NOWHERE, split_seed=0)
    assert data.sizes == {"train": 4000, "validation": 0, "test": 1000}
    parts = [everything(data, split) for split in ("train", "test")]
    images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    assert images.shape == (5000, 1, 40)
    assert images.dtype == torch.float32
    assert abs(float(images.mean())) < 1e-5
    assert abs(float(images.std()) - 1) < 1e-4
    assert torch.bincount(labels).tolist() == [500] * 10
    assert not NOWHERE.exists()


def test_generated_arrays_are_made_once_for_a_user(make_arrays, tmp_path, monkeypatch):
    """The file holds what was generated, to the bit; one that is damaged or altered is made again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = []

    def make():
        made.append(make_arrays(dtype=torch.float32))
        return made[-1]

    digests = {generated("signals", make).digest for _ in range(3)}
    [path] = (tmp_path / "cache").rglob("*.safetensors")
    whole = path.read_bytes()
    assert len(made) == 1
    for damaged in (whole[:-100], whole[:-100] + bytes(100)):
        path.write_bytes(damaged)
        digests.add(generated("signals", make).digest)
        assert path.read_bytes() == whole
    assert (len(made), len(digests)) == (3, 1)


def test_mnist1d_needs_no_folder_that_can_be_written_to(read_options, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    sources._mnist1d.cache_clear()
    assert load(read_options("mnist1d"), NOWHERE, split_seed=0).sizes["test"] == 1000


@pytest.mark.slow
def test_mnist1d_leaves_global_generators_alone_and_is_the_same_twice():
    def generate():
        return sources.make_mnist1d().digest

    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    first = generate()
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
    np.random.seed(6)  # noqa: NPY002
    assert generate() == first


def test_digits(read_options):
    """All 1797 images of scikit-learn once, each with its label; grey levels 0 … 16 can be told from the bytes."""
    from sklearn.datasets import load_digits

    data = load(read_options("digits", validation=0), NOWHERE, split_seed=0)
    assert data.sizes == {"train": 1437, "validation": 0, "test": 360}
    parts = [everything(data, split) for split in ("train", "test")]
    images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    found = load_digits()
    ours = sorted(zip((images * 16).round().int().flatten(1).tolist(), labels.tolist(), strict=True))
    assert ours == sorted(zip(found.data.astype(int).tolist(), found.target.tolist(), strict=True))
    assert images.max() == 1


def test_digits_test_set_is_a_fair_sample(read_options):
    """36 of each class expected; 5 standard deviations of the hypergeometric distribution are 25."""
    _, labels = everything(load(read_options("digits"), NOWHERE, split_seed=0), "test")
    assert (abs(torch.bincount(labels) - 36) < 25).all()
    again = everything(load(read_options("digits"), NOWHERE, split_seed=1), "test")
    assert torch.equal(again[1], labels)


PLUGIN = """
import numpy as np

def stripes(options, folder):
    found = {}
    for part, count in (("train", 30), ("test", 6)):
        labels = np.arange(count) % options.classes
        found[f"{part}_images"] = np.tile(labels[:, None, None, None] * 10, (1, 1, 4, 4)).astype(np.uint8)
        found[f"{part}_labels"] = labels
    return found

def nothing(options, folder):
    return None

def half(options, folder):
    return {"train_images": np.zeros((3, 1, 4, 4), np.uint8)}

number = 3
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A module of a user's own, with options that name one of its functions."""
    (tmp_path / "my_data.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda name: Data(f"my_data.{name}", "stripes", 3, [1, 4, 4], "unit", validation=6)
    sys.modules.pop("my_data", None)


def test_a_users_own_source(plugin, tmp_path):
    data = load(plugin("stripes"), tmp_path, split_seed=0)
    assert data.sizes == {"train": 24, "validation": 6, "test": 6}
    images, labels = data.stream(24, seed=0).batch(0)
    assert torch.equal((images * 25.5).round()[:, 0, 0, 0].long(), labels)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nothing", LotteryError, r"^my_data\.nothing: returned a NoneType, expected a mapping"),
        ("half", LotteryError, r"^my_data\.half: has no train_labels, test_images, test_labels"),
        ("number", ConfigError, r"^data\._target_: got 'my_data\.number', expected the dotted path of a function"),
        ("missing", ConfigError, r"^data\._target_: my_data has no 'missing'"),
    ],
)
def test_a_users_mistakes(name, error, message, plugin, tmp_path):
    with pytest.raises(error, match=message):
        load(plugin(name), tmp_path, split_seed=0)


@pytest.mark.parametrize("target", ["no_such_module.f", "sources", ""])
def test_target_that_does_not_exist(target, tmp_path):
    with pytest.raises(ConfigError, match=r"^data\._target_: "):
        load(Data(target, "x", 2, [1, 4, 4], "unit"), tmp_path, split_seed=0)


def test_a_module_that_cannot_be_imported_is_one_line(tmp_path, monkeypatch):
    """A user's model and data source are looked up as their method is; any error of the import is a ConfigError."""
    (tmp_path / "broken_parts.py").write_text("def broken(:")
    monkeypatch.syspath_prepend(tmp_path)
    message = r"^data\._target_: cannot import 'broken_parts\.source': SyntaxError: invalid syntax"
    with pytest.raises(ConfigError, match=message):
        load(Data("broken_parts.source", "x", 2, [1, 4, 4], "unit"), tmp_path, split_seed=0)
    with pytest.raises(ConfigError, match=r"^model\._target_: cannot import 'broken_parts\.net': SyntaxError"):
        check_fit({"_target_": "broken_parts.net"}, (1, 4, 4), 2)


def test_options_are_checked_before_anything_is_read(read_options):
    with pytest.raises(ConfigError, match=r"^data\.limit"):
        load(read_options("mnist", limit=0), NOWHERE, split_seed=0)


def test_shape_other_than_the_source_yields(read_options):
    with pytest.raises(
        LotteryError, match=r"^lottery\.data\.sources\.digits: train_images: got shape \[1437, 1, 8, 8\]"
    ):
        load(read_options("digits", shape=[1, 28, 28]), NOWHERE, split_seed=0)


# --- The real files ---


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "train_counts", "test_counts"),
    [
        # Label counts of MNIST as every description of it lists them; the other two are balanced by construction.
        (
            "mnist",
            [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
            [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
        ),
        ("fashion_mnist", [6000] * 10, [1000] * 10),
        ("cifar10", [5000] * 10, [1000] * 10),
    ],
)
def test_label_counts(name, train_counts, test_counts, real):
    data = real(name, validation=0)
    assert torch.bincount(data.splits["train"][1]).tolist() == train_counts
    assert torch.bincount(data.splits["test"][1]).tolist() == test_counts


@pytest.mark.data
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_configs_give_the_published_mean_and_deviation(name, real):
    """The numbers in conf/data are those of the whole training set, to the four digits printed."""
    data = real(name, validation=0)
    images = data.splits["train"][0].transpose(0, 1).flatten(1)
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel, mean, std in zip(images, data.options.mean, data.options.std, strict=True):
        share = torch.bincount(channel, minlength=256).double() / len(channel)
        found = float(share @ values)
        assert abs(found - mean) < 1e-4
        assert abs(float(share @ (values - found) ** 2) ** 0.5 - std) < 1e-4


@pytest.mark.data
def test_splits_of_the_papers(real):
    """MNIST 55K/5K/10K and CIFAR-10 45K/5K/10K (Frankle and Carbin 2019)."""
    assert real("mnist").sizes == {"train": 55_000, "validation": 5_000, "test": 10_000}
    assert real("cifar10").sizes == {"train": 45_000, "validation": 5_000, "test": 10_000}


@pytest.mark.data
def test_augmented_cifar_stays_standardised(real):
    """A full-size batch of the real thing: right shape, and (black borders aside) near mean 0 and deviation 1."""
    images, labels = real("cifar10").stream(1000, seed=0).batch(3)
    assert images.shape == (1000, 3, 32, 32)
    assert labels.shape == (1000,)
    assert (images.mean((0, 2, 3)).abs() < 0.4).all()
    assert ((images.std((0, 2, 3)) - 1).abs() < 0.3).all()
