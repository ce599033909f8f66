"""The cheap probes against closed forms (docs/methods/stability.md)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from lottery.probes.mask import overlap
from lottery.probes.weights import distance
from lottery.stages.bench import Bench
from lottery.stages.round import Round
from lottery.stages.trained import Trained
from lottery.state import StateRef, save_state, state_digest
from lottery.ticket import Mask, Ticket

MakeRound = Callable[..., Round]

LAB = cast(Bench, None)  # these two ask it for nothing


@pytest.fixture
def make_round(tmp_path: Path) -> MakeRound:
    """A round that began with the first weights and ended with the second, as a stage leaves it on disk."""

    def make(mask: dict[str, Tensor], start: dict[str, Tensor], end: dict[str, Tensor]) -> Round:
        folder = tmp_path / state_digest(end)[:12]
        folder.mkdir(exist_ok=True)
        save_state(end, folder / "state.safetensors")
        ticket = Ticket(Mask(mask), StateRef.of(start), step=0, order_step=0, steps=1)
        return Round(0, ticket, Trained(ticket, "key", folder, {"state_digest": state_digest(end)}, False, {}))

    return make


def whole(*weights: float) -> dict[str, Tensor]:
    return {"w": torch.tensor(weights)}


def all_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.ones_like(value, dtype=torch.bool) for name, value in state.items()}


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_angle_is_that_of_the_weight_vectors_whatever_their_length(make_round: MakeRound, scale: float) -> None:
    start, end = whole(1.0, 0.0), whole(scale, scale)
    found = distance(make_round(all_of(start), start, end), None, LAB)
    assert found["angle_from_start"] == pytest.approx(45.0, abs=1e-5)


def test_distance_angle_and_signs_of_known_vectors(make_round: MakeRound) -> None:
    start, end = whole(3.0, 4.0, 0.0), whole(-4.0, 3.0, 0.0)
    found = distance(make_round(all_of(start), start, end), None, LAB)
    assert found["l2_from_start"] == pytest.approx(50**0.5)
    assert found["angle_from_start"] == pytest.approx(90.0)
    assert found["sign_changes"] == pytest.approx(1 / 3)
    same = distance(make_round(all_of(start), start, start), None, LAB)
    assert same == {"l2_from_start": 0.0, "angle_from_start": pytest.approx(0.0, abs=1e-5), "sign_changes": 0.0}


def test_only_kept_weights_count_and_all_layers_together(make_round: MakeRound) -> None:
    mask = {"a": torch.tensor([True, False]), "b": torch.tensor([[False, True]])}
    start = {"a": torch.tensor([3.0, 1e6]), "b": torch.tensor([[1e6, 4.0]]), "bias": torch.tensor([7.0])}
    end = {"a": torch.tensor([0.0, 0.0]), "b": torch.tensor([[0.0, 0.0]]), "bias": torch.tensor([9.0])}
    assert distance(make_round(mask, start, end), None, LAB)["l2_from_start"] == 5.0


def test_nothing_is_said_of_an_empty_ticket(make_round: MakeRound) -> None:
    state = whole(1.0, 2.0)
    assert distance(make_round({"w": torch.zeros(2, dtype=torch.bool)}, state, state), None, LAB) == {}


def test_overlap_of_known_masks(make_round: MakeRound) -> None:
    state = {"a": torch.zeros(8), "b": torch.zeros(4)}
    first = {"a": torch.arange(8) < 4, "b": torch.arange(4) < 4}
    second = {"a": torch.arange(8) % 2 == 0, "b": torch.arange(4) < 1}
    one, two = make_round(first, state, state), make_round(second, state, state)
    found = overlap(two, one, LAB)
    # 2 and 1 weights in common; 4 + 4 kept by the first, 4 + 1 by the second.
    assert found["mask_iou_previous"] == pytest.approx(3 / (8 + 5 - 3))
    # Independent masks of these densities: 8 * 1/2 * 1/2 and 4 * 1 * 1/4 in common.
    assert found["mask_iou_chance"] == pytest.approx(3 / (8 + 5 - 3))
    assert overlap(one, one, LAB)["mask_iou_previous"] == 1.0
    assert overlap(one, None, LAB) == {}
    empty = make_round({name: torch.zeros_like(kept) for name, kept in first.items()}, state, state)
    assert overlap(empty, one, LAB)["mask_iou_previous"] == 0.0
    assert overlap(empty, empty, LAB)["mask_iou_previous"] == 1.0


def test_independent_masks_overlap_as_chance_says(make_round: MakeRound) -> None:
    generator = torch.Generator().manual_seed(0)
    state = {"a": torch.zeros(20000), "b": torch.zeros(30000)}
    rounds = []
    for densities in ((0.5, 0.1), (0.2, 0.3)):
        mask = {
            name: torch.rand(value.shape, generator=generator) < density
            for (name, value), density in zip(state.items(), densities, strict=True)
        }
        rounds.append(make_round(mask, state, state))
    found = overlap(*rounds, LAB)
    # The common weights are a sum of independent draws: 2000 + 900 with standard deviation < 54; the IoU's is < 0.004.
    assert found["mask_iou_previous"] == pytest.approx(found["mask_iou_chance"], abs=4 * 0.004)
    assert found["mask_iou_chance"] == pytest.approx(2900 / (13000 + 13000 - 2900), rel=0.02)
