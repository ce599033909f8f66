"""The mask that magnitude pruning of a network gives at the density of another mask."""

from __future__ import annotations

from lottery.pruning.prune import prune_to
from lottery.state import State
from lottery.ticket import Mask


def magnitude_mask(state: State, like: Mask) -> Mask:
    """Return a mask of the largest weights of `state`, as many as `like` keeps. Ties and errors as in `prune_to`."""
    magnitudes = {name: state[name].abs() for name in like if name in state}
    return prune_to(Mask.ones(like.shapes), magnitudes, like.density)
