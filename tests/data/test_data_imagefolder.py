"""Image folders: the same protocol as in memory, whatever the number of workers, from a real tree of JPEGs."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
from multiprocessing import active_children
from time import monotonic

import numpy as np
import pytest
import torch
from command_line_tools import environment
from PIL import Image
from torchvision import transforms

from lottery.data import digests
from lottery.data.imagefolder import imagefolder
from lottery.data.load import load
from lottery.errors import ConfigError, LotteryError
from lottery.files import file_digest

COUNTS = {"train": {"bee": 5, "ant": 4, "cat": 4}, "val": {"ant": 2, "bee": 1, "cat": 2}}


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A tree of small pictures of different sizes, one of them grey; never changed by a test."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for part, classes in COUNTS.items():
        for name, count in classes.items():
            folder = root / "zoo" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                size = (20 + number, 30) if name != "cat" else (30, 20)
                pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                image = Image.fromarray(pixels)
                (image.convert("L") if number == 3 else image).save(folder / f"{number}.jpg")
    return root


@pytest.fixture
def tree(grown, tmp_path):
    """A copy to be changed."""
    shutil.copytree(grown / "zoo", tmp_path / "zoo")
    return tmp_path


@pytest.fixture
def options(read_options):
    def make(**overrides):
        small = {"folder": "zoo", "classes": 3, "shape": [3, 16, 12], "resize": 18, "workers": 0, "scaling": "unit"}
        return read_options("imagefolder", **{**small, **overrides})

    return make


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_sizes_labels_and_evaluation(grown, options):
    """Evaluation is torchvision's own resize, centre crop and conversion, in the order of the sorted names."""
    data = load(options(), grown, split_seed=0)
    assert data.sizes == {"train": 13, "validation": 0, "test": 5}
    assert (data.classes, data.shape) == (3, (3, 16, 12))
    images, labels = (torch.cat(tensors) for tensors in zip(*data.batches("test", 2), strict=True))
    assert labels.tolist() == [0, 0, 1, 2, 2]
    evaluate = transforms.Compose([transforms.Resize(18), transforms.CenterCrop((16, 12)), transforms.ToTensor()])
    paths = sorted((grown / "zoo" / "val").rglob("*.jpg"))
    assert torch.equal(images, torch.stack([evaluate(Image.open(path).convert("RGB")) for path in paths]))
    assert list(data.batches("validation", 2)) == []


def test_random_access_equals_sequential_access(grown, options):
    data = load(options(validation=3), grown, split_seed=0)
    stream = data.stream(4, seed=1)
    assert stream.steps_per_epoch == 3
    sequential = [stream.batch(step) for step in range(7)]
    jumps = data.stream(4, seed=1)
    for step in (5, 6, 0, 3, 2, 2):
        assert same(jumps.batch(step), sequential[step])
    assert [len(labels) for _, labels in sequential] == [4, 4, 2, 4, 4, 2, 4]


def test_workers_change_nothing(grown, options):
    alone = load(options(), grown, split_seed=0)
    helped = load(options(workers=2), grown, split_seed=0)
    one, two = alone.stream(4, seed=0), helped.stream(4, seed=0)
    for step in (3, 4, 0):
        assert same(one.batch(step), two.batch(step))
    assert all(same(a, b) for a, b in zip(alone.batches("test", 2), helped.batches("test", 2), strict=True))


def test_workers_stop_at_once_with_their_stream(grown, options):
    """Even when the stream is collected as part of a cycle, where torch's own iterators stall for 5 s a worker."""
    stream = load(options(workers=1), grown, split_seed=0).stream(4, seed=0)
    stream.batch(0)
    assert len(active_children()) == 1
    cycle = [stream]
    cycle.append(cycle)
    del stream, cycle
    start = monotonic()
    gc.collect()
    assert active_children() == []
    assert monotonic() - start < 3


def test_a_worker_that_is_killed_is_an_error_within_seconds(grown, options):
    stream = load(options(workers=1), grown, split_seed=0).stream(2, seed=0)
    stream.batch(0)
    [worker] = active_children()
    os.kill(worker.pid, signal.SIGKILL)
    start = monotonic()
    with pytest.raises(LotteryError, match=r"^data\.workers: .* was lost .*use data\.workers=0"):
        list(map(stream.batch, range(1, 100)))  # some batches have been read ahead
    assert monotonic() - start < 30


