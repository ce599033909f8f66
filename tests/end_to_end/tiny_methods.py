"""A method of a user's own, in a file of their own: it starts from the same dense run as IMP."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lottery.stages.round import Round

if TYPE_CHECKING:
    from lottery.stages.lab import Lab


@dataclass
class RandomHalf:
    """The dense network, then a random half of it, trained from the rewind point."""

    rounds: int = 1

    def __call__(self, lab: Lab) -> Iterator[Round]:
        import torch

        dense = lab.train(lab.initial, keep=lab.rewind.keep_dense())
        yield Round(0, lab.initial, dense)
        scores = {name: torch.rand(kept.shape) for name, kept in lab.initial.mask.items()}
        mask = lab.prune(lab.initial.mask, scores, 0.5)
        ticket = replace(lab.initial, mask=mask)
        yield Round(1, ticket, lab.train(ticket))
