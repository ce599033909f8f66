"""`build` is a function of its arguments alone, any factory plugs into it, and `check_fit` finds what will not run."""

from __future__ import annotations

import importlib
import random
import sys

import numpy as np
import pytest
import torch
from torch import nn

from lottery.errors import ConfigError, LotteryError
from lottery.models.build import build, check_fit

LENET = {"_target_": "lottery.models.mlp.lenet_300_100", "init": "glorot_normal"}
CONV = {"_target_": "lottery.models.conv.conv", "blocks": 1}
RESNET = {"_target_": "lottery.models.resnet.resnet", "depth": 8, "width": 4, "init": "kaiming_normal"}
TIMM = {"_target_": "lottery.models.zoo.from_timm", "name": "resnet10t", "pretrained": False, "options": {}}
TORCHVISION = {"_target_": "lottery.models.zoo.from_torchvision", "name": "squeezenet1_1", "pretrained": False}
GRAY, RGB = (1, 28, 28), (3, 32, 32)
FAMILIES = [
    (LENET, GRAY),
    (CONV | {"init": "signed_constant"}, (1, 8, 8)),
    (RESNET | {"bn_scale": "uniform"}, RGB),
    ({"_target_": "lottery.models.vgg.vgg", "depth": 11, "width": 4}, RGB),
    ({"_target_": "lottery.models.wide_resnet.wide_resnet", "depth": 10, "widen": 1}, RGB),
    ({"_target_": "lottery.models.airbench.airbench", "width": 4, "init": "kaiming_normal"}, RGB),
    (TIMM, RGB),
    (TORCHVISION, RGB),
]


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(("options", "shape"), FAMILIES, ids=lambda v: v.get("_target_") if isinstance(v, dict) else "")
def test_weights_are_a_function_of_the_seed(options, shape):
    torch.manual_seed(1)
    first = build(options, shape, 10, seed=5)
    torch.manual_seed(2)
    assert same(first, build(options, shape, 10, seed=5))
    other = build(options, shape, 10, seed=6)
    assert all(
        not torch.equal(m.weight, n.weight)
        for m, n in zip(first.modules(), other.modules(), strict=True)
        if isinstance(m, nn.Conv2d | nn.Linear)
    )


