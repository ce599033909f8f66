"""timm's families under every method: what is prunable, masked trainings, scores, units; the table in docs/models.md.

The networks are those of benchmarks/families.py, which prints that table, in their smaller variants.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from training_tools import MOMENTUM, assert_pruned_are_zero

from lottery.config import settings
from lottery.errors import ConfigError, LotteryError
from lottery.pruning.gradients import snip, synflow
from lottery.pruning.prunable import prunable
from lottery.signals import StopFlag
from lottery.stages.lab import Lab
from lottery.state import State
from lottery.ticket import Mask

ROOT = Path(__file__).parents[2]
TINY = ("data=cifar10", "data.limit=32", "data.validation=16", "model=timm", "train.steps=2it", "train.batch_size=8",
        "train.eval_every=2it", "rewind=init", "rewind.to=init", *MOMENTUM)  # fmt: skip


def families_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("families", ROOT / "benchmarks" / "families.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["families"] = module = importlib.util.module_from_spec(spec)  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


SCRIPT = families_script()
FAMILIES = {family.name: family for family in SCRIPT.FAMILIES}
SMALLER = [
    *("resnet18", "resnetv2_18", "resnext50_32x4d", "regnetx_002", "vgg11_bn", "densenet121", "mobilenetv2_035"),
    *("mobilenetv3_small_050", "efficientnet_lite0", "ghostnet_050", "convnext_atto", "vit_tiny_patch16_224"),
    *("deit3_small_patch16_224", "beit_base_patch16_224", "swin_tiny_patch4_window7_224", "mixer_s16_224"),
    *("mobilevit_xxs", "levit_128s"),
]
QUICK = ("resnet18", "mobilenetv2_035", "vit_tiny_patch16_224")  # the others are slow tests
TRIED = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SMALLER]
# Of a network whose branches or classifier start at zero nothing can be scored: BN's scales to 1, or all weights anew.
ALIVE = {"mixer_s16_224": {"init": "kaiming_normal"}}
# Attention with a single key, on features of one pixel, is 1 whatever the query is: so its weights have no gradient.
BLIND = {"levit_128s": 1}
NEVER = re.compile(r"norm|\bbn\d?\b|bias|_token\b|pos_embed|gamma|\bls\d?\b|relative_position")


@pytest.fixture
def lab_of(configure: Callable[..., DictConfig], tmp_path: Path) -> Callable[..., Lab]:
    """The lab of a family's smaller variant, on made-up images in the format of CIFAR-10."""
    SCRIPT.make_data(tmp_path)

    def make(name: str, **own: str) -> Lab:
        cfg = configure(*TINY, f"paths.data={tmp_path}")
        cfg.model = FAMILIES[name].model(small=True, pretrained=False, **own)
        return Lab(settings(cfg), StopFlag(), lambda *_: None)

    return make


class Used(TorchFunctionMode):
    """Records which tensors convolutions and linear layers are given as weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("conv1d", "conv2d", "conv3d", "linear"):
            self.weights.append((kwargs or {}).get("weight", args[1] if len(args) > 1 else None))
        return func(*args, **(kwargs or {}))


def weights_used(network: nn.Module) -> set[str]:
    """The names of the parameters that one forward pass uses as such weights; a weight that is none would be `None`."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    with Used() as used, torch.no_grad():
        network.train()(torch.randn(4, *SCRIPT.SHAPE, generator=torch.Generator().manual_seed(0)))
    return {names.get(id(weight), "None") for weight in used.weights}


@pytest.mark.parametrize("name", TRIED)
def test_prunable_are_the_weights_of_convolutions_and_linear_layers(name: str) -> None:
    """Seen independently: what the forward pass gives to convolutions and matrix products as a weight, itself."""
    network = FAMILIES[name].network(small=True)
    found = set(prunable(network))
    assert found == weights_used(network)
    assert all(path.endswith(".weight") for path in found)
    assert not [path for path in found if NEVER.search(path)]


@pytest.mark.parametrize("name", TRIED)
def test_a_ticket_trains(lab_of: Callable[..., Lab], name: str) -> None:
    """A random mask (ERK) of 30 %, two steps; and the same without the last unit, where there is one."""
    lab = lab_of(name)
    erk = {"_target_": "lottery.pruning.allocations.erk", "_partial_": True}
    ticket = replace(lab.initial, mask=lab.drawn(lab.counts(erk, 0.3)))
    assert ticket.mask.kept == round(0.3 * ticket.mask.size)
    check_state(lab, lab.train(ticket).state.tensors(), ticket.mask)
    if lab.layers.units:
        shallow = lab.layers.ticket(ticket, list(lab.layers.units)[-1:])
        assert shallow.mask.kept < ticket.mask.kept
        check_state(lab, lab.train(shallow).state.tensors(), shallow.mask)


