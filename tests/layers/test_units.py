"""Removable units: which ones are found, that the shallow network computes what the silenced one does, and the cost."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from residual_networks import RESIDUAL
from torch import nn
from torchvision.models import VisionTransformer

from lottery.cost.counts import multiply_adds
from lottery.errors import ConfigError, LotteryError
from lottery.layers.removal import Unit, check_removal, dense_form, remove_, shallow, silenced
from lottery.layers.trace import features
from lottery.layers.units import find_units, no_units
from lottery.models.conv import conv
from lottery.models.resnet import resnet, resnet18
from lottery.models.vgg import vgg
from lottery.models.wide_resnet import wide_resnet
from lottery.models.zoo import from_timm, from_torchvision
from lottery.state import state_digest

SHAPE = (3, 32, 32)
IMAGES = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
BLOCK = 4_718_592  # multiply-adds of each identity block of a CIFAR ResNet on 32x32 (docs/methods/layers.md)


def small(depth: int = 20, shortcut: str = "projection", width: int = 16) -> nn.Module:
    return lively_(resnet(shape=SHAPE, classes=10, depth=depth, width=width, shortcut=shortcut))


def timm_network(name: str, **options: Any) -> nn.Module:
    return lively_(from_timm(shape=SHAPE, classes=10, name=name, options=options))


def tiny_vit(name: str = "vit_tiny_patch16_224", **options: Any) -> nn.Module:
    return timm_network(name, patch_size=4, embed_dim=48, num_heads=3, **options)


def lively_(network: nn.Module) -> nn.Module:
    """Random statistics, gains and biases: what is 0 or 1 at initialisation hides mistakes."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim < 2:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return network


def parameters_of(network: nn.Module) -> set[str]:
    return {name for name, _ in network.named_parameters()}


def without(network: nn.Module, units: list[Unit]) -> nn.Module:
    """The shallow network with the dense one's weights: rebuilt, and loaded strictly."""
    small = deepcopy(network)
    for parameter in small.parameters():
        nn.init.zeros_(parameter)
    remove_(small, units)
    small.load_state_dict(shallow(network.state_dict(), units), strict=True)
    return small


def some(units: dict[str, Unit]) -> list[Unit]:
    """Every other one: removed and kept ones follow each other."""
    return list(units.values())[::2]


