"""Controls: a round retrained with one thing destroyed."""

from __future__ import annotations

from dataclasses import replace

from lottery.config import Config
from lottery.seeding import derive, reinit_seed
from lottery.stages.lab import Lab
from lottery.stages.round import Round
from lottery.ticket import Ticket


def wanted(config: Config, round: Round | None = None) -> list[tuple[str, int]]:
    """Return the controls that the configuration asks for beside every ticket: (kind, copy). A dense round has none."""
    if round is not None and (round.index == 0 or round.dense):
        return []
    return [(kind, copy) for kind, count in vars(config.controls).items() for copy in range(count)]


def run_control(lab: Lab, of: Round, kind: str, copy: int) -> Round:
    """Train a control of a round."""
    ticket = control_of(lab, of, kind, copy)
    units = lab.layers.kept(ticket) if of.units is not None else None
    return Round(of.index, ticket, lab.train(ticket), kind, copy, of.rewound, units=units)


def control_of(lab: Lab, of: Round, kind: str, copy: int) -> Ticket:
    """Return the ticket of a round's control; recipe, schedule and data order stay those of the round's ticket.

    reinit:  newly drawn initial weights
    shuffle: the mask's bits shuffled within each layer
    random:  a random mask of the same layer counts: the draw of `shuffle`, from another random stream
    invert:  as many weights in each layer, those pruned first; nothing is drawn, so all copies are one training
    static:  the round's own ticket: of a mask that moved in training, the final mask from the beginning on
    For layer tickets, `LayerStages.control` draws `shuffle`, `random` and `invert`.
    """
    seeds, ticket = lab.config.seeds, of.ticket
    if kind == "static":
        return ticket
    if kind == "reinit":
        state = lab.initial_state(reinit_seed(seeds.init, of.index, copy))
        return replace(ticket, state=state, optimizer=None)
    if of.units is not None:
        return lab.layers.control(ticket, kind, copy, of.index)
    if kind == "invert":
        return replace(ticket, mask=lab.inverted(ticket.mask))
    return replace(ticket, mask=lab.shuffled(ticket.mask, derive(seeds.mask, kind, of.index, copy), ticket.silent))
