"""The bench: the lab as probes get it. It records which stages the measurements of a round used."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from lottery.config.data import Data
from lottery.data.dataset import Batch, Dataset
from lottery.data.load import load
from lottery.errors import LotteryError
from lottery.own_code import own_code
from lottery.pruning.structure import silent, structured
from lottery.seeding import derive
from lottery.stages.lab import Lab
from lottery.stages.round import Round
from lottery.stages.trained import Trained
from lottery.ticket import Ticket

LOG = logging.getLogger("lottery")

OnCopy = Callable[[int, Trained | None], object]  # called with a copy's number before it is trained (None) and after


class Bench(Lab):
    """A lab with further methods that probes need to measure a round.

    history: the rounds so far without controls, round 0 first
    used:    the stages that were asked for: name -> key
    """

    def __init__(self, lab: Lab, history: Sequence[Round] = (), on_copy: OnCopy | None = None) -> None:
        vars(self).update(vars(lab))  # shares the lab's data, store and stages
        self.history = history
        self.used: dict[str, str] = {}
        self._on_copy = on_copy
        self._code: dict[str, str] = {}

    def by(self, probe: Any) -> Self:
        """Return this bench for one probe (its node in the configuration), whose own code enters the stage keys."""
        bench = copy(self)
        bench._code = own_code(probe)
        return bench

    @property
    def dense(self) -> Round:
        """Round 0, once the study has recorded it."""
        return self.history[0]

    def evaluated(self, name: str, inputs: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the figures (JSON values) of `compute`, cached as an `evaluate` stage.

        `inputs`: all that figures depend on besides model, data and own code: digests, options, the numerics' version.
        """
        code = {"probe's own code": self._code} if self._code else {}
        figures, self.used[f"evaluate {name}"] = self.figures(
            {"probe": name, **self.common_inputs, **inputs, **code}, compute
        )
        return figures

    def watched(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield these batches. Raises Interrupted when a stop signal has come."""
        for batch in batches:
            self.check_stop("while a network was measured")
            yield batch

    def other_dataset(self, options: Mapping[str, Any]) -> Dataset:
        """Load the data set of these options onto `device`."""
        return load(Data(**options), Path(self.config.paths.data), self.config.seeds.split).to(self.device)

    def trained(self, name: str, ticket: Ticket) -> Trained:
        """Train a ticket for a probe, and record the training in `used` under this name."""
        trained = self.train(ticket)
        self.used[f"train {name}"] = trained.key
        return trained

    def copies(self, ticket: Ticket, count: int) -> list[Trained]:
        """Train the ticket `count` times: in the study's data order, and in others (augmentation and noise too).

        These are ordinary trainings: cached, continued after a kill, and shared by all probes and studies.
        """
        own, *others = self.copied(ticket, count)
        return [self.train(own)] + [self._copy(other, number) for number, other in enumerate(others, 1)]

    def copied(self, ticket: Ticket, count: int) -> list[Ticket]:
        """Return the tickets that `copies` trains: this one, then others that differ only in their data order."""
        seeds = [derive(self.config.seeds.order, "copy", number) for number in range(1, count)]
        return [ticket, *(replace(ticket, order_seed=seed) for seed in seeds)]

    def _copy(self, ticket: Ticket, number: int) -> Trained:
        told = self._on_copy if f"train copy {number}" not in self.used else None  # None: an earlier probe reported it
        if told is not None:
            told(number, None)
        trained = self.trained(f"copy {number}", ticket)
        if told is not None:
            told(number, trained)
        return trained

    def trained_network(self, trained: Trained) -> nn.Module:
        """Load a private copy of a trained network onto `device`, in evaluation mode."""
        return self.loaded(trained.state.tensors()).eval()

    def smaller(self, round: Round) -> nn.Module:
        """Load a private copy of a round's trained network as it would be deployed, in evaluation mode.

        The ticket's removed units are taken out, and its removed channels if torch-pruning is installed.
        """
        network = self.trained_network(round.trained)
        self.layers.shallow_(network, round.ticket.removed)
        if structured(round.mask) and find_spec("torch_pruning") is not None:
            from lottery.channels.shrink import shrink

            try:
                network = shrink(network.cpu(), self.data.sample(1, 0)[0].cpu()).to(self.device)
            except LotteryError as error:
                LOG.warning("%s; its removed channels are measured as zeros", error)
        return network.to(self.device)

    def start_network(self, ticket: Ticket) -> nn.Module:
        """Load a private copy of the network that a ticket's training starts from, in evaluation mode."""
        state = ticket.mask.apply(ticket.state.tensors())
        network = self.loaded(self.layers.silenced(state, ticket.removed) if ticket.removed else state).eval()
        if ticket.silent:
            parameters = dict(network.named_parameters())
            with torch.no_grad():
                for name, kept in silent(network, ticket.mask, self.dataset.shape).items():
                    parameters[name][~kept] = 0.0
        return network
