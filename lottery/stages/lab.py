"""The lab: cached trainings, searches and masks for methods."""

from __future__ import annotations

from functools import cached_property

from lottery.stages.layers import LayerStages
from lottery.stages.masks import Masks
from lottery.stages.moving import Movings
from lottery.stages.search import Searches


class Lab(Masks, Searches, Movings):
    """The stages of one study. Slow steps are cached stages; the rest is computed when asked for."""

    @cached_property
    def layers(self) -> LayerStages:
        """The removable units of the network, their scores, and tickets without some of them."""
        return LayerStages(self)
