"""Each initialiser draws from the distribution its paper gives, and touches nothing else."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lottery.errors import ConfigError
from lottery.models.build import build

RESNET = {"_target_": "lottery.models.resnet.resnet", "depth": 8}
SHAPE = (3, 16, 16)


def layers(network: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def fans(layer: nn.Module) -> tuple[int, int]:
    outputs, inputs, *kernel = layer.weight.shape
    return inputs * math.prod(kernel), outputs * math.prod(kernel)


@pytest.mark.parametrize(
    ("init", "variance"),
    [
        ("glorot_normal", lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
        ("kaiming_normal", lambda fan_in, fan_out: 2 / fan_in),
        ("signed_constant", lambda fan_in, fan_out: 2 / fan_in),
    ],
)
def test_mean_and_variance_are_the_papers(init, variance):
    for layer in layers(build(RESNET | {"init": init}, SHAPE, 10, seed=3)):
        weight = layer.weight.detach().double()
        expected = variance(*fans(layer))
        n = weight.numel()
        assert abs(weight.mean()) < 4 * math.sqrt(expected / n)
        # the variance of a normal sample's mean square is 2 sigma^4 / n; a constant magnitude has none
        assert abs(weight.square().mean() - expected) < 4 * math.sqrt(2 / n) * expected


@pytest.mark.parametrize("init", ["glorot_normal", "kaiming_normal"])
def test_normal_weights_have_normal_tails(init):
    # a truncated or uniform draw of the same variance has none beyond 2.5 sigma; a normal one has 1.24 %
    weight = build(RESNET | {"init": init, "width": 32}, SHAPE, 10, seed=0).stages[2][0].conv2.weight.detach()
    share = (weight.abs() > 2.5 * weight.std()).double().mean().item()
    assert abs(share - 0.01242) < 4 * math.sqrt(0.01242 / weight.numel())


def test_signed_constant_has_one_magnitude_a_layer_and_fair_signs():
    for layer in layers(build(RESNET | {"init": "signed_constant"}, SHAPE, 10, seed=0)):
        weight = layer.weight.detach()
        assert weight.abs().unique().tolist() == [torch.tensor(math.sqrt(2 / fans(layer)[0])).item()]
        n = weight.numel()
        assert abs((weight > 0).sum().item() - n / 2) < 4 * math.sqrt(n / 4)


@pytest.mark.parametrize("init", ["glorot_normal", "kaiming_normal", "signed_constant"])
def test_biases_and_normalisation_start_neutral(init):
    network = build(RESNET | {"init": init}, SHAPE, 10, seed=0)
    assert network.fc.bias.count_nonzero() == 0
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert module.bias.count_nonzero() == 0


def test_default_is_what_the_framework_draws():
    # torch's Linear: U(±1/sqrt(fan_in)) for weights and biases
    torch.manual_seed(11)
    expected = nn.Linear(40, 10)
    network = build({"_target_": "lottery.models.mlp.mlp", "hidden": []}, (1, 40), 10, seed=11)
    assert torch.equal(network.output.weight, expected.weight)
    assert torch.equal(network.output.bias, expected.bias)


def test_uniform_scales_as_openlth_draws_them():
    network = build(RESNET | {"bn_scale": "uniform", "width": 32}, SHAPE, 10, seed=0)
    scales = torch.cat([m.weight.detach() for m in network.modules() if isinstance(m, nn.BatchNorm2d)])
    assert 0 <= scales.min() < 0.05
    assert 0.95 < scales.max() <= 1
    assert abs(scales.mean() - 0.5) < 4 * math.sqrt(1 / 12 / len(scales))
    assert all(m.bias.count_nonzero() == 0 for m in network.modules() if isinstance(m, nn.BatchNorm2d))


def test_unset_scale_leaves_the_library_s_own():
    # timm's ResNet starts its last scales at 0
    timm = {"_target_": "lottery.models.zoo.from_timm", "name": "resnet10t", "bn_scale": None}
    assert build(timm, SHAPE, 10, 0).layer1[0].bn2.weight.count_nonzero() == 0
    assert (build(timm | {"bn_scale": "one"}, SHAPE, 10, 0).layer1[0].bn2.weight == 1).all()
    assert (build(timm | {"init": "kaiming_normal"}, SHAPE, 10, 0).layer1[0].bn2.weight == 1).all()


@pytest.mark.parametrize(
    ("option", "named"),
    [({"init": "kaiming"}, "model.init: got 'kaiming', .*kaiming_normal"), ({"bn_scale": "ones"}, "model.bn_scale")],
)
def test_unknown_names_are_refused(option, named):
    with pytest.raises(ConfigError, match=named):
        build(RESNET | option, SHAPE, 10, 0)


def test_kaiming_fan_out_is_that_of_torchvisions_vgg():
    """Convolutions N(0, 2 / fan_out), linear layers N(0, 0.01²), biases 0."""
    network = build(RESNET | {"init": "kaiming_fan_out", "width": 16}, SHAPE, 100, seed=3)
    for layer in layers(network):
        expected = 1e-4 if isinstance(layer, nn.Linear) else 2 / fans(layer)[1]
        weight, n = layer.weight.detach().double(), layer.weight.numel()
        assert abs(weight.square().mean() - expected) < 4 * math.sqrt(2 / n) * expected
    assert not network.fc.bias.any()
