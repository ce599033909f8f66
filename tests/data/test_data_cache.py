"""The data cache: built by the real torchvision from raw files, read as it is, and every defect named in one line."""

from __future__ import annotations

import hashlib
import os
import pickle
import socket
import stat
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from command_line_tools import environment
from safetensors.torch import load_file, save_file
from torchvision.datasets import CIFAR10

from lottery.data import cache
from lottery.data.load import load
from lottery.errors import LotteryError


def made_up(shape, count=20):
    generator = torch.Generator().manual_seed(0)
    found = {}
    for part, size in (("train", count), ("test", 10)):
        found[f"{part}_images"] = torch.randint(0, 256, (size, *shape), generator=generator, dtype=torch.uint8)
        found[f"{part}_labels"] = torch.arange(size) % 10
    return found


@pytest.fixture
def offline(monkeypatch):
    """Every request goes to a port where nothing listens."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_present_file_is_used_as_it_is(tmp_path, read_options, offline):
    tensors = made_up((1, 28, 28))
    path = tmp_path / "mnist.safetensors"
    save_file(tensors, path)
    path.chmod(0o444)
    before = path.read_bytes(), path.stat().st_mtime_ns
    data = load(read_options("mnist", validation=5), tmp_path, split_seed=0)
    data.stream(5, 0).batch(0)
    assert data.sizes == {"train": 15, "validation": 5, "test": 10}
    images, labels = next(data.batches("test", 10))
    assert torch.equal(images, tensors["test_images"] / 255)
    assert torch.equal(labels, tensors["test_labels"])
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert sorted(file.name for file in tmp_path.iterdir()) == [".digests", "mnist.safetensors"]


def test_an_altered_file_is_noticed_by_every_study(tmp_path, read_options, caplog):
    """One bit of each training image flipped: another digest, and one line that names the file and the way out."""
    tensors, path = made_up((1, 28, 28)), tmp_path / "mnist.safetensors"
    save_file(tensors, path)
    options, times = read_options("mnist", validation=5), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    before = load(options, tmp_path, split_seed=0)
    assert load(options, tmp_path, split_seed=1).digest == before.digest
    tensors["train_images"][:, 0, 0, 0] ^= 1
    save_file(tensors, path)
    os.utime(path, ns=times)  # neither size nor time tell
    assert not caplog.messages
    altered = [load(options, tmp_path, split_seed=seed).digest for seed in (0, 1)]
    assert before.digest not in altered
    kept = tmp_path / ".digests/mnist.json"
    for line in caplog.messages:
        assert line.startswith(f"{path}: not the data that were first read on 20")
        assert line.endswith(f"restore them, or delete {kept} if these are meant")
    assert len(caplog.messages) == 2
    kept.unlink()
    load(options, tmp_path, split_seed=0)
    kept.write_text("[")
    load(options, tmp_path, split_seed=0)
    assert len(caplog.messages) == 2


def test_a_data_folder_that_is_not_ours_is_read_all_the_same(tmp_path, read_options, caplog):
    save_file(made_up((1, 28, 28)), tmp_path / "mnist.safetensors")
    (tmp_path / ".digests").touch()  # no folder can be made there
    assert load(read_options("mnist", validation=5), tmp_path, split_seed=0).sizes["train"] == 15
    assert not caplog.messages


def write_idx(path, array):
    """The format of MNIST's raw files: magic number, dimensions, bytes; all big-endian."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_built_from_raw_files_beside_it(name, folder, tmp_path, read_options, offline):
    expected = made_up((1, 28, 28))
    for part, prefix in (("train", "train"), ("test", "t10k")):
        raw = tmp_path / folder / "raw"
        write_idx(raw / f"{prefix}-images-idx3-ubyte", expected[f"{part}_images"][:, 0].numpy())
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", expected[f"{part}_labels"].numpy().astype(np.uint8))
    data = load(read_options(name, validation=0), tmp_path, split_seed=0)
    path = tmp_path / f"{name}.safetensors"
    built = load_file(path)
    assert built.keys() == expected.keys()
    assert all(torch.equal(built[key], expected[key]) for key in expected)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([".digests", folder, path.name])
    again = load(read_options(name, validation=0), tmp_path, split_seed=0)
    assert again.digest == data.digest


