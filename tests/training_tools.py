"""What several tests of training look at: trainings as they start, the bits of states, masks."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from lottery.compose import checked, composed
from lottery.state import State, state_digest
from lottery.ticket import Mask
from lottery.training.module import MaskedTraining

TINY = {"_target_": "tiny_networks.convolutional", "dropout": 0.25}

# 96 images in batches of 16, so 6 steps an epoch; 30 steps, measured every 10, which the rewind step does not divide.
SMALL = (
    "data=digits", "data.limit=96", "data.validation=40", "model=mlp",
    "train.steps=30it", "train.batch_size=16", "train.eval_every=10it",
    "method.rounds=2", "rewind=weights", "rewind.to=7it", "optim.lr=0.05",
    "probes=none", "tracker=none", "trainer=cpu", "trainer.progress=false",
)  # fmt: skip
AUGMENTED = ("data.flip=true", "data.crop=1")
MOMENTUM = ("optim.momentum=0.9", "optim.weight_decay=1e-3")
STEPWISE = ("schedule.name=multistep", "schedule.milestones=[12it,20it]", "schedule.warmup=9it")


@cache
def base_config(choices: tuple[str, ...]) -> DictConfig:
    """The small study with these options of config groups: composing takes longer than training it."""
    cfg = composed([*SMALL, *choices])
    if not any(choice.startswith("model=") for choice in choices):
        OmegaConf.update(cfg, "model", TINY, merge=False)
    return cfg


def small_config(overrides: tuple[str, ...]) -> DictConfig:
    """The small study; overrides are options of groups (`optim=adam`) and values (`optim.lr=0.1`)."""
    choices = tuple(override for override in overrides if "." not in override.partition("=")[0])
    values = OmegaConf.from_dotlist([override for override in overrides if override not in choices])
    return checked(OmegaConf.merge(base_config(choices), values))  # type: ignore[arg-type]


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """Have studies end without figures and report, which take longer than all else of a small study."""
    patch.setattr("lottery.figures.study.draw_study", lambda folder: [])
    patch.setattr("lottery.study.Study.report", lambda study: None)


@dataclass
class Start:
    """A training at its first step: what the network and the optimizer hold, and the learning rates that follow."""

    module: MaskedTraining
    network: State
    optimizer: State
    rates: list[float] = field(default_factory=list)


def assert_same_bits(one: State, other: State) -> None:
    """Equal names, types, shapes and bits: -0.0 is not 0.0, and a NaN equals itself."""
    assert set(one) == set(other)
    different = [name for name in one if state_digest({"": one[name]}) != state_digest({"": other[name]})]
    assert not different


def pruned_values(state: State, mask: Mask) -> Tensor:
    """All that a state holds where the mask prunes."""
    return torch.cat([state[name][~kept] for name, kept in mask.items()])


def assert_pruned_are_zero(state: State, mask: Mask) -> None:
    """Every pruned weight is +0.0, sign included."""
    values = pruned_values(state, mask)
    assert len(values)
    assert not values.any()
    assert not torch.signbit(values).any()