@torch.no_grad()
def agree(network: nn.Module, units: list[Unit]) -> bool:
    """Whether the shallow network's logits are the dense one's whose units are silenced."""
    network.eval()
    expected = silent(network, units)(IMAGES)
    assert expected.std() > 0
    found = without(network, units).eval()(IMAGES)
    return torch.allclose(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def silent(network: nn.Module, units: list[Unit]) -> nn.Module:
    dense = deepcopy(network)
    dense.load_state_dict(silenced(network.state_dict(), units, parameters_of(network)), strict=True)
    return dense


# -- lottery's own networks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shortcut", ["projection", "pad"])
@pytest.mark.parametrize(("depth", "removable"), [(20, 7), (32, 13), (56, 25), (110, 52)])
def test_cifar_resnets_have_3n_blocks_less_the_two_transitions(depth: int, removable: int, shortcut: str) -> None:
    """docs/methods/layers.md: 13 of ResNet-32, 25 of ResNet-56; never a transition."""
    n = (depth - 2) // 6
    blocks = [f"stages.{stage}.{block}" for stage in range(3) for block in range(n)]
    expected = [name for name in blocks if name not in ("stages.1.0", "stages.2.0")]
    units = find_units(small(depth, shortcut, width=4), SHAPE)
    assert list(units) == expected
    assert len(units) == removable
    assert all(unit.whole and unit.modules == (name,) for name, unit in units.items())


def test_the_tensors_of_a_block_are_its_own_in_the_state_dict() -> None:
    network = small()
    unit = find_units(network, SHAPE)["stages.1.1"]
    assert unit.tensors == tuple(name for name in network.state_dict() if name.startswith("stages.1.1."))
    assert unit.weights == ("stages.1.1.conv1.weight", "stages.1.1.conv2.weight")


def test_other_networks_of_our_own() -> None:
    basic = resnet18(shape=SHAPE, classes=10, width=8)
    wide = wide_resnet(shape=SHAPE, classes=10, depth=16, widen=2)
    assert list(find_units(basic, SHAPE)) == ["stages.0.0", "stages.0.1", "stages.1.1", "stages.2.1", "stages.3.1"]
    assert list(find_units(wide, SHAPE)) == ["stages.0.1", "stages.1.1", "stages.2.1"]
    assert agree(lively_(basic), some(find_units(basic, SHAPE)))
    assert agree(lively_(wide), some(find_units(wide, SHAPE)))


@pytest.mark.parametrize("shortcut", ["projection", "pad"])
def test_shallow_is_dense_with_the_branch_multiplied_by_zero(shortcut: str) -> None:
    """T6.1, bit by bit, with the branch really multiplied; in training mode too, where BN normalises by the batch."""
    network = small(shortcut=shortcut)
    units = some(find_units(network, SHAPE))
    smaller = without(network, units)
    for unit in units:
        network.get_submodule(f"{unit.name}.bn2").register_forward_hook(lambda module, inputs, output: output * 0)
    for training in (False, True):
        assert torch.equal(smaller.train(training)(IMAGES), network.train(training)(IMAGES))


@pytest.mark.parametrize(
    ("depth", "shortcut", "total", "share"),
    [
        (32, "projection", 69_124_736, 0.06826),
        (32, "pad", 68_862_592, 0.06852),
        (56, "projection", 125_747_840, 0.03752),  # section 6 says 3.753 %, which is no quotient of its own numbers
    ],
)
def test_cost_of_a_block(depth: int, shortcut: str, total: int, share: float) -> None:
    """T6.3: shares of all multiply-adds of convolutions and the classifier, and the parameters that go."""
    network = resnet(shape=SHAPE, classes=10, depth=depth, shortcut=shortcut).eval()
    whole = sum(multiply_adds(network, IMAGES).values())
    assert whole == total
    assert round(BLOCK / whole, 5) == share
    parameters = dict(network.named_parameters())
    before = sum(p.numel() for p in parameters.values())
    units = find_units(network, SHAPE)
    for unit in (units["stages.0.0"], units["stages.1.2"], units["stages.2.4"]):
        own = sum(parameters[name].numel() for name in unit.tensors if name in parameters)
        remove_(network, [unit])
        whole -= BLOCK
        before -= own
        assert sum(multiply_adds(network, IMAGES).values()) == whole
        assert sum(p.numel() for p in network.parameters()) == before


# -- networks of timm and torchvision ---------------------------------------------------------------------------------

BLOCKS = {
    "resnet18": 8 - 3,
    "resnet50": 16 - 4,
    "seresnet18": 8 - 3,
    "resnetv2_50": 16 - 4,
    "convnext_atto": 12,
    "convnextv2_atto": 12,
    "efficientnet_lite0": 16 - 7,
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "removable"), BLOCKS.items())
def test_blocks_of_timm(name: str, removable: int) -> None:
    """All blocks but the first of each stage, which changes the shape; in ConvNeXt that is done between the stages."""
    network = timm_network(name)
    units = find_units(network, SHAPE)
    assert len(units) == removable
    assert all(unit.whole and len(unit.weights) >= 2 for unit in units.values())
    firsts = {"layer2.0", "layer3.0", "layer4.0", "stages.1.blocks.0", "stages.2.blocks.0", "blocks.1.0", "blocks.2.0"}
    assert name.startswith("convnext") or firsts.isdisjoint(units)
    assert agree(network, some(units))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "removable"), [("resnet18", 5), ("mobilenet_v2", 10), ("convnext_tiny", 18)])
