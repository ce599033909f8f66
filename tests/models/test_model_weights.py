"""Weights files: every tensor finds its place or the user is told which does not, and no file can run code."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from pretrained_tools import efficientnet_lite0
from safetensors.torch import save_file

from lottery.errors import ConfigError
from lottery.models.build import build, check_fit
from lottery.models.weights import read, remap_efficientnet_lite0

RESNET = {"_target_": "lottery.models.resnet.resnet", "depth": 8, "width": 4}
TORCHVISION = {"_target_": "lottery.models.zoo.from_torchvision", "name": "squeezenet1_1"}
LITE0 = {"_target_": "lottery.models.zoo.from_timm", "name": "tf_efficientnet_lite0"}
SHAPE = (3, 16, 16)
RGB = (3, 32, 32)


@pytest.fixture
def state():
    return build(RESNET, SHAPE, 10, seed=8).state_dict()


def assert_same(network, state, but=()):
    own = network.state_dict()
    assert own.keys() == state.keys()
    assert [name for name in own if not torch.equal(own[name], state[name])] == list(but)


def write(state, path):
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return str(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_a_file_gives_back_the_network(state, tmp_path, suffix):
    path = write(state, tmp_path / f"weights{suffix}")
    check_fit(RESNET | {"weights": path}, SHAPE, 10)
    assert_same(build(RESNET | {"weights": path, "init": "kaiming_normal"}, SHAPE, 10, seed=0), state)


@pytest.mark.parametrize("outer", ["state_dict", "model"])
def test_checkpoints_and_data_parallel_names_are_unwrapped(state, tmp_path, outer):
    parallel = OrderedDict((f"module.{name}", value) for name, value in state.items())
    path = write({outer: parallel, "epoch": 3}, tmp_path / "checkpoint.pth")
    assert_same(build(RESNET | {"weights": path}, SHAPE, 10, seed=0), state)


def test_tensors_without_counterpart_are_named(state, tmp_path):
    state["fc.scale"] = torch.ones(1)
    state["conv1.weight"] = torch.ones(4, 1, 3, 3)
    del state["bn1.bias"], state["stages.0.0.conv1.weight"]
    path = write(state, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError) as caught:
        build(RESNET | {"weights": path}, SHAPE, 10, seed=0)
    message = str(caught.value)
    assert message.startswith(f"model.weights: {path} does not fit: ")
    assert "conv1.weight is [4, 1, 3, 3] in the file, [4, 3, 3, 3] in the network" in message
    assert "bn1.bias is missing in the file; stages.0.0.conv1.weight is missing in the file; and 1 more" in message
    assert "\n" not in message


def test_extra_tensors_are_named(state, tmp_path):
    path = write(state | {"extra": torch.ones(1)}, tmp_path / "extra.safetensors")
    with pytest.raises(ConfigError, match="extra is not in the network"):
        build(RESNET | {"weights": path}, SHAPE, 10, seed=0)


@pytest.mark.parametrize("classes", [10, 4])
def test_drop_head_keeps_the_network_s_own_classifier(state, tmp_path, classes):
    path = write(state, tmp_path / "weights.safetensors")
    fresh = build(RESNET, SHAPE, classes, seed=0).state_dict()
    expected = state | {name: fresh[name] for name in ("fc.weight", "fc.bias")}
    assert_same(build(RESNET | {"weights": path, "drop_head": True}, SHAPE, classes, seed=0), expected)


def test_another_number_of_classes_needs_drop_head(state, tmp_path):
    path = write(state, tmp_path / "weights.safetensors")
    with pytest.raises(ConfigError, match=r"fc.weight is \[10, 16\] in the file, \[4, 16\].*model.drop_head=true"):
        build(RESNET | {"weights": path}, SHAPE, 4, seed=0)


class Exploit:
    def __reduce__(self):
        return os.mkdir, (os.environ["LOTTERY_EXPLOIT"],)


def test_a_file_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.setenv("LOTTERY_EXPLOIT", str(tmp_path / "exploited"))
    path = write({"conv1.weight": Exploit()}, tmp_path / "evil.pth")
    with pytest.raises(ConfigError, match=r"evil.pth', expected tensors and nothing else") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exploited").exists()


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth"])
def test_a_truncated_file_is_refused(state, tmp_path, name):
    path = Path(write(state, tmp_path / name))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ConfigError, match="tensors and nothing else"):
        read(str(path))


def test_something_else_than_tensors_by_name_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="a state dict"):
        read(write([torch.ones(1)], tmp_path / "list.pt"))


@pytest.mark.parametrize("classes", [1000, 10])
def test_torchvision_s_pretrained_weights_come_from_its_cache(tmp_path, monkeypatch, classes):
    # the library reads a file that is already in its cache without any network
    from torchvision.models import SqueezeNet1_1_Weights

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    cached = build(TORCHVISION, RGB, 1000, seed=4).state_dict()
    torch.save(cached, cache / SqueezeNet1_1_Weights.DEFAULT.url.rpartition("/")[2])
    network = build(TORCHVISION | {"pretrained": True}, RGB, classes, seed=0)
    head = {} if classes == 1000 else {k: v for k, v in network.state_dict().items() if k.startswith("classifier.1.")}
    assert len(head) == (0 if classes == 1000 else 2)
    assert_same(network, cached | head)


def test_timm_s_pretrained_weights_reach_the_network(tmp_path):
    options = {"_target_": "lottery.models.zoo.from_timm", "name": "resnet10t"}
    state = build(options, RGB, 1000, seed=4).state_dict()
    path = write(state, tmp_path / "cached.safetensors")
    local = {"pretrained": True, "options": {"pretrained_cfg_overlay": {"file": path}}}
    assert_same(build(options | local, RGB, 1000, seed=0), state)


@pytest.fixture(scope="module")
def lite0() -> str:
    return str(efficientnet_lite0())


@pytest.mark.data
def test_efficientnet_lite0_tensors_are_renamed_one_to_one(lite0):
    state = read(lite0)
    renamed = remap_efficientnet_lite0(state)
    own = build(LITE0, (3, 224, 224), 1000, seed=0).state_dict()
    # both libraries define their layers in the order in which they run, so the order gives the same pairs as the names
    assert list(renamed) == list(own)
    assert [value.shape for value in renamed.values()] == [value.shape for value in own.values()]
    assert_same(build(LITE0 | {"weights": lite0}, (3, 224, 224), 1000, seed=0), renamed)


@pytest.mark.data
@pytest.mark.parametrize(("photo", "label"), [("china.jpg", "palace"), ("flower.jpg", "daisy")])
def test_efficientnet_lite0_recognises_photographs(lite0, photo, label):
    # what this network is known to say of scikit-learn's two photographs, with its own preprocessing (0.5, 0.5)
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_image
    from timm.data import ImageNetInfo, create_transform

    network = build(LITE0 | {"weights": lite0}, (3, 224, 224), 1000, seed=0).eval()
    transform = create_transform(224, interpolation="bicubic", crop_pct=224 / 256, mean=(0.5,) * 3, std=(0.5,) * 3)
    image = transform(Image.fromarray(np.asarray(load_sample_image(photo))))
    with torch.no_grad():
        best = int(network(image[None]).argmax())
    assert label in ImageNetInfo().index_to_description(best)


@pytest.mark.data
def test_efficientnet_lite0_takes_another_number_of_classes(lite0):
    options = LITE0 | {"weights": lite0, "drop_head": True}
    network = build(options, RGB, 10, seed=0)
    fresh = build(LITE0, RGB, 10, seed=0)
    assert torch.equal(network.classifier.weight, fresh.classifier.weight)
    assert torch.equal(network.conv_head.weight, read(lite0)["_conv_head.weight"])


def test_renaming_leaves_nothing_unnoticed():
    # names of neither pattern survive, and so fail the strict loading
    state = dict.fromkeys(("_blocks.0._se_reduce.weight", "_blocks.16._bn0.bias", "odd"), torch.ones(1))
    renamed = remap_efficientnet_lite0(state)
    assert set(renamed) == {"blocks.0.0._se_reduce.weight", "_blocks.16._bn0.bias", "odd"}
