"""Linear mode connectivity (Frankle et al. 2020): the barrier between copies of a round, or between rounds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lottery.errors import ConfigError
from lottery.probes.copies import check_copies, has_copies
from lottery.probes.images import check_limit
from lottery.stability.batchnorm import recomputed
from lottery.stability.connectivity import Curve, Score, along, highest
from lottery.stability.evaluation import scores, states_at_once
from lottery.stability.path import Path
from lottery.state import State

if TYPE_CHECKING:
    from torch import nn

    from lottery.stages.lab import Lab
    from lottery.stages.round import Round
    from lottery.state import StateRef

VERSION = 1
BETWEEN, SPLITS, BN = ("copies", "previous", "path"), ("train", "validation", "test"), ("interpolate", "recompute")


@dataclass(frozen=True)
class Connectivity:
    """`lmc_error_SPLIT`, `lmc_loss_SPLIT`: the barrier, i.e. the highest error (in [0, 1]) or loss on the line less the
    mean of its ends; the mean over all pairs, and with `_max` the largest of them.

    between: "copies" of the round in different data orders (nothing of a round that is not trained), this round and the
             "previous" one, or the "path" from the dense network over all tickets to this round (those of its own
             rewind point, where a study has several), of which the barrier is that of its highest line
    copies:  how many trainings, the round's own included; none but that where others are joined
    points:  on each line, both ends included
    splits:  on which images
    bn:      "interpolate" takes running statistics along the line, "recompute" estimates them anew at every point from
             the training images; barriers of the two are not to be compared
    limit:   how many images of each split, a fixed random choice; None for all
    rounds:  measured only in these; [] = in all
    Beside the barriers stands how they were measured: `lmc_points`, `lmc_bn_recomputed` (0 or 1), `lmc_copies`, and
    `lmc_images_SPLIT`. `lmc_curve_SPLIT` is the error along the line, the mean over the pairs.
    """

    between: str = "copies"
    copies: int = 2
    points: int = 30
    splits: list[str] = field(default_factory=lambda: ["test"])
    bn: str = "interpolate"
    limit: int | None = None
    rounds: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        for key, got, allowed in (("between", self.between, BETWEEN), ("bn", self.bn, BN)):
            if got not in allowed:
                raise ConfigError.of(key, got, f"one of {', '.join(allowed)}")
        if unknown := [split for split in self.splits if split not in SPLITS]:
            raise ConfigError.of("splits", unknown[0], f"one of {', '.join(SPLITS)}")
        if self.points < 2:
            raise ConfigError.of("points", self.points, "a number ≥ 2, both ends included")
        if self.between == "copies":
            check_copies(self.copies)
        else:
            object.__setattr__(self, "copies", 1)  # which is what a study plans to train
        check_limit(self.limit)

    def check(self, lab: Lab) -> None:
        """Raise ConfigError for a split without images."""
        for split in self.splits:
            if not lab.dataset.sizes[split]:
                raise ConfigError.of("probes.connectivity.splits", split, "a split that has images")

    def __call__(self, round: Round, previous: Round | None, lab: Lab) -> dict[str, Any]:
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
                barriers = [barrier for curve in curves for barrier in getattr(curve, f"{what}_barriers")]
                figures[f"{name}_{what}_{split}"] = highest(barriers) if self.between == "path" else fmean(barriers)
                figures[f"{name}_{what}_{split}_max"] = highest(barriers)
            figures[f"{name}_images_{split}"] = min(self.limit or sys.maxsize, lab.dataset.sizes[split])
            figures[f"{name}_curve_{split}"] = [
                fmean(errors) for errors in zip(*(c.error for c in curves), strict=True)
            ]
        return figures

    def ends(self, round: Round, previous: Round | None, lab: Lab) -> list[StateRef]:
        """The trained networks that are joined; fewer than two where there is nothing to join."""
        if self.between == "copies":
            if not has_copies(round, self.rounds):
                return []
            return [trained.state for trained in lab.copies(round.ticket, self.copies)]
        if self.between == "previous":
            return [previous.trained.state, round.trained.state] if previous is not None else []
        earlier = (known for known in lab.history if known.index < round.index)  # a control takes its ticket's place
        before = [known for known in earlier if known.rewound in (None, round.rewound)]
        return [*(known.trained.state for known in before), round.trained.state]

    def curves(self, ends: Sequence[StateRef], split: str, lab: Lab) -> list[Curve]:
        """The curve of every pair of ends, measured once."""

        def compute() -> dict[str, Any]:
            network = lab.network(lab.config.seeds.init).to(lab.device)
            states = [{name: t.to(lab.device) for name, t in end.tensors().items()} for end in ends]
            at_once = states_at_once(states[0])
            found = [
                along(
                    Path(pair, self.points),
                    lambda group: self.measure(network, group, split, lab),
                    self.bn,  # type: ignore[arg-type]
                    at_once,
                )
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
            **({"batch_size": lab.config.train.eval_batch_size} if self.bn == "recompute" else {}),
        }
        found = lab.evaluated(f"connectivity {self.between} {split}", inputs, compute)
        return [
            Curve([k / (self.points - 1) for k in range(len(loss))], loss, error, self.points, self.bn)  # type: ignore[arg-type]
            for loss, error in zip(found["loss"], found["error"], strict=True)
        ]

    def measure(self, network: nn.Module, states: Sequence[State], split: str, lab: Lab) -> list[Score]:
        """Loss and error of several states in one pass over the split."""
        size = lab.config.train.eval_batch_size
        if self.bn == "recompute":
            states = [
                recomputed(network, state, (images for images, _ in lab.watched(lab.data.batches("train", size))))
                for state in states
            ]
        return scores(network, states, lab.watched(lab.data.batches(split, size, limit=self.limit)))
