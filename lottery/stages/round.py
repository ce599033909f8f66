"""A round: one entry of a study's table. Torch-free, so that a method's file can be read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lottery.stages.trained import Searched, Trained
    from lottery.ticket import Mask, Ticket


@dataclass(frozen=True)
class Round:
    """A ticket and the network trained from it. Round 0 is dense; a control shares its ticket's index.

    rewound: the rewind point, where a study has several; None: that of the configuration
    way:     keys of trainings that led to this round and are no rounds themselves
    search:  the search that found the mask, if there was one
    units:   which of the removable units are kept, if the method removes units
    """

    index: int
    ticket: Ticket
    trained: Trained
    control: str | None = None
    copy: int = 0
    rewound: int | None = None
    way: tuple[str, ...] = ()
    search: Searched | None = None
    units: Mask | None = None

    @property
    def cached(self) -> bool:
        """Whether no training or search had to be computed for this round."""
        return self.trained.cached and (self.search is None or self.search.cached)

    @property
    def mask(self) -> Mask:
        return self.ticket.mask

    @property
    def dense(self) -> bool:
        """Whether nothing is pruned or removed."""
        return self.mask.kept == self.mask.size and not self.ticket.removed

    @property
    def stages(self) -> dict[str, str]:
        """The stages that the round came from: name -> key."""
        found = {
            "train": self.trained.key,
            "score": getattr(self.mask, "stage", None),  # of a `ScoredMask`
            **{f"train on the way {number}": key for number, key in enumerate(self.way, 1)},
            "evaluate units": getattr(self.ticket.removed, "stage", None),  # of `Removed` units
            "search": self.search.key if self.search else None,
        }
        return {what: key for what, key in found.items() if key is not None}
