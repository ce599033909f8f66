"""The learning rate is a function of the absolute step, so that a ticket meets the dense run's (T2.2)."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from training_tools import Start

from lottery.config import Schedule
from lottery.errors import ConfigError
from lottery.schedule import LearningRate
from lottery.stages.lab import Lab

SCHEDULES = {
    "constant": (),
    "multistep": ("schedule.name=multistep", "schedule.milestones=[5it,2ep,20it]"),
    "cosine": ("schedule.name=cosine",),
    "one_cycle": ("schedule.name=one_cycle", "schedule.warmup=9it"),
    "warm-up": ("schedule.warmup=9it",),
    "warm-up, multistep": ("schedule.name=multistep", "schedule.milestones=[8it,20it]", "schedule.warmup=1ep"),
    "warm-up, cosine": ("schedule.name=cosine", "schedule.warmup=9it"),
}


@pytest.mark.parametrize("overrides", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("rewind", ["weights", "lr"])
def test_a_ticket_continues_the_dense_schedule_at_step_k(
    make_lab: Callable[..., Lab], starts: list[Start], overrides: tuple[str, ...], rewind: str
) -> None:
    lab = make_lab(*overrides, f"rewind={rewind}", "rewind.to=7it")
    dense = lab.train(lab.initial, keep=lab.rewind.keep_dense())
    lab.train(lab.rewind.ticket(dense, dense, lab.initial.mask))
    dense_rates, ticket_rates = (start.rates for start in starts)
    assert len(dense_rates) == 30
    assert ticket_rates == dense_rates[7:]


def test_fine_tuning_stays_at_the_last_rate(make_lab: Callable[..., Lab], starts: list[Start]) -> None:
    lab = make_lab("rewind=finetune", "rewind.to=10it", "schedule.name=multistep", "schedule.milestones=[8it,20it]")
    dense = lab.train(lab.initial, keep=lab.rewind.keep_dense())
    lab.train(lab.rewind.ticket(dense, dense, lab.initial.mask))
    dense_rates, ticket_rates = (start.rates for start in starts)
    assert dense_rates[-1] == pytest.approx(0.05 * 0.1**2)
    assert ticket_rates == [dense_rates[-1]] * 20


def rate(total: int = 100, epoch: int = 10, **options: object) -> LearningRate:
    return LearningRate.resolve(Schedule(**options), 0.4, total, epoch)  # type: ignore[arg-type]


@pytest.mark.parametrize(("total", "peak"), [(100, 30), (476, 109), (10, 1), (10, 8)])
def test_one_cycle_is_torchs(total: int, peak: int) -> None:
    """torch counts the peak in shares of the length, from step -1 on; its initial rate is max_lr / div_factor."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.4, total_steps=total, pct_start=(peak + 1) / total, anneal_strategy="linear",
        cycle_momentum=False,
    )  # fmt: skip
    ours = rate(total, name="one_cycle", warmup=f"{peak}it")
    for step in range(total):
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        if step < total - 1:
            theirs.step()


def test_the_ends_of_one_cycle_are_shares_of_its_highest_rate() -> None:
    ours = rate(name="one_cycle", warmup="23it", start=0.2, end=0.07)
    assert (ours(0), ours(23), ours(99)) == pytest.approx((0.08, 0.4, 0.028))
    assert max(range(100), key=ours) == 23
    assert rate(name="one_cycle", warmup="100it")(99) < 0.4, "a cycle that never falls"


def test_closed_forms() -> None:
    assert {rate()(step) for step in range(100)} == {0.4}
    steps = rate(name="multistep", milestones=["3ep", "50it", "8ep5it"], gamma=0.5)
    assert [steps(step) for step in (0, 29, 30, 49, 50, 84, 85, 99)] == [0.4, 0.4, 0.2, 0.2, 0.1, 0.1, 0.05, 0.05]
    cosine = rate(name="cosine")
    assert cosine(0) == 0.4
    assert cosine(50) == pytest.approx(0.2)
    assert cosine(25) == pytest.approx(0.4 * (1 + math.sqrt(0.5)) / 2)
    assert 0 < cosine(99) < 1e-3
    # LTH and LMC: linear from 0, at the base rate when the warm-up ends.
    warm = rate(warmup="2ep")
    assert [warm(step) for step in (0, 5, 10, 20, 99)] == pytest.approx([0, 0.1, 0.2, 0.4, 0.4])
    both = rate(name="cosine", warmup="20it")
    assert both(20) == 0.4
    assert both(60) == pytest.approx(0.2)


def test_milestones_during_the_warm_up_count_when_it_ends() -> None:
    warm = rate(name="multistep", milestones=["10it"], warmup="20it")
    assert warm(15) == pytest.approx(0.4 * 15 / 20)
    assert warm(20) == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"name": "multistep", "milestones": ["20it", "10it"]}, "schedule.milestones"),
        ({"warmup": "11ep"}, "schedule.warmup"),
    ],
)
def test_schedules_that_cannot_be(options: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: got "):
        rate(**options)  # type: ignore[arg-type]
