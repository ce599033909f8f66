"""The mask that magnitude pruning of a given network would give at another mask's density."""

from __future__ import annotations

from lottery.pruning.prune import Scope, prune_to
from lottery.state import State
from lottery.ticket import Mask


def magnitude_mask(state: State, like: Mask, scope: Scope = "global") -> Mask:
    """The largest weights of `state`: as many in all as `like` keeps, or (scope "layer") as many in each layer.

    Of equal magnitudes the earlier weight is pruned, as everywhere (`pruning.prune`), whose errors these are.
    """
    magnitudes = {name: state[name].abs() for name in like if name in state}
    densities = like.layer_density if scope == "layer" else None
    return prune_to(Mask.ones(like.shapes), magnitudes, like.density, densities=densities, scope=scope)
