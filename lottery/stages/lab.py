"""The lab: what a method has at hand. Trainings come from it, cached; so do initial weights, scores and controls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import nn

from lottery.config import Config
from lottery.data.dataset import Dataset
from lottery.data.load import load
from lottery.models.build import build
from lottery.pruning.controls import shuffled
from lottery.pruning.prunable import all_weights, prunable
from lottery.pruning.prune import prune
from lottery.pruning.scoring import Scoring
from lottery.seeding import derive
from lottery.stages.round import Round
from lottery.stages.store import Store
from lottery.stages.train import Trained, TrainStages
from lottery.state import StateRef
from lottery.ticket import Mask, Ticket
from lottery.training.parallel import Ranks
from lottery.training.recipe import Recipe
from lottery.training.rewind import RewindPolicy
from lottery.training.signals import StopFlag

LOG = logging.getLogger("lottery")

# How the start weights are made: they enter a stage key as the digest of the start state itself.
ORIGIN_OPTIONS = ("init", "weights", "pretrained", "bn_scale", "drop_head")
# What a training reads of the data options besides the data themselves, which enter as their digest.
DATA_OPTIONS = ("scaling", "mean", "std", "flip", "crop", "validation", "limit")


class Lab:
    """The stages of one study. Everything slow is behind a cached stage; the rest is computed when asked for."""

    def __init__(
        self,
        config: Config,
        stop: StopFlag,
        on_tick: Callable[..., None],
        on_wait: Callable[[str], None] = LOG.warning,
        study: str = "",
        ranks: Ranks | None = None,
    ) -> None:
        """`on_tick` is told how a training gets on, `on_wait` for whom a stage has to wait; `study` is our own name.

        `ranks` are the processes that train together; LotteryError where trainer.devices asks for more than there are.
        """
        self.config = config
        self.stop = stop
        self.ranks = Ranks(trainer=config.trainer) if ranks is None else ranks
        self.ranks.check(config.trainer)
        self.store = Store(Path(config.paths.store), study, stop, on_wait)
        self.dataset = load(config.data, Path(config.paths.data), config.seeds.split)
        self._placed: dict[torch.device, Dataset] = {}
        self.recipe = Recipe.resolve(config, self.dataset.sizes["train"])
        self.rewind = RewindPolicy.resolve(config.rewind, self.recipe, self.dataset.sizes["train"])
        self.criterion: Callable[[Scoring], dict[str, torch.Tensor]] = instantiate(config.criterion)
        self._trainings = TrainStages(
            store=self.store,
            build=lambda: self.network(config.seeds.init),
            model_inputs={k: v for k, v in config.model.items() if k not in ORIGIN_OPTIONS},
            data=self.data_on,
            data_inputs=self._data_inputs(),
            recipe=self.recipe,
            checkpoint_seconds=60 * config.train.checkpoint_minutes,
            checkpoint_steps=config.train.checkpoint_steps,
            stop=stop,
            on_tick=on_tick,
            ranks=self.ranks,
        )

    # -- data and networks ------------------------------------------------------------------------------------------

    def data_on(self, device: torch.device) -> Dataset:
        """The data set on a device, moved there once a study."""
        if device not in self._placed:
            self._placed[device] = self.dataset.to(device)
        return self._placed[device]

    def _data_inputs(self) -> dict[str, Any]:
        data = self.config.data
        options = {name: getattr(data, name) for name in DATA_OPTIONS}
        if data.resize:  # image folders are scaled and cropped while they are read
            options |= {"resize": data.resize, "shape": list(data.shape)}
        return options | {"digest": self.dataset.digest, "split_seed": self.config.seeds.split}

    def network(self, seed: int) -> nn.Module:
        """A new network with the initial weights of this seed."""
        return build(self.config.model, self.dataset.shape, self.dataset.classes, seed)

    def initial_state(self, seed: int) -> StateRef:
        """Newly drawn initial weights, buffers included: nothing of a weights file, which a control must not see."""
        drawn = {name: value for name, value in self.config.model.items() if name not in ("weights", "pretrained")}
        return StateRef.of(build(drawn, self.dataset.shape, self.dataset.classes, seed).state_dict())

    @cached_property
    def initial(self) -> Ticket:
        """The dense network at step 0: a full mask, the initial weights, the whole training ahead."""
        network = self.network(self.config.seeds.init)
        mask = Mask.ones(prunable(network, self.config.prunable.exclude))
        return Ticket(mask, StateRef.of(network.state_dict()), step=0, order_step=0, steps=self.recipe.total)

    @cached_property
    def total_weights(self) -> int:
        """All convolution and linear weights, also those never pruned: the denominator of `density_weights`."""
        return all_weights(self.network(self.config.seeds.init))

    # -- what methods are made of -----------------------------------------------------------------------------------

    def train(self, ticket: Ticket, keep: Iterable[int] = ()) -> Trained:
        """The ticket, trained; cached. `keep` names the steps whose full state will be needed."""
        return self._trainings.train(ticket, keep)

    def follow(self) -> None:
        """On any rank but the first: train along whenever rank 0 trains."""
        self._trainings.follow()

    def scores(self, trained: Trained, mask: Mask) -> dict[str, torch.Tensor]:
        """The criterion's score of every prunable weight; the lowest go first."""
        state = trained.state.tensors()
        generator = torch.Generator().manual_seed(derive(self.config.seeds.mask, "scores", mask.digest))
        return self.criterion(Scoring(weights={name: state[name] for name in mask}, mask=mask, generator=generator))

    def prune(self, mask: Mask, scores: dict[str, torch.Tensor], rate: float, **options: Any) -> Mask:
        """`pruning.prune.prune`, told how many weights are never pruned, which one compatibility rule counts."""
        return prune(mask, scores, rate, ignored=self.total_weights - mask.size, **options)

    # -- controls ---------------------------------------------------------------------------------------------------

    def controls(self) -> list[tuple[str, int]]:
        """The controls that the configuration asks for beside every ticket: (kind, copy)."""
        counts = vars(self.config.controls)
        return [(kind, copy) for kind, count in counts.items() for copy in range(count)]

    def control(self, of: Round, kind: str, copy: int) -> Round:
        """A round retrained with one thing destroyed; recipe, schedule and data order stay the ticket's own."""
        seeds, ticket = self.config.seeds, of.ticket
        if kind == "reinit":
            state = self.initial_state(derive(seeds.init, "reinit", of.index, copy))
            ticket = replace(ticket, state=state, optimizer=None)
        else:  # a random mask of the same layer counts and a shuffled one: one draw, from streams of their own
            mask = shuffled(ticket.mask, derive(seeds.mask, kind, of.index, copy))
            ticket = replace(ticket, mask=mask)
        return Round(of.index, ticket, self.train(ticket), kind, copy)
