"""A training as rank 0 tells the other ranks of it: all that they need, so that they read no file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lottery.state import State, StateRef
from lottery.ticket import Mask, Ticket
from lottery.training.checkpoint import packed, unpacked
from lottery.training.module import Progress
from lottery.training.recipe import Recipe


@dataclass(frozen=True)
class Order:
    """Train `ticket` from `start`: the ticket's own, or what a checkpoint holds."""

    key: str
    ticket: Ticket
    until: int | None
    keep: frozenset[int]
    start: tuple[State, State | None, Progress]

    def written(self) -> tuple[dict[str, Any], State]:
        """As JSON values, and tensors."""
        network, optimizer, progress = self.start
        ticket, mask = self.ticket, self.ticket.mask
        tensors, facts = packed(network, optimizer or {}, progress)
        facts |= {"key": self.key, "until": self.until, "keep": sorted(self.keep), "mask": list(mask)}
        facts |= {"state": ticket.state.digest, "ticket_step": ticket.step, "order_step": ticket.order_step}
        facts |= {"steps": ticket.steps, "hold_lr": ticket.hold_lr, "order_seed": ticket.order_seed}
        facts |= {"silent": ticket.silent, "removed": list(ticket.removed)}
        facts |= {"recipe": ticket.recipe and asdict(ticket.recipe)}
        return facts, tensors | {f"mask/{name}": mask[name] for name in mask}

    @classmethod
    def read(cls, facts: dict[str, Any], tensors: State) -> Order:
        """What `written` gave."""
        start = unpacked(tensors, facts)
        mask = Mask({name: tensors[f"mask/{name}"] for name in facts["mask"]})
        state = StateRef(facts["state"], lambda: start[0])
        steps = {"step": facts["ticket_step"], "order_step": facts["order_step"], "steps": facts["steps"]}
        own = {name: facts[name] for name in ("hold_lr", "order_seed", "silent")}
        own |= {"removed": tuple(facts["removed"]), "recipe": Recipe.read(facts["recipe"])}
        ticket = Ticket(mask, state, **steps, **own)
        return cls(facts["key"], ticket, facts["until"], frozenset(facts["keep"]), start)