def test_blocks_of_torchvision(name: str, removable: int) -> None:
    network = lively_(from_torchvision(shape=SHAPE, classes=10, name=name))
    units = find_units(network, SHAPE)
    assert len(units) == removable
    assert agree(network, some(units))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_tiny_patch16_224", {"init_values": 0.1, "drop_path_rate": 0.1}),
        ("deit_tiny_patch16_224", {}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("deit3_small_patch16_224", {}),
    ],
)
def test_vision_transformers_have_two_units_a_block(name: str, options: dict[str, float]) -> None:
    network = tiny_vit(name, **options)
    units = find_units(network, SHAPE)
    assert list(units) == [f"blocks.{block}.{part}" for block in range(12) for part in ("attn", "mlp")]
    attention = units["blocks.3.attn"]
    assert not attention.whole
    assert attention.modules == tuple(f"blocks.3.{part}" for part in ("norm1", "attn", "ls1", "drop_path1"))
    assert attention.weights == ("blocks.3.attn.qkv.weight", "blocks.3.attn.proj.weight")
    assert units["blocks.3.mlp"].weights == ("blocks.3.mlp.fc1.weight", "blocks.3.mlp.fc2.weight")
    assert agree(network, some(units))
    assert agree(network, [units["blocks.2.mlp"]])


def test_a_shallow_transformer_trains() -> None:
    network = tiny_vit(drop_path_rate=0.1)
    units = find_units(network, SHAPE)
    remove_(network, some(units))
    network.train()(IMAGES).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("swinv2_tiny_window8_256", {"embed_dim": 24}),  # normalises after the branch, on windows of its input
        ("mixer_s32_224", {}),  # works on the transposed tokens
        ("resmlp_12_224", {}),  # multiplies a branch by a vector of the block
    ],
)
def test_other_transformers_have_two_units_a_block(name: str, options: dict[str, int]) -> None:
    shape = (3, 64, 64)
    network = lively_(from_timm(shape=shape, classes=10, name=name, options=options))
    units = find_units(network, shape)
    assert len(units) == 2 * sum(len(stage.blocks) for stage in getattr(network, "layers", [network]))  # type: ignore[union-attr,arg-type]
    check_removal(network, units.values(), shape)


