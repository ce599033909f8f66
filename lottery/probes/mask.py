"""How a round's mask overlaps with others, beside chance; and the density of weights that affect the output."""

from __future__ import annotations

import logging
from typing import Any

from lottery.errors import LotteryError
from lottery.stability.effective import effective
from lottery.stability.magnitude import magnitude_mask
from lottery.stability.overlap import Overlap
from lottery.stability.overlap import overlap as overlap_of
from lottery.stages.bench import Bench
from lottery.stages.round import Round
from lottery.ticket import Mask

LOG = logging.getLogger("lottery")


def overlap(round: Round, previous: Round | None, lab: Bench) -> dict[str, Any]:
    """Return the overlap with the previous round's mask: intersection over union, Hamming distance, surprise.

    `chance` figures are for independent masks of these layer densities; surprise is the excess in standard deviations.
    """
    return {} if previous is None else _figures(between(round.mask, previous.mask), "previous")


def magnitude_overlap(round: Round, previous: Round | None, lab: Bench) -> dict[str, Any]:
    """Return these figures for the mask of as many weights, the largest of the trained dense network (globally)."""
    if round.index == 0:
        return {}
    largest = magnitude_mask(lab.dense.trained.state.tensors(), round.mask)
    return _figures(between(round.mask, largest), "magnitude")


def between(one: Mask, other: Mask) -> Overlap:
    """Return how much two masks of the same tensors have in common."""
    return overlap_of(one.packed, other.packed, {name: shape.numel() for name, shape in one.shapes.items()})


def _figures(found: Overlap, of: str) -> dict[str, Any]:
    chance = "mask_iou_chance" if of == "previous" else f"mask_iou_{of}_chance"
    return {
        f"mask_iou_{of}": found.iou,
        chance: found.iou_chance,
        f"mask_hamming_{of}": found.hamming,
        f"mask_hamming_{of}_chance": found.hamming_chance,
        f"mask_surprise_{of}": found.surprise,
    }


def effective_density(round: Round, previous: Round | None, lab: Bench) -> dict[str, Any]:
    """Return `density_effective`, and `density_effective_layers` for each layer.

    It counts kept weights on a path of kept weights from input to output, over all prunable ones. None, with one
    warning, for a network with operations that `stability.effective` does not know.
    """
    try:
        found = effective(lab.network(), round.mask, lab.dataset.shape)
    except LotteryError as error:
        if round.index == 0:
            LOG.warning("probes.effective: %s", error)
        return {"density_effective": None}
    return {"density_effective": found.density, "density_effective_layers": found.layer_density}