def test_numpys_and_pythons_generators_do_not_matter_either_and_stay(tmp_path, monkeypatch):
    source = """
import random, numpy, torch
def drawn(*, shape, classes):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))
    torch.nn.init.constant_(network[1].weight, random.random() + numpy.random.random())
    return network
"""
    (tmp_path / "draws_its_weights.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    options = {"_target_": "draws_its_weights.drawn"}
    random.seed(7), np.random.seed(7)  # noqa: NPY002
    undisturbed = random.random(), np.random.random()  # noqa: NPY002
    random.seed(7), np.random.seed(7)  # noqa: NPY002
    first = build(options, (1, 8, 8), 10, seed=5)
    assert (random.random(), np.random.random()) == undisturbed  # noqa: NPY002
    assert same(first, build(options, (1, 8, 8), 10, seed=5))
    assert not same(first, build(options, (1, 8, 8), 10, seed=6))


@pytest.mark.parametrize("options", [LENET, TIMM])
def test_the_caller_s_random_stream_and_device_do_not_matter_and_stay(options):
    shape = RGB
    expected = build(options, shape, 10, seed=0)
    torch.manual_seed(77)
    undisturbed = torch.rand(4)
    torch.manual_seed(77)
    with torch.device("meta"):
        assert same(build(options, shape, 10, seed=0), expected)
        check_fit(options, shape, 10)
        assert torch.empty(1).device.type == "meta"
    assert torch.equal(torch.rand(4), undisturbed)


def test_networks_come_in_training_mode():
    assert all(module.training for module in build(RESNET, RGB, 10, 0).modules())


PLUGIN = """
import torch
from torch import nn

def tiny(*, shape, classes, width=3):
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(nn.Conv2d(shape[0], width, 3), pool, nn.Flatten(), nn.Linear(width, classes))

def features(*, shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32))

class ReadsValues(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.rates = [rate.item() for rate in torch.linspace(0, 1, 3)]
        self.fc = nn.Linear(64, classes)

    def forward(self, x):
        return self.fc(x.flatten(1)) * self.rates[2]

def reads_values(*, shape, classes):
    return ReadsValues(classes)

def two_outputs(*, shape, classes):
    class Two(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1)), x
    return Two(64, classes)

def two_in_training(*, shape, classes):
    class Two(nn.Linear):
        def forward(self, x):
            logits = super().forward(x.flatten(1))
            return (logits, logits) if self.training else logits
    return Two(64, classes)

def frozen(*, shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes)).requires_grad_(False)

def detached(*, shape, classes):
    class Detached(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1)).detach()
    return Detached(64, classes)

def overwrites(*, shape, classes):
    class Overwrites(nn.Linear):
        def forward(self, x):
            y = super().forward(x.flatten(1)).exp()
            y.add_(1)
            return y
    return Overwrites(64, classes)

def complex_weights(*, shape, classes):
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Parameter(torch.ones(64, classes, dtype=torch.complex64))
        def forward(self, x):
            return (x.flatten(1) @ self.mix.real).real
    return Spectral()

def extra_state(*, shape, classes):
    class Extra(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1))
        def get_extra_state(self):
            return {"seen": 0}
        def set_extra_state(self, state):
            pass
    return Extra(64, classes)

def normalised(*, shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, classes))

def two_types(*, shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, classes).double())

NOT_A_FUNCTION = 3
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_networks"
    sys.modules.pop("my_networks", None)


def test_a_user_s_own_factory_needs_no_edit_here(plugin):
    options = {"_target_": f"{plugin}.tiny", "width": 5, "init": "signed_constant"}
    check_fit(options, GRAY, 4)
    network = build(options, GRAY, 4, seed=1)
    assert network[0].weight.abs().unique().numel() == 1
    assert network(torch.zeros(3, *GRAY)).shape == (3, 4)
    assert same(network, build(options, GRAY, 4, seed=1))


def test_a_network_that_cannot_run_on_meta_is_tried_for_real(plugin):
    options = {"_target_": f"{plugin}.reads_values"}
    module = importlib.import_module(plugin)
    with torch.device("meta"), pytest.raises(RuntimeError):
        module.reads_values(shape=(1, 8, 8), classes=10)
    check_fit(options, (1, 8, 8), 10)
    with pytest.raises(ConfigError, match=r"reads_values.*\(1, 9, 9\)"):
        check_fit(options, (1, 9, 9), 10)


@pytest.mark.parametrize(("options", "shape"), FAMILIES, ids=lambda v: v.get("_target_") if isinstance(v, dict) else "")
def test_check_fit_accepts_what_runs(options, shape):
    check_fit(options, shape, 10)
    with torch.no_grad():
        assert build(options, shape, 10, 0).eval()(torch.zeros(2, *shape)).shape == (2, 10)


def test_networks_of_one_image_size_are_built_for_the_data_s():
    vit = TIMM | {"name": "vit_tiny_patch16_224"}
    check_fit(vit, (1, 32, 48), 10)
    with pytest.raises(ConfigError, match=r"from_timm.*vit_tiny.*\(3, 32, 32\)"):
        check_fit(vit | {"options": {"img_size": 64}}, RGB, 10)


SIZES = pytest.mark.skipif(
    torch.__version__.startswith("2.4."), reason="torch 2.4 checks no sizes of a convolution on the meta device"
)


@pytest.mark.parametrize(
    ("options", "shape", "named"),
    [
        (RESNET | {"depth": 21}, RGB, "model.depth: got 21"),
        (RESNET, (1, 40), r"ResNet-8 takes images.*\(1, 40\)"),
        (TIMM | {"name": "resnet_18"}, RGB, "model.name: got 'resnet_18'.*resnet18"),
        (TIMM | {"options": {"no_such": 1}}, RGB, "from_timm.*no_such"),
        (TORCHVISION | {"name": "squeezenet11"}, RGB, "model.name: got 'squeezenet11'.*squeezenet1_1"),
        (TORCHVISION, GRAY, "squeezenet1_1 takes 3-channel images, the data have 1; model=timm"),
        (TORCHVISION, (3, 4, 4), r"from_torchvision.*\(3, 4, 4\)"),
        (TORCHVISION | {"name": "googlenet", "options": {"init_weights": False}}, RGB, "aux_logits=false"),
        (TORCHVISION | {"name": "fcn_resnet50"}, RGB, "model.name"),
        (CONV | {"block": 2}, RGB, "unexpected keyword argument 'block'; it takes blocks, dropout"),
        ({"_target_": "lottery.models.resnet.resnet"}, RGB, "missing a required argument: 'depth'"),
        ({"_target_": "lottery.models.no_such.net"}, RGB, "model._target_: cannot import 'lottery.models.no_such.net'"),
        ({"_target_": "lottery.models.mlp.nothing"}, RGB, "model._target_.*nothing"),
        ({"_target_": "mlp"}, RGB, "model._target_: got 'mlp'"),
        ({}, RGB, "model._target_: got None"),
        ({"_target_": "my_networks.NOT_A_FUNCTION"}, RGB, "model._target_.*function"),
        ({"_target_": "my_networks.features"}, (1, 8, 8), r"gives \(2, 32\), expected \(2, 10\)"),
        ({"_target_": "my_networks.two_outputs"}, (1, 8, 8), "gives tuple, expected"),
        ({"_target_": "my_networks.two_in_training"}, (1, 8, 8), "gives tuple in training mode, expected"),
        ({"_target_": "my_networks.frozen"}, (1, 8, 8), r"frozen\(\) has no parameter that is trained"),
        ({"_target_": "my_networks.detached"}, (1, 8, 8), r"detached\(\) does not fit.*does not require grad"),
        ({"_target_": "my_networks.overwrites"}, (1, 8, 8), r"overwrites\(\) does not fit.*inplace operation"),
        ({"_target_": "my_networks.complex_weights"}, (1, 8, 8), "'mix' of its state is torch.strided torch.complex64"),
        ({"_target_": "my_networks.extra_state"}, (1, 8, 8), "'_extra_state' of its state is dict, expected dense"),
        ({"_target_": "my_networks.two_types"}, (1, 8, 8), r"two_types\(\) does not fit.*same dtype"),
        pytest.param({"_target_": "my_networks.tiny"}, (1, 2, 2), r"tiny\(\) does not fit.*\(1, 2, 2\)", marks=SIZES),
        (LENET | {"init": "glorot"}, GRAY, "model.init: got 'glorot'.*glorot_normal"),
        (LENET | {"weights": "/no/such.pth"}, GRAY, "model.weights: got '/no/such.pth', expected a file that exists"),
        (LENET | {"weights": "/no/such.bin"}, GRAY, "model.weights.*ending in .safetensors"),
        (TIMM | {"pretrained": True, "init": "kaiming_normal"}, RGB, "overwrite the pretrained weights"),
    ],
)
@pytest.mark.usefixtures("plugin")
def test_check_fit_says_in_one_line_what_is_wrong(options, shape, named):
    with pytest.raises(ConfigError, match=named) as caught:
        check_fit(options, shape, 10)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("plugin")
def test_a_batch_of_one_is_tried_where_one_comes_up():
    options = {"_target_": "my_networks.normalised"}
    check_fit(options, (1, 8, 8), 10)
    with pytest.raises(ConfigError, match=r"does not fit data of shape \(1, 8, 8\), 1 at a time,.*more than 1 value"):
        check_fit(options, (1, 8, 8), 10, batch=1)


def test_the_data_need_a_class():
    with pytest.raises(ConfigError, match=r"data\.classes: got 0"):
        check_fit(LENET, GRAY, 0)


def test_check_fit_of_a_large_network_is_cheap_and_downloads_nothing(monkeypatch):
    # ViT-giant has a billion weights; pretrained weights are fetched when the network is built, not when it is checked
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    check_fit(TIMM | {"name": "vit_giant_patch14_clip_224", "pretrained": True}, (3, 224, 224), 10)


def test_pretrained_weights_that_cannot_be_fetched_are_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(LotteryError, match=r"model.pretrained.*resnet10t.*model.weights=FILE") as caught:
        build(TIMM | {"pretrained": True}, RGB, 10, 0)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, ConfigError)