def test_torchvisions_attention_gives_a_pair() -> None:
    sizes = {"patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 24, "mlp_dim": 48}
    network = lively_(VisionTransformer(image_size=32, num_classes=10, **sizes))
    nn.init.normal_(network.heads.head.weight)  # zero at the start, as all logits are then
    units = find_units(network, SHAPE)
    assert [unit.weights[0].rpartition(".")[2] for unit in units.values()] == ["in_proj_weight", "weight"] * 2
    assert agree(network, list(units.values()))


# -- every kind of residual network, made by hand ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", RESIDUAL)
def test_units_of_networks_made_by_hand(kind: str) -> None:
    """The name says what is special; what is found is beside it in residual_networks."""
    torch.manual_seed(0)
    make, expected = RESIDUAL[kind]
    network = make()
    units = find_units(network, SHAPE)
    assert {name: unit.modules for name, unit in units.items()} == expected
    for unit in units.values():
        assert agree(network, [unit])
    if units:
        assert agree(network, list(units.values()))


# -- networks without units -------------------------------------------------------------------------------------------


def test_plain_networks_have_none_and_say_what_was_examined() -> None:
    for network, weights in (
        (vgg(shape=SHAPE, classes=10, depth=11), 9),
        (conv(shape=SHAPE, classes=10, blocks=1), 5),
    ):
        assert find_units(network, SHAPE) == {}
        said = no_units(network, SHAPE)
        assert said.startswith(f"examined the {weights} convolution and linear weights of {type(network).__name__}")
        assert said.endswith("no layer's input is added to its output")


def test_a_network_of_transitions_says_so() -> None:
    make, expected = RESIDUAL["shortcuts with weights"]
    assert expected == {}
    assert no_units(make(), SHAPE).endswith("weights of Network; block: the shortcut is not the identity")


def test_images_of_a_wrong_shape() -> None:
    with pytest.raises(ConfigError, match=r"^model: ResNet does not run on images of \[5, 32, 32\]: .*channels"):
        find_units(small(width=4), (5, 32, 32))


# -- what finding leaves as it was ------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_the_network_stays_as_it_is(training: bool) -> None:
    network = small(width=4).train(training)
    network.fc.eval()
    network.conv1.weight.requires_grad_(False)
    before = state_digest(network.state_dict())
    modes = [module.training for module in network.modules()]
    identities = [id(parameter) for parameter in network.parameters()]
    random = torch.get_rng_state()
    units = find_units(network, SHAPE)
    check_removal(network, units.values(), SHAPE)
    no_units(network, SHAPE)
    features(network.eval(), units, IMAGES)
    network.train(training).fc.eval()
    assert state_digest(network.state_dict()) == before
    assert [module.training for module in network.modules()] == modes
    assert [id(parameter) for parameter in network.parameters()] == identities
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert not network.conv1.weight.requires_grad
    assert network.stages[0][0].conv1.weight.requires_grad


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_units_do_not_depend_on_the_weights(value: float) -> None:
    """A ticket's removed units are zero in its states; a training may have blown up."""
    network = small(width=4)
    expected = find_units(network, SHAPE)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.fill_(value)
    assert find_units(network, SHAPE) == expected


def test_units_left_in_a_network_without_some() -> None:
    network = tiny_vit()
    units = find_units(network, SHAPE)
    gone = some(units)
    remove_(network, gone)
    left = {name: unit for name, unit in units.items() if unit not in gone}
    assert find_units(network, SHAPE) == left


# -- states -----------------------------------------------------------------------------------------------------------


def test_states_with_and_without_units() -> None:
    network = small(width=4)
    units = some(find_units(network, SHAPE))
    state = network.state_dict()
    names = list(state)
    gone = {name for unit in units for name in unit.tensors}
    smaller = shallow(state, units)
    assert list(smaller) == [name for name in names if name not in gone] == list(without(network, units).state_dict())
    assert all(torch.equal(smaller[name], state[name]) for name in smaller)  # T6.2's bit-equality
    dense = dense_form({name: tensor + 1 for name, tensor in smaller.items()}, state, units, parameters_of(network))
    assert list(dense) == names
    for name in names:
        if name not in gone:
            assert torch.equal(dense[name], state[name] + 1)
        elif name in parameters_of(network):
            assert not dense[name].any()
        else:
            assert torch.equal(dense[name], state[name])
    assert any(name in gone and name.endswith("running_var") for name in names)


def test_silenced_is_a_private_copy() -> None:
    network = small(width=4)
    before = state_digest(network.state_dict())
    for tensor in silenced(network.state_dict(), some(find_units(network, SHAPE)), parameters_of(network)).values():
        tensor.add_(1)
    assert state_digest(network.state_dict()) == before


def test_removal_keeps_modes() -> None:
    network = tiny_vit().eval()
    remove_(network, some(find_units(network, SHAPE)))
    assert not any(module.training for module in network.modules())


# -- the check before training ----------------------------------------------------------------------------------------


def by_hand(network: nn.Module, path: str) -> Unit:
    tensors = tuple(name for name in network.state_dict() if name.startswith(f"{path}."))
    return Unit(path, (path,), True, tensors, tuple(name for name in tensors if "conv" in name))


def test_a_removal_that_breaks_shapes_is_one_line() -> None:
    network = small(width=4)
    units = [find_units(network, SHAPE)["stages.0.1"], by_hand(network, "stages.1.0")]
    with pytest.raises(ConfigError, match=r"^method\.remove: stages\.1\.0 cannot leave ResNet: .*not run: .*channels"):
        check_removal(network, units, SHAPE)


def test_a_removal_that_is_no_residual_branch_is_one_line() -> None:
    network = small(width=4)
    with pytest.raises(ConfigError, match=r"^method\.remove: bn1 cannot leave ResNet: .*not compute the same"):
        check_removal(network, [by_hand(network, "bn1")], SHAPE)


def test_logits_that_are_not_finite() -> None:
    network = small(width=4)
    units = find_units(network, SHAPE)
    nn.init.constant_(network.fc.bias, float("inf"))
    with pytest.raises(ConfigError, match=r"stages\.0\.0 cannot leave ResNet: the network's logits are not finite"):
        check_removal(network, units.values(), SHAPE)


# -- features ---------------------------------------------------------------------------------------------------------


def test_features_of_blocks() -> None:
    """Each stage's blocks in a row by hand: what goes into one came out of the one before."""
    network = small(width=4).eval()
    units = find_units(network, SHAPE)
    found = features(network, units, IMAGES)
    assert list(found) == list(units)
    with torch.no_grad():
        x = F.relu(network.bn1(network.conv1(IMAGES)))
        for stage, blocks in enumerate(network.stages):
            for number, block in enumerate(blocks):
                y = block(x)
                if (name := f"stages.{stage}.{number}") in units:
                    assert torch.equal(found[name][0], x)
                    assert torch.equal(found[name][1], y)
                x = y


def test_features_of_branches_are_after_the_addition() -> None:
    network = tiny_vit(init_values=0.1).eval()
    found = features(network, find_units(network, SHAPE), IMAGES)
    with torch.no_grad():
        for number, block in enumerate(network.blocks):
            x, middle = found[f"blocks.{number}.attn"]
            assert torch.equal(middle, x + block.ls1(block.attn(block.norm1(x))))
            assert torch.equal(found[f"blocks.{number}.mlp"][0], middle)
            assert torch.equal(found[f"blocks.{number}.mlp"][1], middle + block.ls2(block.mlp(block.norm2(middle))))


def test_features_survive_operations_in_place() -> None:
    """The first block adds to its branch in place, the second one changes in place what the first one gave."""
    make, _ = RESIDUAL["in place everywhere"]
    network = make().eval()
    found = features(network, find_units(network, SHAPE), IMAGES)
    with torch.no_grad():
        x = network.stem(IMAGES)
        y = network.first(x)
        assert torch.equal(found["first"][0], x)
        assert torch.equal(found["first"][1], y)
        assert torch.equal(found["second.conv1"][0], F.silu(y))
        assert torch.equal(found["second.conv1"][1], network.second(y))


def test_features_in_a_network_without_other_units() -> None:
    network = tiny_vit().eval()
    units = find_units(network, SHAPE)
    left = {name: unit for name, unit in units.items() if name != "blocks.0.attn"}
    remove_(network, [units["blocks.0.attn"]])
    found = features(network, left, IMAGES)
    assert list(found) == list(left)
    others = find_units(small(width=4), SHAPE)
    with pytest.raises(LotteryError, match=r"^VisionTransformer has no unit 'stages\.0\.0'$"):
        features(network, {**left, **others}, IMAGES)


def test_features_of_swin_have_one_shape() -> None:
    shape = (3, 64, 64)
    network = from_timm(shape=shape, classes=10, name="swinv2_tiny_window8_256", options={"embed_dim": 24})
    lively_(network).eval()
    images = torch.randn(2, *shape)
    for before, after in features(network, find_units(network, shape), images).values():
        assert before.shape == after.shape
        assert not torch.equal(before, after)


# -- speed and memory -------------------------------------------------------------------------------------------------


def seconds(work: Callable[[], Any]) -> float:
    """Of this process, whatever else the machine does."""
    before = time.process_time()
    work()
    return time.process_time() - before


def test_resnet110_is_searched_in_two_seconds_and_rebuilt_in_one() -> None:
    network = small(110)
    assert seconds(lambda: find_units(network, SHAPE)) < 2
    units = some(find_units(network, SHAPE))
    assert seconds(lambda: without(network, units)) < 1


MEMORY = """
import sys, torch
from torch import nn
from lottery.layers.units import find_units
from lottery.layers.removal import check_removal, remove_, shallow
sys.path.insert(0, sys.argv[1])
from residual_networks import wide_mlp

def peak():  # of this program alone: ru_maxrss may be the parent's
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

def work(width):
    network = wide_mlp(width)
    size, before = sum(p.nbytes for p in network.parameters()), peak()
    units = find_units(network, (1, 1, width))
    assert len(units) == 6
    check_removal(network, units.values(), (1, 1, width))
    remove_(network, list(units.values())[:3])
    return 1 + (peak() - before) / size

torch.set_num_threads(1)
work(64)
print(work(1600))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_at_most_two_networks_and_a_fifth() -> None:
    """Of 123 MB of parameters beside small features: finding, checking and rebuilding, in a process of its own."""
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", MEMORY, here], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 1.5 < float(done.stdout) < 2.2
