"""What rank 0 tells the other ranks of a training comes out as it went in, through JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from lottery.config import Optim
from lottery.ranks.broadcast import Broadcast
from lottery.schedule import LearningRate
from lottery.stages.lab import Lab
from lottery.ticket import Mask
from lottery.training.progress import Progress


@pytest.mark.parametrize("own", [False, True])
def test_an_order_is_read_as_it_was_written(make_lab: Callable[..., Lab], half: Callable[..., Mask], own: bool) -> None:
    """With a recipe of its own too, as tuning after a search has one: all ranks must train by it."""
    lab = make_lab("optim=adam")
    ticket = replace(lab.initial, mask=half(lab.initial.mask), step=3, order_step=5, steps=7, order_seed=9)
    if own:
        rate = LearningRate("multistep", 0.3, 7, (2, 4), 0.1)
        recipe = replace(lab.recipe, total=7, optim=Optim("sgd", 0.3, 0.9), lr=rate)
        ticket = replace(ticket, recipe=recipe, silent=True, hold_lr=True, removed=("blocks.1", "blocks.0"))
    state = ticket.state.tensors()
    order = Broadcast("key", ticket, 6, frozenset({4, 5}), (state, None, Progress(4, losses=torch.ones(2))))
    facts, tensors = order.written()
    read = Broadcast.read(json.loads(json.dumps(facts)), tensors)
    assert read.ticket == ticket
    assert read.ticket.recipe == ticket.recipe
    assert (read.key, read.until, read.keep) == ("key", 6, frozenset({4, 5}))
    assert read.start[2].step == 4
    assert torch.equal(read.start[2].losses, torch.ones(2))
