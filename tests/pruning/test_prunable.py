"""Which parameters are prunable: weights of convolutions, linear layers and attention, and nothing else."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import all_weights
from torch import nn

from lottery.errors import ConfigError
from lottery.pruning.prunable import prunable


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, bias=True)
        self.norm = nn.BatchNorm2d(8)
        self.block = nn.ModuleDict({"conv": nn.Conv2d(8, 8, 3, groups=8), "shortcut": nn.Conv2d(8, 16, 1)})
        self.layer_norm = nn.LayerNorm(16)
        self.fc = nn.Linear(16, 10)


def test_names_shapes_and_order() -> None:
    assert prunable(Residual()) == {
        "stem.weight": torch.Size((8, 3, 3, 3)),
        "block.conv.weight": torch.Size((8, 1, 3, 3)),
        "block.shortcut.weight": torch.Size((16, 8, 1, 1)),
        "fc.weight": torch.Size((10, 16)),
    }
    assert list(prunable(Residual())) == ["stem.weight", "block.conv.weight", "block.shortcut.weight", "fc.weight"]


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        (["fc"], ["stem.weight", "block.conv.weight", "block.shortcut.weight"]),
        (["*shortcut*", "fc.weight"], ["stem.weight", "block.conv.weight"]),
        (["block.*"], ["stem.weight", "fc.weight"]),
        ("fc", ["stem.weight", "block.conv.weight", "block.shortcut.weight"]),  # `prunable.exclude=fc` is a string
    ],
)
def test_exclude(exclude: list[str], left: list[str]) -> None:
    network = Residual()
    assert list(prunable(network, exclude)) == left
    assert all_weights(network) == 216 + 72 + 128 + 160  # what is never pruned counts all the same


def test_exclude_that_fits_nothing_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"prunable\.exclude: got 'shortcat'.*block\.shortcut"):
        prunable(Residual(), ["shortcat"])


def test_nothing_left() -> None:
    with pytest.raises(ConfigError, match=r"prunable\.exclude"):
        prunable(Residual(), ["*"])
    with pytest.raises(ConfigError, match=r"prunable\.exclude"):
        prunable(nn.Sequential(nn.BatchNorm1d(3), nn.Embedding(5, 3)))


def test_attention() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16)
    assert prunable(layer) == {
        "self_attn.in_proj_weight": torch.Size((24, 8)),
        "self_attn.out_proj.weight": torch.Size((8, 8)),
        "linear1.weight": torch.Size((16, 8)),
        "linear2.weight": torch.Size((8, 16)),
    }
    assert list(prunable(layer, ["self_attn*"])) == ["linear1.weight", "linear2.weight"]
    apart = nn.MultiheadAttention(8, 2, kdim=4, vdim=6)
    assert list(prunable(apart)) == ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]


def test_names_are_those_of_the_state() -> None:
    """A mask is applied to a state by name, so each prunable name must be a key of the state_dict."""
    for network in (Residual(), nn.TransformerEncoderLayer(8, 2), nn.Linear(3, 2), nn.Conv1d(2, 2, 1)):
        state = network.state_dict()
        assert all(state[name].shape == shape for name, shape in prunable(network).items())


def test_tied_weights() -> None:
    language_model = nn.ModuleDict({"embed": nn.Embedding(20, 8), "body": nn.Linear(8, 8), "head": nn.Linear(8, 20)})
    language_model["head"].weight = language_model["embed"].weight
    assert list(prunable(language_model)) == ["body.weight"]
    twins = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    twins[1].weight = twins[0].weight
    with pytest.raises(ConfigError, match=r"0\.weight and 1\.weight are one tied weight"):
        prunable(twins)
    with pytest.raises(ConfigError, match="tied"):
        prunable(twins, ["0"])  # the state would still hold the pruned weights under the other name
    assert list(prunable(twins, ["0", "1"])) == ["2.weight"]
    assert all_weights(twins) == 16 + 8


def test_a_shared_module_is_tied_and_counts_once() -> None:
    shared = nn.Linear(4, 4)
    network = nn.Sequential(shared, nn.ReLU(), shared)
    with pytest.raises(ConfigError, match="tied"):
        prunable(network)
    assert all_weights(network) == 16


def test_a_parametrised_weight_is_an_error() -> None:
    network = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    with pytest.raises(ConfigError, match=r"0\.weight"):
        prunable(network)
    with pytest.raises(ConfigError, match="weight"):
        prunable(nn.LazyLinear(3))


class Standardised(nn.Conv2d):
    """Weight standardisation (Qiao et al. 2019): a weight of 0 is none in what the layer computes with."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


class Padded(nn.Conv2d):
    """Code of its own, that uses the weight itself, as timm's "same" padding does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))


def test_weights_that_are_not_used_themselves() -> None:
    network = nn.Sequential(
        Padded(3, 4, 3, dilation=2, groups=1), Standardised(4, 4, 3), Standardised(4, 4, 1), nn.Linear(4, 2)
    )
    with pytest.raises(ConfigError, match=r"1\.weight and 1 more cannot be pruned: Standardised"):
        prunable(network)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert list(prunable(network, ["1", "2"])) == ["0.weight", "3.weight"]
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
