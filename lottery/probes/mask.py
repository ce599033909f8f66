"""How a round's mask lies against others, beside what chance would give; and which of its weights matter at all."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from lottery.errors import LotteryError
from lottery.stability.effective import effective
from lottery.stability.magnitude import magnitude_mask
from lottery.stability.overlap import Overlap
from lottery.stability.overlap import overlap as overlap_of

if TYPE_CHECKING:
    from lottery.stages.lab import Lab
    from lottery.stages.round import Round
    from lottery.ticket import Mask

LOG = logging.getLogger("lottery")


def overlap(round: Round, previous: Round | None, lab: Lab) -> dict[str, Any]:
    """With the previous round's mask: intersection over union and Hamming distance, with their values for independent
    masks of the same layer densities; and by how many standard deviations more is in common than by chance."""
    return {} if previous is None else _figures(_between(round.mask, previous.mask), "previous")


def magnitude_overlap(round: Round, previous: Round | None, lab: Lab) -> dict[str, Any]:
    """The same with the mask of as many weights, the largest of the trained dense network (globally)."""
    if round.index == 0:
        return {}
    largest = magnitude_mask(lab.dense.trained.state.tensors(), round.mask)
    return _figures(_between(round.mask, largest), "magnitude")


def _between(one: Mask, other: Mask) -> Overlap:
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


def effective_density(round: Round, previous: Round | None, lab: Lab) -> dict[str, Any]:
    """`density_effective`: kept weights on a path of kept weights from the input to the output, over all prunable ones;
    `density_effective_layers` has it for each layer. None for a network with operations that `stability.effective`
    does not know, which is said once."""
    try:
        found = effective(lab.network(lab.config.seeds.init), round.mask, lab.dataset.shape)
    except LotteryError as error:
        if round.index == 0:
            LOG.warning("probes.effective: %s", error)
        return {"density_effective": None}
    return {"density_effective": found.density, "density_effective_layers": found.layer_density}