def check_state(lab: Lab, state: State, mask: Mask) -> None:
    """Pruned weights are zero, what is kept has moved, and another network of this kind takes it all."""
    assert_pruned_are_zero(state, mask)
    initial = lab.initial.state.tensors()
    alive = [name for name, kept in mask.items() if kept.any()]
    assert any(not torch.equal(state[name][mask[name]], initial[name][mask[name]]) for name in alive)
    network = lab.network(1)
    network.load_state_dict(state, strict=True)
    images, _ = next(iter(lab.data.batches("test", 8)))
    with torch.no_grad():
        assert network.eval()(images).isfinite().all()


@pytest.mark.parametrize("name", TRIED)
def test_scores(lab_of: Callable[..., Lab], name: str) -> None:
    """SNIP tells every layer something, once nothing starts at zero; SynFlow's products do not overflow."""
    lab = lab_of(name, **ALIVE.get(name, {"bn_scale": "one"}))
    dense = lab.initial
    sensitivity = lab.scored_by(partial(snip, per_class=1), dense.state, dense.mask)
    flow = lab.scored_by(synflow, dense.state, dense.mask)
    for found in (sensitivity, flow):
        assert found.keys() == lab.initial.mask.keys()
        assert all(score.isfinite().all() and (score >= 0).all() for score in found.values())
        assert any(score.any() for score in found.values())
    assert sum(not score.any() for score in sensitivity.values()) == BLIND.get(name, 0)


@pytest.mark.parametrize("name", ["mobilenetv2_035", "efficientnet_lite0"])
def test_synflow_sees_through_relu6(lab_of: Callable[..., Lab], name: str) -> None:
    """Its activations grow beyond 6, where ReLU6 has no slope: nearly every layer would score 0."""
    lab = lab_of(name)
    assert all(score.any() for score in lab.scored_by(synflow, lab.initial.state, lab.initial.mask).values())


@pytest.mark.parametrize(("name", "kind"), [("resnetv2_50x1_bit", "StdConv2d"), ("nfnet_l0", "ScaledStdConv2d")])
def test_standardised_weights_are_refused(name: str, kind: str) -> None:
    """What such a layer computes with is not zero where its weight is; the rest of the network may be pruned."""
    network = SCRIPT.Family(name).network()
    with pytest.raises(ConfigError, match=f"prunable.exclude: .* cannot be pruned: {kind} computes with other weights"):
        prunable(network)
    standardised = [path for path, module in network.named_modules() if type(module).__name__ == kind]
    assert set(prunable(network, standardised)) == weights_used(network) - {"None"}


def test_a_classifier_of_zeros_leaves_nothing_to_choose_by(lab_of: Callable[..., Lab]) -> None:
    lab = lab_of("mixer_s16_224")
    lab.config.criterion = {"_target_": "lottery.pruning.gradients.snip", "_partial_": True, "per_class": 1}
    with pytest.raises(LotteryError, match=r"every weight of the network scores 0.*model\.init=kaiming_normal"):
        lab.scores(lab.initial.state, lab.initial.mask)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_every_method_runs(name: str, tmp_path: Path) -> None:
    """IMP, random masks, SNIP, SynFlow, GraSP and layer tickets, from configuration to the last round."""
    SCRIPT.make_data(tmp_path)
    assert SCRIPT.runs(FAMILIES[name], tmp_path) == "all"


# -- docs/models.md ---------------------------------------------------------------------------------------------------


def rows() -> dict[str, list[str]]:
    """The table's cells by the network's name."""
    text = (ROOT / "docs" / "models.md").read_text()
    table = text.partition(SCRIPT.BEGIN)[2].partition(SCRIPT.END)[0]
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines() if "`" in line]
    return {row[0].split("`")[1]: row for row in cells}


def test_the_table_has_every_family() -> None:
    assert list(rows()) == list(FAMILIES)


@pytest.mark.parametrize("name", ["mobilenetv2_035", "vit_tiny_patch16_224"])
def test_the_table_s_counts_are_true(name: str) -> None:
    counts = SCRIPT.counts(FAMILIES[name])
    assert rows()[name][: len(counts)] == counts
