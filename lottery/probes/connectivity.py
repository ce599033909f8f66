"""Linear mode connectivity (Frankle et al. 2020): the barrier between copies of a round, or between rounds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean
from typing import Any

from torch import nn

from lottery.errors import ConfigError
from lottery.probes.copies import COPIES, has_copies
from lottery.probes.images import LIMIT, Options, at_a_time
from lottery.ranges import at_least, option, such_that
from lottery.stability.connectivity import (
    Interpolation,
    LinearPath,
    Score,
    along,
    highest,
    recomputed,
    scores,
    states_at_once,
)
from lottery.stages.bench import Bench
from lottery.stages.round import Round
from lottery.state import State, StateRef
from lottery.ticket import Ticket

VERSION = 1
BETWEEN, SPLITS, BN = ("copies", "previous", "path"), ("train", "validation", "test"), ("interpolate", "recompute")


@dataclass(frozen=True)
class Connectivity(Options):
    """`lmc_error_SPLIT`, `lmc_loss_SPLIT`: the barriers on the lines between trained networks.

    A barrier is the highest error (in [0, 1]) or loss on the line less the mean of its ends. The figure is the mean
    over all pairs, with `_max` the largest. The names begin with `lmc_previous` or `lmc_path` for these.

    between: "copies" of a trained round in different data orders, this round and the "previous" one, or the "path" from
        the dense network over all tickets of this rewind point to this round, with the barrier of its highest line
    copies:  how many trainings, the round's own included; 1 unless `between` is "copies"
    points:  on each line, both ends included
    splits:  on which images
    bn:      "interpolate" running statistics, or "recompute" them from training images at each point; not comparable
    limit:   how many images of each split, a fixed random choice; None for all
    rounds:  measured only in these; [] = in all
    The row also has `lmc_points`, `lmc_bn_recomputed` (0 or 1), `lmc_copies`, `lmc_images_SPLIT`, and
    `lmc_curve_SPLIT`, the error along the line as the mean over the pairs.
    """

    between: str = option("copies", such_that(lambda got: got in BETWEEN, f"one of {', '.join(BETWEEN)}"))
    copies: int = 2
    points: int = option(30, at_least(2, "a number ≥ 2, both ends included"))
    splits: list[str] = field(default_factory=lambda: ["test"])
    bn: str = option("interpolate", such_that(lambda got: got in BN, f"one of {', '.join(BN)}"))
    limit: int | None = option(None, LIMIT)
    rounds: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [split for split in self.splits if split not in SPLITS]:
            raise ConfigError.of("splits", unknown[0], f"one of {', '.join(SPLITS)}")
        if self.between == "copies":
            COPIES("copies", self.copies)
        else:
            object.__setattr__(self, "copies", 1)  # the number that a study plans to train

    def check(self, lab: Bench) -> None:
        """Raise ConfigError for a split without images."""
        for split in self.splits:
            if not lab.dataset.sizes[split]:
                raise ConfigError.of("probes.connectivity.splits", split, "a split that has images")

    def trainings(self, round: Round, lab: Bench) -> list[Ticket]:
        """Return the tickets that the probe trains."""
        wanted = self.between == "copies" and has_copies(round, self.rounds)
        return lab.copied(round.ticket, self.copies) if wanted else []

    def __call__(self, round: Round, previous: Round | None, lab: Bench) -> dict[str, Any]:
        if self.rounds and round.index not in self.rounds:
            return {}
        ends = self.ends(round, previous, lab)
        if len(ends) < 2:
            return {}
        name = "lmc" if self.between == "copies" else f"lmc_{self.between}"
        figures: dict[str, Any] = {f"{name}_points": self.points, f"{name}_bn_recomputed": int(self.bn == "recompute")}
        figures |= {f"{name}_copies": self.copies} if self.between == "copies" else {}
        for split in self.splits:
            curves = self.curves(ends, split, lab)
            for what in ("error", "loss"):
                barriers = [barrier for curve in curves for barrier in curve.barriers(what)]
                figures[f"{name}_{what}_{split}"] = highest(barriers) if self.between == "path" else fmean(barriers)
                figures[f"{name}_{what}_{split}_max"] = highest(barriers)
            figures[f"{name}_images_{split}"] = min(self.limit or sys.maxsize, lab.dataset.sizes[split])
            figures[f"{name}_curve_{split}"] = [
                fmean(errors) for errors in zip(*(c.error for c in curves), strict=True)
            ]
        return figures

    def ends(self, round: Round, previous: Round | None, lab: Bench) -> list[StateRef]:
        """Return the trained networks to connect; fewer than two where there is nothing to connect."""
        if self.between == "copies":
            if not has_copies(round, self.rounds):
                return []
            return [trained.state for trained in lab.copies(round.ticket, self.copies)]
        if self.between == "previous":
            return [previous.trained.state, round.trained.state] if previous is not None else []
        earlier = (known for known in lab.history if known.index < round.index)  # a control takes its ticket's place
        before = [known for known in earlier if known.rewound in (None, round.rewound)]
        return [*(known.trained.state for known in before), round.trained.state]

    def curves(self, ends: Sequence[StateRef], split: str, lab: Bench) -> list[Interpolation]:
        """Return the curve of every pair of ends, or of the path, cached."""

        def compute() -> dict[str, Any]:
            network = lab.network().to(lab.device)
            states = [{name: t.to(lab.device) for name, t in end.tensors().items()} for end in ends]
            at_once = states_at_once(states[0])
            found = [
                along(LinearPath(pair, self.points), lambda group: self.measure(network, group, split, lab), at_once)
                for pair in ([states] if self.between == "path" else combinations(states, 2))
            ]
            return {"loss": [curve.loss for curve in found], "error": [curve.error for curve in found]}

        inputs = {
            "version": VERSION,
            "states": [end.digest for end in ends],
            "points": self.points,
            "split": split,
            "bn": self.bn,
            "limit": self.limit,
            **({"batch_size": lab.config.train.eval_batch_size} if self.bn == "recompute" else at_a_time(lab)),
        }
        found = lab.evaluated(f"connectivity {self.between} {split}", inputs, compute)
        return [
            Interpolation(loss, error, self.points) for loss, error in zip(found["loss"], found["error"], strict=True)
        ]

    def measure(self, network: nn.Module, states: Sequence[State], split: str, lab: Bench) -> list[Score]:
        """Return loss and error of several states from one pass over the split."""
        size = lab.config.train.eval_batch_size
        if self.bn == "recompute":
            states = [
                recomputed(network, state, (images for images, _ in lab.watched(lab.data.batches("train", size))))
                for state in states
            ]
        return scores(network, states, lab.watched(lab.data.batches(split, size, limit=self.limit)))
