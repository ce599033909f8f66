"""Barriers: closed forms, brute force, batch normalisation, long paths."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from tiny_networks import convolutional
from torch import Tensor, nn

from lottery.errors import ConfigError, LotteryError
from lottery.stability.connectivity import (
    LinearPath,
    Score,
    along,
    barrier,
    between,
    highest,
    normalised,
    recomputed,
    scores,
    states_at_once,
)
from lottery.state import State
from lottery.ticket import Mask


def network(seed: int) -> nn.Module:
    """With statistics that are not the initial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = convolutional(shape=(1, 8, 8), classes=3)
        made(torch.randn(16, 1, 8, 8))
    return made


def batches(count: int = 3, size: int = 10) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(count * size - 3, 1, 8, 8, generator=generator)
    labels = torch.randint(0, 3, (len(images),), generator=generator)
    return list(zip(images.split(size), labels.split(size), strict=True))


def point(w: float) -> State:
    return {"w": torch.tensor([w], dtype=torch.float64)}


def double_well(states: Sequence[State]) -> list[Score]:
    return [(float((state["w"] ** 2 - 1) ** 2), 0.0) for state in states]


# -- closed forms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("points", [2, 7, 30])
def test_barrier_of_a_convex_loss_is_half_the_difference(points: int) -> None:
    """T2.7: linear regression; the maximum is at an end. And it is what 10,000 points find."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(50, *shape, generator=generator, dtype=torch.float64) for shape in ((4,), ()))
    ends = [{"w": torch.randn(4, generator=generator, dtype=torch.float64)} for _ in range(2)]

    def loss(states: Sequence[State]) -> list[Score]:
        return [(float(((x @ state["w"] - y) ** 2).mean()), 0.0) for state in states]

    curve = along(LinearPath(ends, points), loss)
    expected = abs(loss(ends)[0][0] - loss(ends)[1][0]) / 2
    assert curve.barriers("loss") == [pytest.approx(expected, rel=1e-14)]
    if points == 30:
        fine = [loss([{"w": (1 - t) * ends[0]["w"] + t * ends[1]["w"]}])[0][0] for t in torch.linspace(0, 1, 10_000)]
        assert curve.barriers("loss")[0] == pytest.approx(max(fine) - (fine[0] + fine[-1]) / 2, rel=1e-6)


def test_barrier_of_the_double_well() -> None:
    """T2.7: 1 where the middle is on the grid; 30 points lie 1/29 beside it, where the loss is (1 - 1/29²)²."""
    ends = [point(-1), point(1)]
    assert along(LinearPath(ends, 31), double_well).barriers("loss") == [1.0]
    missed = along(LinearPath(ends, 30), double_well).barriers("loss")
    assert missed == [pytest.approx((1 - 1 / 29**2) ** 2)]
    assert 0.99 < missed[0] < 1


def test_identical_copies_have_no_barrier() -> None:
    """T2.4, to the bit."""
    state = network(0).state_dict()
    same = copy.deepcopy(state)
    curve = along(LinearPath([state, same], 5), lambda states: scores(network(1), states, batches()))
    assert curve.barriers("loss") == curve.barriers("error") == [0.0]
    assert len(set(curve.loss)) == 1


def test_barrier_is_never_negative() -> None:
    assert barrier([0.1, 0.0, 0.3]) == pytest.approx(0.1)  # half the difference of the ends
    assert barrier([0.2, 0.9, 0.4]) == pytest.approx(0.6)


def test_a_loss_that_is_no_number_is_an_infinite_barrier() -> None:
    assert barrier([1.0, math.nan, 1.0]) == math.inf
    assert math.isnan(barrier([math.nan, 1.0, 1.0]))
    assert math.isnan(highest([0.1, math.nan]))
    assert math.isnan(highest([math.nan, 0.1]))
    assert highest([0.1, 0.3]) == 0.3


# -- states on a line -------------------------------------------------------------------------------------------------


def test_states_between_two_networks() -> None:
    one, other = network(0).state_dict(), network(1).state_dict()
    other["bn1.num_batches_tracked"] += 40
    quarter = between(one, other, 0.25)
    for name, value in quarter.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.75 * one[name] + 0.25 * other[name])
    assert quarter["bn1.num_batches_tracked"] == one["bn1.num_batches_tracked"]
    assert quarter["bn1.num_batches_tracked"].dtype == torch.int64
    for alpha, end in ((0.0, one), (1.0, other)):
        assert all(torch.equal(value, end[name]) for name, value in between(one, other, alpha).items())


def test_weights_pruned_in_both_stay_zero_and_ends_are_not_touched() -> None:
    one, other = network(0).state_dict(), network(1).state_dict()
    mask = Mask({"conv2.weight": torch.rand(8, 4, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.3})
    masked = [mask.apply(one), mask.apply(other)]
    before = copy.deepcopy(masked)
    for state in LinearPath(masked, 6).states():
        assert not state["conv2.weight"][~mask["conv2.weight"]].any()
        for value in state.values():
            value.fill_(7)
    assert all(
        torch.equal(value, old[name]) for now, old in zip(masked, before, strict=True) for name, value in now.items()
    )


def test_a_path_of_several_networks() -> None:
    """Each line has its own barrier; joints are measured once."""
    curve = along(LinearPath([point(-1), point(1), point(1), point(0)], 11), double_well, at_once=4)
    assert len(curve.loss) == len(curve.error) == 31
    assert curve.barriers("loss") == [pytest.approx(1), pytest.approx(0, abs=1e-15), pytest.approx(0.5)]


def test_groups_change_no_number() -> None:
    ends = [network(seed).state_dict() for seed in range(3)]
    curves = [
        along(LinearPath(ends, 4), lambda states: scores(network(9), states, batches()), at_once=size)
        for size in (1, 3, 100)
    ]
    assert curves[0] == curves[1] == curves[2]


def test_bad_paths() -> None:
    one = network(0).state_dict()
    with pytest.raises(LotteryError, match="got 1 networks, expected at least 2"):
        LinearPath([one])
    with pytest.raises(ConfigError, match="points: got 1"):
        LinearPath([one, one], 1)
    with pytest.raises(LotteryError, match=r"different architectures: 'fc.bias' is \[3\] torch.float32 and \[5\]"):
        LinearPath([one, one | {"fc.bias": torch.zeros(5)}])
    with pytest.raises(LotteryError, match="only one of them has 'other'"):
        LinearPath([one, one | {"other": torch.zeros(5)}])


# -- scores of networks -----------------------------------------------------------------------------------------------


def test_scores_are_those_of_each_network_by_itself() -> None:
    """In one pass over the data, which an iterator allows only once."""
    networks = [network(seed).eval() for seed in range(3)]
    shell = network(7).train()
    before = copy.deepcopy(shell.state_dict())
    found = scores(shell, [made.state_dict() for made in networks], iter(batches()))
    images, labels = (torch.cat(part) for part in zip(*batches(), strict=True))
    for made, (loss, error) in zip(networks, found, strict=True):
        logits = made(images).detach()
        assert loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
        assert error == pytest.approx(float((logits.argmax(1) != labels).double().mean()))
    assert shell.training
    assert all(torch.equal(value, before[name]) for name, value in shell.state_dict().items())


def test_states_at_once_keeps_to_the_budget() -> None:
    state = {"w": torch.zeros(1000)}
    assert states_at_once(state, 10_000) == 2
    assert states_at_once(state, 10) == 1


def test_tied_weights_are_interpolated() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4, bias=False)
            self.second = nn.Linear(4, 4, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    ends = [Tied().state_dict(), Tied().state_dict()]
    middle = between(*ends, 0.5)
    x = torch.randn(8, 4)
    labels = torch.arange(8) % 4
    weight = middle["first.weight"]
    expected = float(F.cross_entropy(x @ weight.T @ weight.T, labels))
    assert scores(Tied(), [middle], [(x, labels)])[0][0] == pytest.approx(expected, rel=1e-5)


# -- batch normalisation ----------------------------------------------------------------------------------------------


def test_recomputed_statistics_are_those_of_update_bn() -> None:
    images = [batch for batch, _ in batches()]
    state = network(0).state_dict()
    before = copy.deepcopy(state)
    shell = network(3)
    shell.bn2.eval()
    found = recomputed(shell, state, images)
    judge = network(0)
    judge.dropout.p = 0.0
    torch.optim.swa_utils.update_bn(images, judge)
    assert all(torch.equal(value, judge.state_dict()[name]) for name, value in found.items())
    assert not torch.equal(found["bn1.running_mean"], before["bn1.running_mean"])
    assert all(torch.equal(value, before[name]) for name, value in state.items())
    assert (shell.bn1.momentum, shell.bn1.training, shell.bn2.training, shell.dropout.training) == (
        0.1,
        True,
        False,
        True,
    )


def test_recomputing_changes_the_barrier() -> None:
    """The two ways must not be compared (docs/methods/stability.md)."""
    ends = [network(seed).state_dict() for seed in (0, 1)]
    shell = network(2)

    def fresh(states: Sequence[State]) -> list[Score]:
        return scores(shell, [recomputed(shell, state, [b for b, _ in batches()]) for state in states], batches())

    plain = along(LinearPath(ends, 5), lambda states: scores(shell, states, batches()))
    again = along(LinearPath(ends, 5), fresh)
    assert plain.barriers("loss") != again.barriers("loss")


def test_without_batch_normalisation_nothing_is_recomputed() -> None:
    linear = nn.Linear(3, 2)
    assert not normalised(linear)
    state = linear.state_dict()
    found = recomputed(linear, state, [torch.ones(2, 3)])
    assert all(found[name] is state[name] for name in state)