OWN_SHM = """
import subprocess, sys
from pathlib import Path
from lottery.data.load import load
from lottery.config.data import Data
from lottery.errors import LotteryError

root = Path(sys.argv[1])
options = Data(**{**%r, "workers": 2, "shape": [3, 256, 256], "resize": 256})
for mount in sys.argv[2:]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", mount, "tmpfs", "/dev/shm"], check=True)
    try:
        print(mount, "read", sum(len(labels) for _, labels in load(options, root, 0).batches("test", 5)))
    except LotteryError as error:
        print(mount, error)
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode != 0,
    reason="mounting a small /dev/shm takes root",
)
@pytest.mark.slow
def test_shared_memory_that_is_full_or_missing_is_an_error_within_seconds(grown, options):
    """A batch takes 983 kB. Python and torch alone would wait for ever for the one that could not be handed over."""
    mounts = ["size=16m", "size=256k", "ro"]
    script = OWN_SHM % {key: value for key, value in vars(options()).items()}
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", script, str(grown), *mounts],
        capture_output=True, text=True, timeout=100, env=environment(),
    )  # fmt: skip
    assert done.stderr == ""
    fits, full, missing = done.stdout.splitlines()
    assert fits == "size=16m read 5"
    assert "unable to allocate shared memory" in full
    assert "/dev/shm has 0 of 0 MB free; use data.workers=0, a larger /dev/shm" in full
    assert "(Read-only file system)" in missing


def test_augmentation_is_a_function_of_seed_epoch_and_image(grown, options):
    """The same picture is cut alike whatever the batch size or hold-out, and otherwise in every epoch and seed."""
    data = load(options(), grown, split_seed=0)

    def epoch(stream):
        batches = [stream.batch(step) for step in range(stream.steps_per_epoch)]
        return {image.numpy().tobytes() for images, _ in batches for image in images}

    first = epoch(data.stream(4, seed=0))
    assert len(first) == 13
    assert epoch(data.stream(5, seed=0)) == first
    assert epoch(load(options(limit=6), grown, split_seed=0).stream(6, seed=0)) < first
    assert not epoch(data.stream(4, seed=1)) & first
    second = data.stream(13, seed=0).batch(1)
    assert not {image.numpy().tobytes() for image in second[0]} & first


def test_flip_mirrors_about_half(grown, options):
    """The same draws with and without `flip`: every image is its twin or the twin's mirror image, and both occur."""
    plain = load(options(flip=False), grown, split_seed=0).stream(13, seed=0)
    flipped = load(options(flip=True), grown, split_seed=0).stream(13, seed=0)
    mirrored = []
    for step in range(4):
        for before, after in zip(plain.batch(step)[0], flipped.batch(step)[0], strict=True):
            assert torch.equal(after, before) or torch.equal(after, before.flip(2))
            mirrored.append(torch.equal(after, before.flip(2)))
    assert 13 < sum(mirrored) < 39  # of 52, expected 26 with standard deviation 3.6


