"""The mask that magnitude pruning of a given network would give at another mask's density."""

from __future__ import annotations

from lottery.pruning.prune import prune_to
from lottery.state import State
from lottery.ticket import Mask


def magnitude_mask(state: State, like: Mask) -> Mask:
    """The largest weights of `state` over all layers together, as many as `like` keeps.

    Of equal magnitudes the earlier weight is pruned, as everywhere (`pruning.prune`), whose errors these are.
    """
    magnitudes = {name: state[name].abs() for name in like if name in state}
    return prune_to(Mask.ones(like.shapes), magnitudes, like.density)
