"""The inputs that all stages of a study share: configuration, data, networks, recipe, and the stage store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from lottery.config import Config
from lottery.data.dataset import Batch, Dataset
from lottery.data.load import load
from lottery.errors import ConfigError, Interrupted
from lottery.layers.removal import Unit
from lottery.layers.units import find_units
from lottery.models.build import build, check_fit, start_network
from lottery.own_code import code_inputs
from lottery.pruning.prunable import prunable, weight_shapes
from lottery.ranks.alone import Alone
from lottery.recipe import Recipe
from lottery.signals import StopFlag
from lottery.stages.store import Stage, Store
from lottery.state import State, StateRef, restore_
from lottery.ticket import Mask, Ticket
from lottery.training.rewind import RewindPolicy

# Options of the start weights, which no stage key has: the digest of the start state stands for them.
ORIGIN_OPTIONS = ("init", "weights", "pretrained", "bn_scale", "drop_head")
# The data options in every stage key, besides the digest of the data.
DATA_OPTIONS = ("scaling", "mean", "std", "flip", "crop", "validation", "limit")

T = TypeVar("T")


class Setup:
    """One study's configuration, data, networks, recipe and stage store."""

    def __init__(
        self,
        config: Config,
        stop: StopFlag,
        on_tick: Callable[[Ticket, int, float, float | None], None],
        store: Store | None = None,
        ranks: Alone | None = None,
    ) -> None:
        """Load the data. LotteryError where the number of processes is not the configured one.

        on_tick: called during trainings with ticket, step, loss, and the last accuracy
        store:   None: that in `paths.store`
        """
        self.config, self.stop, self.on_tick = config, stop, on_tick
        self.on_points: Callable[[Ticket, list[list[Any]]], None] = lambda ticket, points: None  # new ones of its curve
        self.ranks = Alone(config.trainer) if ranks is None else ranks
        self.ranks.check(config.trainer)
        self.store = Store(Path(config.paths.store), stop=stop) if store is None else store
        self.dataset = load(config.data, Path(config.paths.data), config.seeds.split)
        self._placed: dict[torch.device, Dataset] = {}
        self.recipe = Recipe.resolve(config, self.dataset.sizes["train"])
        self.rewind = RewindPolicy.resolve(config.rewind, self.recipe, self.dataset.sizes["train"])
        options = {name: value for name, value in config.model.items() if name not in ORIGIN_OPTIONS}
        self.common_inputs = {
            "model": options | code_inputs(config.model),
            "data": self._data_inputs(),
        }  # in the key of every stage
        self.warned = set[str]()  # which warnings were given
        self.first_part = 0.0  # where `parts` begins, in [0, 1)

    def data_on(self, device: torch.device) -> Dataset:
        """Return the data set on a device, moved there once a study."""
        if device not in self._placed:
            self._placed[device] = self.dataset.to(device)
        return self._placed[device]

    @property
    def device(self) -> torch.device:
        """The device on which networks are scored and measured: the training's GPU, or else the CPU."""
        if self.ranks.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
            return torch.device("cuda", self.ranks.index or 0)
        return torch.device("cpu")

    @property
    def data(self) -> Dataset:
        """The data set on `device`."""
        return self.data_on(self.device)

    def sample(self, per_class: int) -> Batch:
        """Draw `per_class` training images of each class, by `seeds.mask`."""
        return self.data.sample(per_class, self.config.seeds.mask)

    def _data_inputs(self) -> dict[str, Any]:
        data = self.config.data
        options = {name: getattr(data, name) for name in DATA_OPTIONS}
        if data.resize:  # image folders are scaled and cropped while they are read
            options |= {"resize": data.resize, "shape": list(data.shape)}
        options |= {"padding": data.padding} if data.padding != "black" else {}
        options |= {"alternate": True} if data.alternate else {}
        options |= {"digest": self.dataset.digest, "split_seed": self.config.seeds.split}
        return options | code_inputs({"_target_": data._target_})

    def network(self, seed: int | None = None) -> nn.Module:
        """Build a network with the initial weights of this seed (None: `seeds.init`)."""
        seed = self.config.seeds.init if seed is None else seed
        return build(self.config.model, self.dataset.shape, self.dataset.classes, seed)

    def loaded(self, state: State) -> nn.Module:
        """Build a network with the weights of this state, on `device`."""
        network = self.network()
        restore_(network, state)
        return network.to(self.device)

    def initial_state(self, seed: int) -> StateRef:
        """Draw new initial weights, buffers included. A weights file is not read, as a control must not see it."""
        return StateRef.of(self._start(seed, fresh=True).state_dict())

    def _start(self, seed: int, fresh: bool = False) -> nn.Module:
        shape, classes, images = self.dataset.shape, self.dataset.classes, self.dataset.images
        return start_network(self.config.model, shape, classes, seed, images, fresh)

    @cached_property
    def initial(self) -> Ticket:
        """Ticket of the dense network at step 0: a full mask, the initial weights, the whole training ahead."""
        network = self._start(self.config.seeds.init)
        mask = Mask.ones(prunable(network, self.config.prunable.exclude))
        return Ticket(mask, StateRef.of(network.state_dict()), step=0, order_step=0, steps=self.recipe.total)

    @property
    def untrained(self) -> Ticket:
        """Ticket of the dense network at step 0 with no steps to train: its "training" only measures it."""
        return replace(self.initial, steps=0)

    @cached_property
    def weights(self) -> dict[str, torch.Size]:
        """The shape of every convolution, linear and attention weight, also of those never pruned."""
        return weight_shapes(self.network())

    @property
    def total_weights(self) -> int:
        """The number of values in `weights`: the denominator of `density_weights`."""
        return sum(shape.numel() for shape in self.weights.values())

    @cached_property
    def units(self) -> dict[str, Unit]:
        """The residual units that can be removed, in the order of the forward pass; empty where there are none."""
        return find_units(self.network(), self.dataset.shape)

    def step(self, text: str, key: str) -> int:
        """Convert a time such as "500it" to a step of the dense training. ConfigError, naming `key`, past its end."""
        return self.recipe.rewind_step(text, self.dataset.sizes["train"], key)

    def duration(self, text: str, key: str) -> int:
        """Convert a time such as "2ep" to steps of the study's batches. ConfigError, naming `key`, if it is no time."""
        return self.recipe.duration(text, self.dataset.sizes["train"], key)

    def every(self, text: str | None, key: str) -> int | None:
        """Like `duration`, but must be longer than zero; None stays None."""
        if text is None:
            return None
        steps = self.duration(text, key)
        if steps < 1:
            raise ConfigError.of(key, text, "a time longer than zero, or null")
        return steps

    def check_short_batch(self, searched: Any) -> None:
        """Raise ConfigError if a batch has one image and the network's normalisation does not take that.

        searched: the method's `steps`; a text such as "2ep" is the length of its search
        """
        config, size = self.config, self.dataset.sizes["train"]
        batch, (epochs, rest) = config.train.batch_size, divmod(size, config.train.batch_size)
        steps = max(self.recipe.total, self.duration(searched, "method.steps") if isinstance(searched, str) else 0)
        if batch > 1 and (rest != 1 or config.train.drop_last or steps <= epochs):
            return
        try:
            check_fit(config.model, tuple(config.data.shape), config.data.classes, batch=1)
        except ConfigError as error:
            expected = "a size that leaves no batch of one image, or train.drop_last=true"
            text = f"train.batch_size: got {batch} for {size} images, expected {expected}; {error}"
            raise ConfigError(text) from error

    def parts(self, parts: Sequence[T]) -> list[T]:
        """Return the parts of a study that do not depend on each other, in order.

        A worker (`lottery.workers`) gets them in turned order, so that workers begin with different parts.
        """
        first = int(self.first_part * len(parts))
        return [*parts[first:], *parts[:first]]

    def check_stop(self, when: str) -> None:
        """Raise Interrupted, with `when` in its message, if a stop signal has come."""
        if self.stop:
            raise Interrupted(self.stop.signum or 0, when)

    def facts(self) -> dict[str, str]:
        """Return device, threads and processes, which `stage.json` records; no part of any key."""
        gpu = self.ranks.accelerator != "cpu" and torch.cuda.is_available()
        device = torch.cuda.get_device_name() if gpu else "cpu"
        return {"device": device, "threads": str(torch.get_num_threads()), "processes": str(self.ranks.world)}

    def cached(
        self, kind: str, inputs: dict[str, Any], compute: Callable[[Stage], object], read: Callable[[Stage, bool], T]
    ) -> T:
        """Find or compute a stage (`Store.cached`)."""
        return self.store.cached(kind, inputs, compute, read, **self.facts())

    def figures(self, inputs: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], str]:
        """Return figures (JSON values) and the key of their `evaluate` stage; compute them if they are not cached."""
        return self.cached(
            "evaluate", inputs, lambda stage: stage.finish(compute()), lambda stage, _: (stage.result(), stage.key)
        )
