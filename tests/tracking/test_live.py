"""What a running study tells its tracker while a training goes on: points of curves, as they are measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import DictConfig

from lottery import study as studies
from lottery.record.progress import StudyProgress
from lottery.study import Study
from lottery.tracking.trackers import NoTracker, follow


class Seen(NoTracker):
    """Everything that arrives, in order: (round, control), the entries of the curve, and whether the round is done."""

    def __init__(self) -> None:
        self.events: list[tuple[tuple[int, str | None], list[list[Any]], bool]] = []

    def points(self, place: dict[str, Any], curve: list[list[Any]]) -> None:
        self.events.append(((place["round"], place["control"]), curve, False))

    def round(self, row: dict[str, Any], curve: list[list[Any]], mask: Path) -> None:
        self.events.append(((row["round"], row["control"]), curve, True))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    tracker = Seen()
    monkeypatch.setattr(studies, "make_tracker", lambda *_: tracker)
    return tracker


def test_points_and_rates_come_after_every_evaluation_and_agree_with_the_round_s_curve(
    configure: Callable[..., DictConfig], seen: Seen, undrawn: None
) -> None:
    """In the order of the trainings. A probe's copy of a ticket is no round, and its points are not sent."""
    asked = (
        "method.rounds=1",
        "controls.reinit=1",
        "probes=[light,copies]",
        "schedule.name=multistep",
        "rewind.to=2it",
    )
    Study(configure(*asked, "schedule.milestones=[4it]", "train.eval_every=2it", "train.steps=6it")).run()
    trained = [(0, None), (1, None), (1, "reinit")]
    assert [place for place, _, done in seen.events if done] == trained
    for training in trained:
        mine = [(curve, done) for place, curve, done in seen.events if place == training]
        assert [done for _, done in mine] == [False] * (len(mine) - 1) + [True], "the round comes last"
        live = sorted(map(str, (point for curve, done in mine if not done for point in curve)))
        assert live == sorted(map(str, mine[-1][0]))
        assert len(mine) >= 3, "more than once in a training"
    rates = [(step, rate) for step, split, rate, _ in seen.events[-1][1] if split == "lr"]
    assert [step for step, _ in rates] == [2, 4, 6]
    assert rates[0][1] > rates[1][1] == rates[2][1], "the schedule's, from each point on"


@pytest.mark.parametrize(
    "method", ["lottery.methods.regimes.Regimes", "lottery.methods.instability.Instability", "mine.M"]
)
def test_where_the_round_of_a_training_is_not_known_before_its_end_nothing_is_sent(method: str, seen: Seen) -> None:
    """A method of several parts, or a user's own: their curves come with the round."""
    lab: Any = SimpleNamespace(on_points=None)
    follow(lab, seen, StudyProgress(), method)
    assert lab.on_points is None
