"""Iterative magnitude pruning as rounds over the lab (docs/methods/imp.md)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from training_tools import MOMENTUM, Start, assert_pruned_are_zero, assert_same_bits

from lottery.errors import ConfigError
from lottery.methods.imp import IMP
from lottery.stages.lab import Lab
from lottery.stages.round import Round


def kept_and_pruned(round: Round, parent: Round, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """|w| after the parent's training, of what the round keeps and of what it prunes."""
    alive = parent.mask[name]
    magnitude = parent.trained.state.tensors()[name].abs()
    return magnitude[round.mask[name]], magnitude[alive & ~round.mask[name]]


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_each_round_prunes_the_smallest_of_what_the_one_before_left(make_lab: Callable[..., Lab], scope: str) -> None:
    lab = make_lab(*MOMENTUM)
    rounds = list(IMP(rounds=3, rate=0.3, scope=scope)(lab))
    assert [round.index for round in rounds] == [0, 1, 2, 3]
    assert rounds[0].mask == lab.initial.mask
    for parent, round in pairwise(rounds):
        assert round.mask.issubset(parent.mask)
        if scope == "global":
            assert round.mask.kept == parent.mask.kept - round_half_even(0.3 * parent.mask.kept)
        else:
            for name, kept in round.mask.layer_kept.items():
                before = parent.mask.layer_kept[name]
                assert kept == before - round_half_even(0.3 * before)
        pairs = [kept_and_pruned(round, parent, name) for name in round.mask]
        if scope == "global":
            pairs = [(torch.cat([kept for kept, _ in pairs]), torch.cat([pruned for _, pruned in pairs]))]
        assert all(kept.min() >= pruned.max() for kept, pruned in pairs)
        assert_pruned_are_zero(round.trained.state.tensors(), round.mask)


def round_half_even(value: float) -> int:
    return round(value)


def test_reset_gives_every_ticket_the_initial_weights(make_lab: Callable[..., Lab], starts: list[Start]) -> None:
    """T1.2: kept weights, biases and statistics bit for bit, and an empty optimizer."""
    lab = make_lab(*MOMENTUM, "rewind=init", "rewind.to=init")
    initial = lab.network(0).state_dict()
    for round in IMP(rounds=3, rate=0.3)(lab):
        assert_same_bits(starts[-1].network, round.mask.apply(initial))
        assert starts[-1].optimizer == {}
        assert len(starts[-1].rates) == 30


def test_one_shot_scores_the_dense_network_only(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(*MOMENTUM)
    rounds = list(IMP(rounds=3, rate=0.3, one_shot=True)(lab))
    dense = rounds[0].trained.state.tensors()
    for round in rounds[1:]:
        magnitudes = torch.cat([dense[name].abs().flatten() for name in round.mask])
        kept = torch.cat([kept.flatten() for kept in round.mask.values()])
        assert magnitudes[kept].min() >= magnitudes[~kept].max()


def test_learning_rate_rewinding_and_fine_tuning_go_on_from_the_round_before(
    make_lab: Callable[..., Lab], starts: list[Start]
) -> None:
    for preset in ("lr", "finetune"):
        lab = make_lab(*MOMENTUM, f"rewind={preset}", "rewind.to=2ep")
        parent = None
        for round in IMP(rounds=2, rate=0.3)(lab):
            if parent is not None:
                assert_same_bits(starts[-1].network, round.mask.apply(parent.trained.state.tensors()))
                assert round.trained.result["steps"] == 18
            parent = round


def test_momentum_can_be_carried_on_from_round_to_round(make_lab: Callable[..., Lab], starts: list[Start]) -> None:
    lab = make_lab(*MOMENTUM, "rewind=lr", "rewind.to=2ep", "rewind.optimizer=keep")
    parent = None
    for round in IMP(rounds=2, rate=0.3)(lab):
        if parent is not None:
            ended = parent.trained.optimizer_at(30)
            assert ended is not None
            for name, kept in round.mask.items():
                carried = starts[-1].optimizer[f"{name}/momentum_buffer"]
                assert torch.equal(carried, torch.where(kept, ended.tensors()[f"{name}/momentum_buffer"], 0.0))
        parent = round


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"rounds": -1}, "method.rounds"),
        ({"rate": 0.0}, "method.rate"),
        ({"rate": 1.0}, "method.rate"),
        ({"rates": {"fc": 1.5}, "scope": "layer"}, "method.rates.fc"),
        ({"scope": "neuron"}, "method.scope"),
    ],
)
def test_options_out_of_range(options: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}: got .*, expected "):
        IMP(**options)  # type: ignore[arg-type]