def test_cifar_is_built_with_channels_first(tmp_path, read_options, monkeypatch, offline):
    """torchvision reads CIFAR's own format and checks md5 sums: here of files of ten images each."""
    expected = made_up((3, 32, 32), count=10)
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()

    def write(name, content):
        data = pickle.dumps(content)  # the format of the original files
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    sums = {}
    for part, name in (("train", "data_batch_1"), ("test", "test_batch")):
        rows = expected[f"{part}_images"].flatten(1).numpy()
        sums[part] = [name, write(name, {"data": rows, "labels": expected[f"{part}_labels"].tolist()})]
    names = write("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR10, "train_list", [sums["train"]])
    monkeypatch.setattr(CIFAR10, "test_list", [sums["test"]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": names})
    load(read_options("cifar10", validation=0), tmp_path, split_seed=0)
    built = load_file(tmp_path / "cifar10.safetensors")
    assert all(torch.equal(built[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100"])
def test_without_file_and_network(name, tmp_path, read_options, offline, capfd):
    folder = tmp_path / "data"
    with pytest.raises(LotteryError) as caught:
        load(read_options(name), folder, split_seed=0)
    message = str(caught.value)
    assert message.startswith(f"{folder / name}.safetensors: not there, and not to be had from torchvision's ")
    assert "paths.data" in message
    assert "\n" not in message
    assert list(folder.iterdir()) == []
    assert capfd.readouterr().out == ""


def test_a_server_that_says_nothing_is_an_error_and_no_wait(tmp_path, read_options, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("urllib.request._opener", None)  # it remembers the proxies of its first use
        monkeypatch.setattr(cache, "DOWNLOAD_SECONDS", 0.2)
        with pytest.raises(LotteryError, match="timed out") as caught:
            load(read_options("mnist"), tmp_path, split_seed=0)
    assert str(tmp_path / "mnist.safetensors") in str(caught.value)
    assert socket.getdefaulttimeout() is None


@pytest.mark.slow
def test_what_killed_downloads_left_is_removed_and_a_running_one_let_be(tmp_path, read_options, offline):
    code = (
        "import sys; from pathlib import Path; from lottery.data.cache import build; build(Path(sys.argv[1]), 'MNIST')"
    )
    old, new = tmp_path / ".mnist.safetensors.old.tmp", tmp_path / ".mnist.safetensors.new.tmp"
    for half in (old, new, tmp_path / ".mnist1d.tmp"):
        half.touch()
    os.utime(old, (0, 0))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        proxy = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-c", code, str(tmp_path / "mnist.safetensors")]
        process = subprocess.Popen(
            command, env=environment(http_proxy=proxy, https_proxy=proxy), stderr=subprocess.PIPE
        )
        silent.accept()  # the download has begun
        [place] = [path for path in tmp_path.iterdir() if path.is_dir()]
        for killed in (False, True):
            if killed:
                process.kill()
                process.communicate()
            with pytest.raises(LotteryError, match="not to be had"):
                load(read_options("mnist"), tmp_path, split_seed=0)
            assert place.exists() is not killed
    assert sorted(path.name for path in tmp_path.iterdir()) == [new.name, ".mnist1d.tmp"]


def test_folder_that_cannot_be_made(tmp_path, read_options, offline):
    (tmp_path / "data").write_text("a file, not a folder")
    with pytest.raises(LotteryError, match=r"^\S*data/mnist\.safetensors: not there"):
        load(read_options("mnist"), tmp_path / "data", split_seed=0)


@pytest.mark.parametrize("kept", [0, 4, 200, 5000])
def test_truncated_file(kept, tmp_path, read_options):
    path = tmp_path / "mnist.safetensors"
    save_file(made_up((1, 28, 28)), path)
    os.truncate(path, kept)
    with pytest.raises(LotteryError, match=r"cannot be read.* delete") as caught:
        load(read_options("mnist"), tmp_path, split_seed=0)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"train_images": torch.zeros(20, 1, 28, 28)}, "train_images: got torch.float32, expected torch.uint8"),
        ({"train_images": torch.zeros(20, 28, 28, dtype=torch.uint8)}, "train_images: got shape [20, 28, 28]"),
        ({"test_labels": torch.zeros(10, dtype=torch.uint8)}, "test_labels: got torch.uint8, expected torch.int64"),
        ({"test_labels": torch.full((10,), 10)}, "test_labels: got labels 10 … 10, expected 0 … 9"),
        ({"train_labels": torch.zeros(19, dtype=torch.int64)}, "train_labels: got shape [19], expected [20]"),
        ({"train_labels": None}, "has no train_labels"),
    ],
)
def test_wrong_content_names_file_and_tensor(change, problem, tmp_path, read_options):
    path = tmp_path / "mnist.safetensors"
    save_file({key: value for key, value in {**made_up((1, 28, 28)), **change}.items() if value is not None}, path)
    with pytest.raises(LotteryError) as caught:
        load(read_options("mnist"), tmp_path, split_seed=0)
    assert str(caught.value).startswith(f"{path}: {problem}")
    assert "\n" not in str(caught.value)
