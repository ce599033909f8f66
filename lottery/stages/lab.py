"""The lab: what methods and probes have at hand. Trainings, masks and measurements come from it, cached; so do initial
weights, scores and controls.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lottery.config import Config, Optim
from lottery.data.dataset import Batch, Dataset
from lottery.data.load import load
from lottery.data.options import Data
from lottery.errors import ConfigError, Interrupted, LotteryError
from lottery.methods.phases import Phase, Tuning
from lottery.models.build import build
from lottery.parts import made, own_code
from lottery.pruning.allocations import drawn
from lottery.pruning.controls import shuffled
from lottery.pruning.prunable import all_weights, prunable, weight_shapes
from lottery.pruning.scoring import Criterion
from lottery.pruning.structure import silent, structured
from lottery.seeding import derive
from lottery.stages.evaluate import evaluated
from lottery.stages.layers import LayerStages
from lottery.stages.masks import MaskStages
from lottery.stages.round import Round
from lottery.stages.search import Searched, searched
from lottery.stages.store import Store
from lottery.stages.train import Trained, TrainStages
from lottery.state import State, StateRef
from lottery.ticket import Mask, Ticket, read_metadata
from lottery.training.parallel import Ranks
from lottery.training.recipe import Recipe
from lottery.training.rewind import RewindPolicy
from lottery.training.search import Search
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
        self.history: list[Round] = []  # the tickets so far, round 0 first; the study adds them
        self.on_copy: Callable[[int, Trained | None], None] = lambda number, trained: None  # before, and after
        self.reused: list[dict[str, str]] = []  # environments of the masks and figures that were found since then
        self.measured: dict[str, str] = {}  # the stages that probes used since the last record: name -> key
        self._model_inputs = {k: v for k, v in config.model.items() if k not in ORIGIN_OPTIONS}
        self._data_inputs = self._read_of_data()
        self._trainings = TrainStages(
            store=self.store,
            build=lambda: self.network(config.seeds.init),
            model_inputs=self._model_inputs,
            data=self.data_on,
            data_inputs=self._data_inputs,
            recipe=self.recipe,
            checkpoint_seconds=60 * config.train.checkpoint_minutes,
            checkpoint_steps=config.train.checkpoint_steps,
            stop=stop,
            on_tick=on_tick,
            ranks=self.ranks,
            units=lambda: self.layers.units,
        )

    # -- data and networks ------------------------------------------------------------------------------------------

    def data_on(self, device: torch.device) -> Dataset:
        """The data set on a device, moved there once a study."""
        if device not in self._placed:
            self._placed[device] = self.dataset.to(device)
        return self._placed[device]

    @property
    def device(self) -> torch.device:
        """Where networks are scored and measured: on the training's GPU, or else on the CPU."""
        if self.ranks.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
            return torch.device("cuda", self.ranks.index or 0)
        return torch.device("cpu")

    @property
    def data(self) -> Dataset:
        """The data set on this device."""
        return self.data_on(self.device)

    def _read_of_data(self) -> dict[str, Any]:
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

    def check(self) -> None:
        """Raise ConfigError for what can be known only with network and data, before anything is computed."""
        self.check_criterion(self._masks.criterion, "criterion")

    # -- what methods are made of -----------------------------------------------------------------------------------

    def step(self, text: str, key: str) -> int:
        """A time such as "500it" or "2ep" as a step of the dense training. ConfigError, naming `key`, past its end."""
        return self.recipe.rewind_step(text, self.dataset.sizes["train"], key)

    def train(self, ticket: Ticket, keep: Iterable[int] = ()) -> Trained:
        """The ticket, trained; cached. `keep` names the steps whose full state will be needed."""
        return self._trainings.train(ticket, keep)

    @property
    def untrained(self) -> Ticket:
        """The dense network as it starts, with nothing to train: its "training" only measures it."""
        return replace(self.initial, steps=0)

    def duration(self, text: str, key: str) -> int:
        """A time such as "500it" or "2ep" in steps of the study's batches. ConfigError, naming `key`, if it is none."""
        return self.recipe.duration(text, self.dataset.sizes["train"], key)

    def every(self, text: str | None, key: str) -> int | None:
        """Likewise, longer than zero; None for None."""
        if text is None:
            return None
        steps = self.duration(text, key)
        if steps < 1:
            raise ConfigError.of(key, text, "a time longer than zero, or null")
        return steps

    def check_search(self, search: Search, tune: Tuning) -> None:
        """Raise ConfigError for a search that the layers do not allow, and for controls where nothing is retrained."""
        if not self.ranks.alone:
            raise ConfigError.of("trainer.devices", self.config.trainer.devices, "1: a search runs on one device")
        search.check(self.initial.mask.shapes)
        if self.config.controls.invert:
            raise ConfigError.of(
                "controls.invert", self.config.controls.invert, "0: a search ranks no weights to invert"
            )
        wanted = [f"controls.{kind}" for kind, count in vars(self.config.controls).items() if count]
        if wanted and not self.duration(tune.steps, "method.tune.steps"):
            raise ConfigError(
                f"{wanted[0]}: controls are retrained as the ticket is, and method.tune.steps=0it is none"
            )

    def searched(self, state: StateRef, steps: str, search: Search, weights: Phase | None = None) -> Searched:
        """The mask that a search of so many steps finds in the network of this state, cached.

        `weights` is what trains these meanwhile; None: they are frozen.
        """
        if self.stop:
            raise Interrupted(self.stop.signum or 0, "before a mask was searched for")
        total = self.duration(steps, "method.steps")
        optim, rate = (self._clipped(weights), weights.rate(total)) if weights else (search.optim, search.lr)
        recipe = replace(self.recipe, total=total, optim=optim, lr=rate)
        full = Mask.ones(self.initial.mask.shapes)
        return searched(self._trainings, Ticket(full, state, 0, 0, total, recipe=recipe), search)

    def tuned(self, index: int, found: Searched, tune: Tuning) -> Round:
        """The round of a mask that was found: its kept weights tuned from where the search left them, if at all."""
        steps = self.duration(tune.steps, "method.tune.steps")
        recipe = replace(self.recipe, total=steps, optim=self._clipped(tune), lr=tune.rate(steps)) if steps else None
        silent = found.result["silent"]
        ticket = Ticket(found.mask, found.state, 0, found.result["batches"], steps, recipe=recipe, silent=silent)
        return Round(index, ticket, self.train(ticket), rewound=0, search=found)

    def _clipped(self, phase: Phase) -> Optim:
        """A phase's optimizer, with the study's limit of the gradient's norm."""
        return replace(phase.optim(), clip_norm=self.recipe.optim.clip_norm)

    def follow(self) -> None:
        """On any rank but the first: train along whenever rank 0 trains."""
        self._trainings.follow()

    @cached_property
    def _masks(self) -> MaskStages:
        config = self.config
        return MaskStages(
            store=self.store,
            build=lambda: self.network(config.seeds.init),
            data=lambda: self.data,
            device=self.device,
            criterion=made(config.criterion, "criterion"),
            seed=config.seeds.mask,
            ignored=self.total_weights - self.initial.mask.size,
            inputs={
                "model": self._model_inputs,
                "data": self._data_inputs,
                "criterion": config.criterion,
                "own code": own_code(config.criterion),
            },
            rank=config.controls.invert > 0,
            network=weight_shapes(self.network(config.seeds.init)),
            facts=self._trainings.facts,
            on_reuse=self.reused.append,
        )

    @cached_property
    def layers(self) -> LayerStages:
        """What can be removed of the network as a whole."""
        config = self.config
        return LayerStages(
            store=self.store,
            build=lambda: self.network(config.seeds.init),
            data=lambda: self.data,
            device=self.device,
            seed=config.seeds.mask,
            inputs={"model": self._model_inputs, "data": self._data_inputs},
            full=Mask.ones(self.initial.mask.shapes),
            facts=self._trainings.facts,
            on_reuse=self.reused.append,
        )

    def scores(self, state: StateRef, mask: Mask) -> dict[str, torch.Tensor]:
        """The criterion's score of every prunable weight of this state; the lowest go first."""
        if self.stop:
            raise Interrupted(self.stop.signum or 0, "before weights were scored")
        return self._masks.scores(state, mask)

    def prune(self, mask: Mask, scores: dict[str, torch.Tensor], rate: float, **options: Any) -> Mask:
        """A fraction `rate` of the kept weights is pruned: `pruning.prune.prune`."""
        return self._masks.prune(mask, scores, rate, **options)

    def prune_to(self, mask: Mask, scores: dict[str, torch.Tensor], density: float) -> Mask:
        """Pruned to exactly round(density * prunable) weights, ranked together."""
        return self._masks.prune_to(mask, scores, density)

    def prune_to_counts(self, mask: Mask, scores: dict[str, torch.Tensor], counts: Mapping[str, int]) -> Mask:
        """Each layer pruned to exactly so many weights."""
        return self._masks.prune_to_counts(mask, scores, counts)

    def ranked(self, before: Mask, after: Mask, scores: dict[str, torch.Tensor]) -> Mask:
        """The mask `after`, chosen from `before` by these scores, so that a round says where it comes from."""
        return self._masks.ranked(before, after, scores)

    @property
    def criterion_steps(self) -> int:
        """In how many steps the criterion's authors prune."""
        return self._masks.steps

    def counts(self, allocation: Any, density: float, state: StateRef | None = None) -> dict[str, int]:
        """How many weights an allocation (its node in the configuration) leaves each layer of the dense network.

        The network is in its initial state, or in the one given. The counts add up to round(density * prunable).
        ConfigError where that is impossible.
        """
        function = made(allocation, "method.allocation")
        return self._masks.counts(function, density, self.initial.mask, state or self.initial.state)

    def check_counts(self, allocation: Any, density: float) -> None:
        """Raise ConfigError where `counts` would, as far as that can be known without scoring weights."""
        self._masks.check_counts(made(allocation, "method.allocation"), density, self.initial.mask)

    def drawn(self, counts: Mapping[str, int]) -> Mask:
        """A mask of these counts at uniformly random positions, from `seeds.mask`."""
        generator = torch.Generator().manual_seed(derive(self.config.seeds.mask, "positions"))
        return drawn(counts, self.initial.mask.shapes, generator)

    def found(self, search: Callable[[], Mask], **inputs: Any) -> Mask:
        """The mask that `search` finds for the initial weights, cached; `inputs` are the options that it reads.

        A saved mask among them (`allocation.path`) counts by its digest, code that is not lottery's by its file's.
        """
        method = self.config.method
        code = own_code([method, inputs])
        allocation = inputs.get("allocation") or {}
        if "path" in allocation:
            inputs |= {"allocation": {**allocation, "path": read_metadata(allocation["path"])["digest"]}}
        start = {"state": self.initial.state.digest, "mask": self.initial.mask.digest}
        search_inputs = {"method": method["_target_"], **inputs, "own code": code}
        return self._masks.found(search, {**start, "search": search_inputs})

    def scored_by(self, criterion: Criterion, state: StateRef, mask: Mask) -> dict[str, torch.Tensor]:
        """The scores of any other criterion, computed now."""
        return self._masks.scored(state, mask, criterion)

    def check_criterion(self, criterion: Criterion, key: str) -> None:
        """Raise ConfigError, naming `key`, where a criterion refuses its options or the data are too few for it."""
        self._masks.check_criterion(criterion, key, self.initial.mask)

    # -- what probes are made of ------------------------------------------------------------------------------------

    @property
    def dense(self) -> Round:
        """Round 0, once the study has it."""
        return self.history[0]

    def copies(self, ticket: Ticket, count: int) -> list[Trained]:
        """The ticket trained `count` times: in the study's data order, and in others (augmentation and noise too).

        Ordinary trainings: cached, continued, and shared by all probes and studies that ask for the same ones.
        """
        return [self.train(ticket)] + [self._copy(ticket, number) for number in range(1, count)]

    def _copy(self, ticket: Ticket, number: int) -> Trained:
        seed, name = derive(self.config.seeds.order, "copy", number), f"train copy {number}"
        first = name not in self.measured  # another probe of this round may have asked for it
        if first:
            self.on_copy(number, None)
        trained = self.train(replace(ticket, order_seed=seed))
        if first:
            self.on_copy(number, trained)
        self.measured[name] = trained.key
        return trained

    def trained_network(self, trained: Trained) -> nn.Module:
        """A private copy of a trained network on the lab's device, in evaluation mode."""
        return self._loaded(trained.state.tensors()).eval()

    def smaller(self, round: Round) -> nn.Module:
        """The trained network of a round as it would be used: really without the units, and the channels, that its
        ticket removed (channels where torch-pruning is installed). A private copy, likewise.
        """
        network = self.trained_network(round.trained)
        if round.ticket.removed:
            self.layers.shallow_(network, round.ticket.removed)
        if structured(round.mask) and find_spec("torch_pruning") is not None:
            from lottery.export.shrink import shrink

            try:
                network = shrink(network.cpu(), self.data.sample(1, 0)[0].cpu()).to(self.device)
            except LotteryError as error:
                LOG.warning("%s; its removed channels are measured as zeros", error)
        return network.to(self.device)

    def start_network(self, ticket: Ticket) -> nn.Module:
        """The network that a ticket's training starts from, likewise."""
        state = ticket.mask.apply(ticket.state.tensors())
        network = self._loaded(self.layers.silenced(state, ticket.removed) if ticket.removed else state).eval()
        if ticket.silent:
            parameters = dict(network.named_parameters())
            with torch.no_grad():
                for name, kept in silent(network, ticket.mask, self.dataset.shape).items():
                    parameters[name][~kept] = 0.0
        return network

    def _loaded(self, state: State) -> nn.Module:
        network = self.network(self.config.seeds.init)
        network.load_state_dict(state, strict=True)
        return network.to(self.device)

    def other_dataset(self, options: Mapping[str, Any]) -> Dataset:
        """Another data set, by its options, on the lab's device."""
        return load(Data(**options), Path(self.config.paths.data), self.config.seeds.split).to(self.device)

    def evaluated(self, name: str, inputs: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The figures (JSON values) that `compute` measures, cached as an `evaluate` stage.

        `inputs` is what they depend on besides model and data: digests, options, a version of the probe's numerics.
        """
        everything = {"probe": name, "model": self._model_inputs, "data": self._data_inputs, **inputs}
        done = evaluated(self.store, everything, compute, **self._trainings.facts())
        self.measured[f"evaluate {name}"] = done.key
        if done.environment:
            self.reused.append(done.environment)
        return done.figures

    def watched(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches, until a stop signal comes. Raises Interrupted then."""
        for batch in batches:
            if self.stop:
                raise Interrupted(self.stop.signum or 0, "while a network was measured")
            yield batch

    def stages(self, round: Round) -> dict[str, str]:
        """The stages that a round came from: what they are -> key."""
        score = self._masks.keys.get(round.mask.digest)
        way = {f"train on the way {number}": key for number, key in enumerate(round.way, 1)}
        chosen = self.layers.keys.get(frozenset(round.ticket.removed)) if round.ticket.removed else None
        way |= {"evaluate units": chosen} if chosen else {}
        if round.search is not None:
            way["search"] = round.search.key
        return {"train": round.trained.key, **({"score": score} if score else {}), **way, **self.measured}

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
        elif of.units is not None:
            ticket = self.layers.control(ticket, kind, copy, of.index)
        elif kind == "invert":  # nothing in it is drawn: its copies are one training
            ticket = replace(ticket, mask=self._masks.inverted(ticket.mask))
        else:  # a random mask of the same layer counts and a shuffled one: one draw, from streams of their own
            mask = shuffled(ticket.mask, derive(seeds.mask, kind, of.index, copy), filters=ticket.silent)
            ticket = replace(ticket, mask=mask)
        units = self.layers.kept(ticket) if of.units is not None else None
        return Round(of.index, ticket, self.train(ticket), kind, copy, of.rewound, units=units)
