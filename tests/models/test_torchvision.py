"""torchvision's classification networks: states are kept and loaded with what their hooks need, and a ticket trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models
from training_tools import assert_pruned_are_zero, assert_same_bits

from lottery.config import settings
from lottery.models.build import build
from lottery.models.weights import read
from lottery.signals import StopFlag
from lottery.stages.bench import Bench
from lottery.stages.lab import Lab
from lottery.state import StateRef, restore_

SIZE = 64
QUICK = ["mnasnet0_5", "shufflenet_v2_x0_5", "squeezenet1_1"]
HUGE = "regnet_y_128gf"  # 2.6 GB a copy; the other regnets are the same code
NAMES = [name for name in models.list_models(module=models) if name != HUGE]
LARGEST = 6_000_000  # parameters, of those that are trained
OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": False},
    "inception_v3": {"aux_logits": False, "init_weights": False},
    "densenet121": {"memory_efficient": True},
    **{name: {"image_size": 64} for name in NAMES if name.startswith(("vit_b", "vit_l"))},
}
TOO_SMALL = {"alexnet", "inception_v3"}  # for images of 64 x 64


def model(name: str) -> dict[str, Any]:
    target = "lottery.models.zoo.from_torchvision"
    return {"_target_": target, "name": name, "options": OPTIONS.get(name, {})}


@pytest.fixture
def lab_of(configure: Callable[..., DictConfig], tmp_path: Path) -> Callable[[str], Lab]:
    generator = torch.Generator().manual_seed(0)
    data = {}
    for split, count in {"train": 20, "test": 4}.items():
        data[f"{split}_images"] = torch.randint(256, (count, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
        data[f"{split}_labels"] = torch.arange(count) % 10
    save_file(data, tmp_path / "cifar10.safetensors")

    def make(name: str) -> Lab:
        cfg = configure("data=cifar10", f"paths.data={tmp_path}", "train.steps=2it", "train.batch_size=4",
                        "train.eval_every=2it", "rewind=init", "rewind.to=init")  # fmt: skip
        cfg.data.limit, cfg.data.validation, cfg.data.shape = None, 4, [3, SIZE, SIZE]
        cfg.model = model(name)
        return Lab(settings(cfg), StopFlag(), lambda *_: None)

    return make


def check_a_ticket_trains(lab: Lab) -> None:
    erk = {"_target_": "lottery.pruning.allocations.erk", "_partial_": True}
    ticket = replace(lab.initial, mask=lab.drawn(lab.counts(erk, 0.3)))
    trained = lab.train(ticket)
    state = trained.state.tensors()
    assert_pruned_are_zero(state, ticket.mask)
    assert any(not torch.equal(value, ticket.state.tensors()[name]) for name, value in state.items())
    network = Bench(lab).trained_network(trained)
    assert_same_bits(network.state_dict(), state)


@pytest.mark.parametrize("name", QUICK)
def test_a_ticket_of_a_small_network_trains(lab_of: Callable[[str], Lab], name: str) -> None:
    check_a_ticket_trains(lab_of(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in QUICK])
def test_a_state_of_every_network_is_loaded_and_a_ticket_of_most_trains(
    lab_of: Callable[[str], Lab], name: str
) -> None:
    """Those of more than 6 million parameters are only loaded, without their weights."""
    with torch.device("cpu" if "regnet" in name else "meta"):  # regnets read values while they are built
        network, other = (models.get_model(name, num_classes=10, **OPTIONS.get(name, {})) for _ in range(2))
    restore_(other, {key: value.detach() for key, value in network.state_dict().items()})
    if name not in TOO_SMALL and sum(each.numel() for each in network.parameters()) <= LARGEST:
        check_a_ticket_trains(lab_of(name))


class Versioned(nn.Module):
    """Asks, as torchvision's mnasnets do, which version of it a state is of; of an old one it doubles the scale."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.seen: list[int | None] = []

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, metadata: dict, *further: Any) -> None:
        self.seen.append(metadata.get("version"))
        super()._load_from_state_dict(state, prefix, metadata, *further)


def versioned(*, shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(Versioned(), nn.BatchNorm1d(2))


def test_a_state_is_of_the_networks_version_unless_it_says_otherwise(tmp_path: Path) -> None:
    network = versioned(shape=(), classes=0)
    state = StateRef.of(network.state_dict()).tensors()
    restore_(network, state)
    old = network.state_dict()
    old._metadata["0"]["version"] = 1
    for name, prefix in (("own.pth", ""), ("parallel.pth", "module.")):
        saved = type(old)((prefix + key, value) for key, value in old.items())
        saved._metadata = {(prefix + key).rstrip("."): value for key, value in old._metadata.items()}
        torch.save(saved, tmp_path / name)
        restore_(network, read(str(tmp_path / name)))
    assert network[0].seen == [2, 1, 1]
    build({"_target_": "test_torchvision.versioned", "weights": str(tmp_path / "own.pth")}, (2,), 2, seed=0)
    del state["1.num_batches_tracked"]  # as in files of before torch 0.4.1
    restore_(network, state)
    assert network[0].seen == [2, 1, 1, 2]
