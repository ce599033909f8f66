"""A training as rank 0 broadcasts it, with everything that the other ranks need: they read no file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lottery.recipe import Recipe
from lottery.state import State, StateRef
from lottery.ticket import Mask, Ticket
from lottery.training.checkpoint import packed, unpacked
from lottery.training.progress import Progress

AS_THEY_ARE = ("step", "order_step", "steps", "hold_lr", "order_seed", "silent")  # fields of Ticket, as JSON values


@dataclass(frozen=True)
class Broadcast:
    """One training stage: `ticket` is trained from `start`, which is the ticket's own or from a checkpoint."""

    key: str
    ticket: Ticket
    until: int | None
    keep: frozenset[int]
    start: tuple[State, State | None, Progress]

    def written(self) -> tuple[dict[str, Any], State]:
        """Return the training as JSON values and tensors."""
        network, optimizer, progress = self.start
        ticket, mask = self.ticket, self.ticket.mask
        tensors, facts = packed(network, optimizer or {}, progress)
        facts |= {"key": self.key, "until": self.until, "keep": sorted(self.keep), "state": ticket.state.digest}
        facts |= {"mask": list(mask), "removed": list(ticket.removed)}
        facts["recipe"] = ticket.recipe and asdict(ticket.recipe)
        facts["ticket"] = {name: getattr(ticket, name) for name in AS_THEY_ARE}
        return facts, tensors | {f"mask/{name}": mask[name] for name in mask}

    @classmethod
    def read(cls, facts: dict[str, Any], tensors: State) -> Broadcast:
        """Rebuild the training from the result of `written`."""
        start = unpacked(tensors, facts)
        mask = Mask({name: tensors[f"mask/{name}"] for name in facts["mask"]})
        state = StateRef(facts["state"], lambda: start[0])
        recipe, removed = Recipe.read(facts["recipe"]), tuple(facts["removed"])
        ticket = Ticket(mask, state, **facts["ticket"], recipe=recipe, removed=removed)
        return cls(facts["key"], ticket, facts["until"], frozenset(facts["keep"]), start)
