"""What several tests of training look at: trainings as they start, the bits of states, masks."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lottery.state import State, state_digest
from lottery.ticket import Mask
from lottery.training.module import MaskedTraining


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
