"""How a round's mask lies against the one before it, beside what chance would give."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lottery.stages.lab import Lab
    from lottery.stages.round import Round


def overlap(round: Round, previous: Round | None, lab: Lab) -> dict[str, float]:
    """Intersection over union with the previous round's mask, and its value for independent masks of the same layer
    densities: Σ n·a·b / (|A| + |B| - Σ n·a·b), a and b the two densities of a layer of n weights."""
    if previous is None:
        return {}
    ours, theirs = round.mask, previous.mask
    common = sum(int((ours[name] & theirs[name]).sum()) for name in ours)
    both = ours.kept + theirs.kept
    chance = sum(ours.layer_density[name] * theirs.layer_density[name] * kept.numel() for name, kept in ours.items())
    return {
        "mask_iou_previous": common / (both - common) if both > common else 1.0,
        "mask_iou_chance": chance / (both - chance) if both > chance else 1.0,
    }
