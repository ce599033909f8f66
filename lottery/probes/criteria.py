"""The overlap of a mask with masks that criteria take from the same dense network, with equal layer counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lottery.own_code import own_code
from lottery.parts import instantiated
from lottery.probes.mask import between
from lottery.pruning.prune import prune_to_counts
from lottery.stages.bench import Bench
from lottery.stages.round import Round
from lottery.ticket import Mask


@dataclass(frozen=True)
class Criteria:
    """`criteria_iou`: intersection over union of a round's mask with each criterion's mask of as many weights a layer.

    The criteria score the trained dense network (round 0), as in the overlaps that the jackpots' paper shows.
    `criteria_iou_chance` is that of an independent mask of these counts. Controls and round 0 have none.
    """

    criteria: Mapping[str, Any] = field(default_factory=dict)  # name: the node of a criterion, not yet built

    def check(self, lab: Bench) -> None:
        """Raise ConfigError for a criterion that refuses its options, or data that it cannot take."""
        for name, node in self.criteria.items():
            key = f"probes.criteria.criteria.{name}"
            lab.check_criterion(instantiated(dict(node), key), key)

    def __call__(self, round: Round, previous: Round | None, lab: Bench) -> dict[str, Any]:
        if round.index == 0 or round.control is not None:
            return {}
        dense = lab.dense.trained.state
        nodes = {name: dict(node) for name, node in self.criteria.items()}
        inputs = {
            "version": 1,
            "state": dense.digest,
            "mask": round.mask.digest,
            "criteria": nodes,
            "seed": lab.config.seeds.mask,
            "own code": own_code(nodes),
        }

        def compute() -> dict[str, Any]:
            full, found, chance = Mask.ones(round.mask.shapes), {}, 0.0
            for name, node in nodes.items():
                scores = lab.scored_by(instantiated(node, f"probes.criteria.criteria.{name}"), dense, full)
                other = prune_to_counts(full, scores, round.mask.layer_kept)
                common = between(round.mask, other)
                found[name], chance = common.iou, common.iou_chance
            return {"criteria_iou": found, "criteria_iou_chance": chance}

        return lab.evaluated("criteria", inputs, compute)
