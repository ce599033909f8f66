"""The `train` stage: a ticket trained by a recipe, cached, and continued where it was cut short."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

import torch
from torch import nn

from lottery.data.dataset import Dataset
from lottery.errors import Interrupted, LotteryError
from lottery.files import write_json
from lottery.layers.units import Unit, dense_form, remove_, shallow
from lottery.stages.lease import Lease
from lottery.stages.orders import Order
from lottery.stages.store import Stage, Store, environment, recorded_environment
from lottery.stages.trained import Kept, Trained
from lottery.state import State, save_state, state_digest
from lottery.ticket import Mask, Ticket
from lottery.training.checkpoint import load_checkpoint, save_checkpoint
from lottery.training.fit import fit
from lottery.training.masking import mask_optimizer_state
from lottery.training.module import Hooks, MaskedTraining, NonFiniteLoss, Progress
from lottery.training.optim import optimizer_state
from lottery.training.parallel import Abandoned, Ranks, RanksDiffer
from lottery.training.recipe import Recipe
from lottery.training.signals import StopFlag

VERSION = 1  # raise when the numerics of training change
LOG = logging.getLogger("lottery")


@dataclass
class TrainStages:
    """Runs and caches trainings of one network family on one data set by one recipe."""

    store: Store
    build: Callable[[], nn.Module]  # a new network; its weights are then replaced by the ticket's
    model_inputs: dict[str, Any]
    data: Callable[[torch.device], Dataset]
    data_inputs: dict[str, Any]
    recipe: Recipe
    checkpoint_seconds: float
    checkpoint_steps: int | None
    stop: StopFlag
    on_tick: Callable[[Ticket, int, float, float | None], None]
    ranks: Ranks = field(default_factory=Ranks)  # the processes that train together
    units: Callable[[], Mapping[str, Unit]] = dict  # what tickets may remove

    def inputs(self, ticket: Ticket, until: int | None) -> dict[str, Any]:
        """Exactly what the numbers of this training depend on (design, 4.7)."""
        inputs = {
            "version": VERSION,
            "model": self.model_inputs,
            "data": self.data_inputs,
            "recipe": self.recipe_of(ticket).inputs(),
            "state": ticket.state.digest,
            "mask": ticket.mask.digest,
            "optimizer": ticket.optimizer.digest if ticket.optimizer else None,
            "step": ticket.step,
            "order_step": ticket.order_step,
            "steps": ticket.steps,
            "hold_lr": ticket.hold_lr,
            "until": until,
        }
        inputs |= {"silent": True} if ticket.silent else {}
        return inputs | ({"removed": sorted(ticket.removed)} if ticket.removed else {})

    def recipe_of(self, ticket: Ticket) -> Recipe:
        """The ticket's own recipe or else the study's, with the ticket's own data order where it has one."""
        recipe = ticket.recipe or self.recipe
        return recipe if ticket.order_seed is None else replace(recipe, order_seed=ticket.order_seed)

    def train(self, ticket: Ticket, keep: Iterable[int] = ()) -> Trained:
        """The ticket trained to its end, with the full state (network and optimizer) kept at the steps `keep`.

        Which steps are kept is no part of the key, since it changes no number. If the training is already there
        without one of them, the stretch up to that step is trained again, as a stage of its own.
        """
        wanted = {step for step in keep if step != ticket.step}
        end = ticket.step + ticket.steps
        if outside := sorted(step for step in wanted if not ticket.step < step <= end):
            raise LotteryError(f"steps to keep: got {outside}, expected steps between {ticket.step} and {end}")
        trained = self.run(ticket, None, wanted)
        kept, cached = dict(trained.kept), trained.cached
        for step in sorted(wanted - set(kept)):
            stretch = self.run(ticket, step, {step})
            kept |= stretch.kept
            cached &= stretch.cached
        return replace(trained, kept=kept, cached=cached)

    def run(self, ticket: Ticket, until: int | None, keep: set[int]) -> Trained:
        """One stage: found finished, waited for, or computed."""
        stage = self.store.stage("train", self.inputs(ticket, until))

        def compute(lease: Lease) -> None:
            with self.ranks.explained():
                TrainRun(self, stage, lease, ticket, until, frozenset(keep)).compute()

        cached = self.store.finished(stage, compute, **self.facts())
        return Trained.read(ticket, stage, cached)

    def facts(self) -> dict[str, str]:
        """What is recorded of this process beside the library versions."""
        threads, processes = str(torch.get_num_threads()), str(self.ranks.world)
        return {"device": self.device_name(), "threads": threads, "processes": processes}

    def device_name(self) -> str:
        """What trains: "cpu" or the name of the GPU."""
        if self.ranks.accelerator != "cpu" and torch.cuda.is_available():
            return torch.cuda.get_device_name()
        return "cpu"

    def follow(self) -> None:
        """On any rank but the first: train along whenever rank 0 begins a training, until it ends."""
        while (received := self.ranks.receive()) is not None:
            order = Order.read(*received)
            stage = Stage("train", order.key, self.store.root / "train" / order.key, {})
            run = TrainRun(self, stage, Lease(stage.folder), order.ticket, order.until, order.keep)
            with suppress(Interrupted, NonFiniteLoss, RanksDiffer, Abandoned):  # rank 0 knows, and says what is next
                run.train(*order.start)