def test_global_generators_are_left_alone(grown, options):
    data = load(options(), grown, split_seed=0)
    before = torch.get_rng_state()
    data.stream(4, seed=0).batch(2)
    list(data.batches("test", 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_held_out_images_come_from_the_training_tree(grown, options):
    data = load(options(validation=4), grown, split_seed=0)
    assert data.sizes == {"train": 9, "validation": 4, "test": 5}
    whole = load(options(), grown, split_seed=0)

    def images(source, split):
        return {image.numpy().tobytes() for images, _ in source.batches(split, 4) for image in images}

    assert images(data, "train") | images(data, "validation") == images(whole, "train")
    assert not images(data, "train") & images(data, "validation")
    with pytest.raises(ConfigError, match=r"^data\.validation: got 13"):
        load(options(validation=13), grown, split_seed=0)


def test_digest_sees_names_sizes_and_classes_but_not_the_place(tree, grown, options):
    found = [load(options(), grown, split_seed=0).digest]
    assert load(options(validation=2), tree, split_seed=3).digest == found[0]
    (tree / "zoo/train/ant/0.jpg").rename(tree / "zoo/train/ant/9.jpg")
    found.append(load(options(), tree, split_seed=0).digest)
    with (tree / "zoo/val/bee/0.jpg").open("ab") as file:
        file.write(b"\0")
    found.append(load(options(), tree, split_seed=0).digest)
    for part in ("train", "val"):
        (tree / "zoo" / part / "bee").rename(tree / "zoo" / part / "bug")
    found.append(load(options(), tree, split_seed=0).digest)
    assert len(set(found)) == 4


def flip(path):
    """Change one bit; size and number of files stay."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_digest_is_of_the_bytes(tree, options):
    before = load(options(), tree, split_seed=0).digest
    for name in ("train/ant/0.jpg", "val/cat/1.jpg"):
        flip(tree / "zoo" / name)
        assert load(options(), tree, split_seed=0).digest != before
        flip(tree / "zoo" / name)
        assert load(options(), tree, split_seed=0).digest == before


def test_only_what_changed_is_read_again(tree, grown, options, monkeypatch, caplog):
    """The digests of whole folders are kept with names, sizes and times; a tree that was copied has its own."""
    read = []
    monkeypatch.setattr(digests, "file_digest", lambda path: read.append(path) or file_digest(path))
    for path in (tree / "zoo").rglob("*.jpg"):
        os.utime(path, (1e9, 1e9))
    before = load(options(), tree, split_seed=0).digest
    assert len(read) == 18
    assert load(options(), tree, split_seed=0).digest == before
    assert len(read) == 18
    flip(tree / "zoo/train/ant/0.jpg")
    assert load(options(), tree, split_seed=0).digest != before
    assert {path.parent for path in read[18:]} == {tree / "zoo/train/ant"}
    assert [line for line in caplog.messages if line.startswith(f"{tree / 'zoo'}: not the data that were first read")]
    flip(tree / "zoo/train/ant/0.jpg")
    read.clear()
    assert load(options(), tree, split_seed=0).digest == before, "too fresh to trust its time"
    os.utime(tree / "zoo/train/ant/0.jpg", (1e9, 1e9))
    load(options(), tree, split_seed=0)
    assert read == sorted((tree / "zoo/train/ant").glob("*.jpg"))
    (tree / ".digests/zoo.json").write_text('{"groups": {"train/ant": 3}}')
    assert load(options(), tree, split_seed=0).digest == before


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_picture_is_named_in_one_line(workers, tree, options):
    path = tree / "zoo/val/bee/0.jpg"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(LotteryError) as caught:
        list(load(options(workers=workers), tree, split_seed=0).batches("test", 5))
    assert str(caught.value).startswith(f"{path}: cannot be read as an image")
    assert "\n" not in str(caught.value)


def test_stream_goes_on_once_a_broken_picture_is_mended(tree, options):
    path = tree / "zoo/train/bee/0.jpg"
    whole = path.read_bytes()
    stream = load(options(), tree, split_seed=0).stream(13, seed=0)
    expected = stream.batch(0)
    path.write_bytes(whole[:200])
    with pytest.raises(LotteryError, match="cannot be read as an image"):
        stream.batch(1)
    path.write_bytes(whole)
    assert same(stream.batch(1), load(options(), tree, split_seed=0).stream(13, seed=0).batch(1))
    assert same(stream.batch(0), expected)


def test_wrong_trees(tree, options):
    with pytest.raises(LotteryError, match=r"elsewhere/train: expected a folder of images for each class"):
        load(options(folder="elsewhere"), tree, split_seed=0)
    with pytest.raises(LotteryError, match=r"zoo: got 3 class folders, expected data\.classes=7"):
        load(options(classes=7), tree, split_seed=0)
    (tree / "zoo/val/ant").rename(tree / "zoo/val/eel")
    with pytest.raises(LotteryError, match=r"zoo: train and val have different classes, such as 'ant'"):
        load(options(), tree, split_seed=0)
    shutil.rmtree(tree / "zoo/val")
    with pytest.raises(LotteryError, match=r"zoo/val: expected a folder"):
        load(options(), tree, split_seed=0)


@pytest.mark.parametrize(
    ("key", "overrides"),
    [
        ("crop", {"crop": 4}),
        ("resize", {"resize": 0}),
        ("shape", {"shape": [1, 16, 12]}),
        ("scaling", {"scaling": "none"}),
    ],
)
def test_options_that_do_not_suit_a_folder(key, overrides, grown, options):
    with pytest.raises(ConfigError, match=rf"^data\.{key}: "):
        load(options(**overrides), grown, split_seed=0)


def test_folder_defaults_to_the_name(grown, options):
    assert imagefolder(options(folder="", name="zoo"), grown).train_size == 13


@pytest.mark.slow
def test_nothing_that_workers_sent_is_left_to_the_interpreters_end(grown, options):
    """torch keeps references to it, and where they are freed last each of them prints an ignored exception."""
    script = (
        "import atexit; from torch.multiprocessing.reductions import shared_cache as left\n"
        "atexit.register(lambda: print(len(left)))\n"  # called last
        "from lottery.data.load import load; from lottery.config.data import Data; from pathlib import Path\n"
        f"data = load(Data(**{vars(options(workers=1))!r}), Path({str(grown)!r}), split_seed=0)\n"
        "stream = data.stream(4, seed=0); stream.batch(0); print(len(left) > 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "0"]
    assert done.stderr == ""
