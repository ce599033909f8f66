"""A round: one entry of a study's table. Torch-free, so that a method's file is read before torch is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lottery.stages.search import Searched
    from lottery.stages.train import Trained
    from lottery.ticket import Mask, Ticket


@dataclass(frozen=True)
class Round:
    """A ticket and the network trained from it. Round 0 is dense; a control shares its ticket's index.

    rewound: the rewind point, where a study has several (None: the configuration's)
    way:     keys of the trainings that led here and are no rounds
    search:  the search that found the mask, where there was one
    units:   which of the removable units are kept, where a method removes them
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
        """Whether nothing had to be trained, or searched for."""
        return self.trained.cached and (self.search is None or self.search.cached)

    @property
    def mask(self) -> Mask:
        return self.ticket.mask