@dataclass
class TrainRun:
    """The computation of one train stage. Where several ranks do it together, only rank 0 reads and writes files.

    What is trained is the shallow network, without the units that the ticket removes; what is written is its state as
    the dense network's, in which these units' parameters are zero. Both compute the same.
    """

    owner: TrainStages
    stage: Stage
    lease: Lease
    ticket: Ticket
    until: int | None
    keep: frozenset[int]

    def __post_init__(self) -> None:
        self.checkpoint = self.stage.folder / "checkpoint.safetensors"
        self.saved_at, self.saved_step = monotonic(), self.ticket.step
        units = self.owner.units() if self.ticket.removed else {}
        self.removed = [units[name] for name in self.ticket.removed]
        self.parameters: frozenset[str] = frozenset()  # of the dense network

    def compute(self) -> None:
        """On rank 0, which has the others do the same."""
        self.owner.ranks.gather()
        start = self.beginning()
        if not self.owner.ranks.alone:
            self.owner.ranks.send(*Order(self.stage.key, self.ticket, self.until, self.keep, start).written())
        self.train(*start)

    def train(self, network_state: State, optimizer: State | None, progress: Progress) -> None:
        """To the end, or to a signal; the same on all ranks."""
        owner, ranks = self.owner, self.owner.ranks
        if not ranks.alone:
            ranks.same("mask", self.ticket.mask.digest)
            ranks.same("network", state_digest(network_state))
        self.saved_step = progress.step
        network = owner.build()
        self.parameters = frozenset(name for name, _ in network.named_parameters())
        remove_(network, self.removed)
        network.load_state_dict(network_state, strict=True)
        hooks = Hooks(
            stop=lambda: bool(owner.stop),
            due=self.due,
            tick=lambda step, loss, accuracy: owner.on_tick(self.ticket, step, loss, accuracy),
            keep=lambda module: ranks.first_does(lambda: self.keep_state(module)),
            checkpoint=self.maybe_checkpoint,
            finish=self.finish,
        )
        module = self.module(network, progress, optimizer, hooks)
        fit(module, ranks.accelerator, self.stage.folder, ranks.index)

    def module(self, network: nn.Module, progress: Progress, optimizer: State | None, hooks: Hooks) -> MaskedTraining:
        """What Lightning drives."""
        owner, ticket = self.owner, self.shallow_ticket()
        recipe = owner.recipe_of(ticket)
        return MaskedTraining(
            network, ticket, recipe, owner.data, progress, self.keep, self.until, optimizer, hooks, owner.ranks
        )

    def shallow_ticket(self) -> Ticket:
        """The ticket as the shallow network has it: an ordinary one."""
        if not self.removed:
            return self.ticket
        gone = {name for unit in self.removed for name in unit.tensors}
        mask = Mask({name: kept for name, kept in self.ticket.mask.items() if name not in gone})
        return replace(self.ticket, mask=mask, removed=())

    def dense(self, state: State) -> State:
        """The shallow network's state as the dense network's."""
        if not self.removed:
            return state
        return dense_form(state, self.ticket.state.tensors(), self.removed, self.parameters)

    def beginning(self) -> tuple[State, State | None, Progress]:
        """Where to start: the last checkpoint, or the ticket."""
        if self.checkpoint.exists():
            try:
                found = load_checkpoint(self.checkpoint)
                LOG.info("continue training %s at step %d", self.stage.key[:12], found[2].step)
                self.note_environment()
                return found
            except LotteryError as error:
                LOG.warning("%s; this training starts again", error)
        state = shallow(self.ticket.mask.apply(self.ticket.state.tensors()), self.removed)
        optimizer = None
        if self.ticket.optimizer is not None:
            optimizer = mask_optimizer_state(self.ticket.optimizer.tensors(), self.ticket.mask)
            gone = {name for unit in self.removed for name in unit.tensors}
            optimizer = {key: value for key, value in optimizer.items() if key.rpartition("/")[0] not in gone}
        return state, optimizer, Progress(self.ticket.step)

    def note_environment(self) -> None:
        """Say where a training is continued by other versions or elsewhere than it was begun."""
        then, now = recorded_environment(self.stage.folder), environment() | self.owner.facts()
        changed = [f"{name} {then.get(name)}, now {now[name]}" for name in now if then.get(name) != now[name]]
        if changed:
            LOG.warning("training %s was begun with %s", self.stage.key[:12], "; ".join(changed))

    def keep_state(self, module: MaskedTraining) -> None:
        """Write network and optimizer at the present step."""
        step = module.progress.step
        state, optimizer = self.dense(module.snapshot()), optimizer_state(module.optimizer, module.network)
        self.lease.check()
        state_path, optimizer_path = Kept.paths(self.stage.folder, step)
        save_state(state, state_path)
        save_state(optimizer, optimizer_path)
        module.progress.kept[str(step)] = {"state": state_digest(state), "optimizer": state_digest(optimizer)}

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due, by the clock or by the step count."""
        steps = self.owner.checkpoint_steps
        by_count = steps is not None and step - self.saved_step >= steps
        return by_count or monotonic() - self.saved_at > self.owner.checkpoint_seconds

    def maybe_checkpoint(self, module: MaskedTraining) -> None:
        """Save when it is due; after a stop signal, which any rank may have had, save and leave."""
        step, ranks = module.progress.step, self.owner.ranks
        signum, due = ranks.most(self.owner.stop.signum or 0, self.due(step))
        if not signum and not due:
            return
        ranks.first_does(lambda: self.save(module, leaving=signum > 0))
        self.saved_at, self.saved_step = monotonic(), step
        if signum:
            raise Interrupted(signum, f"at step {step}")

    def save(self, module: MaskedTraining, leaving: bool) -> None:
        """Write the checkpoint. A disk that is full for the moment does not end a training that could still finish."""
        self.lease.check()
        try:
            save_checkpoint(module, self.checkpoint)
        except LotteryError as error:
            if leaving:
                raise
            LOG.warning("%s; the training goes on without this checkpoint", error)

    def finish(self, module: MaskedTraining) -> None:
        """Measure, write the results, and seal the stage. The test set is read here and nowhere else."""
        progress, ranks = module.progress, self.owner.ranks
        state = module.snapshot()
        if not ranks.alone:
            ranks.same("trained network", state_digest(state))
        result: dict[str, Any] = {
            "kept": progress.kept,
            "curve": progress.curve,
            "steps": module.end - self.ticket.step,
            "seconds": progress.seconds,
        }
        if self.until is None:
            result |= _final_scores(module, state)
        ranks.first_does(lambda: self.write(state, result))

    def write(self, state: State, result: dict[str, Any]) -> None:
        """The results, and the seal."""
        self.lease.check()
        state = self.dense(state)
        save_state(state, self.stage.folder / "state.safetensors")
        write_json(self.stage.folder / "result.json", {"state_digest": state_digest(state), **result})
        self.stage.finish(without=(self.checkpoint.name,))
        self.checkpoint.unlink(missing_ok=True)


def _final_scores(module: MaskedTraining, state: State) -> dict[str, Any]:
    """Loss and accuracy of the trained network, which holds `state`, and the test accuracy at the early-stop step."""
    scores: dict[str, Any] = {}
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        measured = module.score(split) if module.data.sizes[split] else (None, None)
        scores[f"{name}_loss"], scores[f"{name}_accuracy"] = measured
    best, step = module.progress.best_state, module.progress.best_step
    scores["early_stop_step"] = step
    scores["early_stop_test_accuracy"] = scores["test_accuracy"] if step == module.end else None
    if best is not None and step != module.end:
        module.network.load_state_dict(best)
        try:
            scores["early_stop_test_accuracy"] = module.score("test")[1]
        finally:  # a signal may end the measuring, and what is saved then is the network
            module.network.load_state_dict(state)
    return scores
