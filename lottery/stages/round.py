"""A round: one entry of a study's table. Torch-free, so that a method's file is read before torch is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lottery.stages.train import Trained
    from lottery.ticket import Mask, Ticket


@dataclass(frozen=True)
class Round:
    """A ticket and the network trained from it. Round 0 is dense; a control shares its ticket's index."""

    index: int
    ticket: Ticket
    trained: Trained
    control: str | None = None
    copy: int = 0

    @property
    def mask(self) -> Mask:
        return self.ticket.mask
