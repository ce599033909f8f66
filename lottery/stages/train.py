"""The `train` stage: a ticket trained by a recipe, cached, and continued where it was interrupted."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic
from typing import Any

from torch import nn

from lottery.errors import Interrupted, LotteryError
from lottery.layers.removal import dense_form, remove_, shallow
from lottery.lease import LeaseLost
from lottery.ranks.broadcast import Broadcast
from lottery.recipe import Recipe
from lottery.stages.setup import Setup
from lottery.stages.store import Stage, environment, recorded_environment
from lottery.stages.trained import Trained, kept_states
from lottery.state import State, restore_, save_state, state_digest
from lottery.tensor_files import EARLY_STOP, END, kept_path
from lottery.ticket import Mask, Ticket
from lottery.training.checkpoint import load_checkpoint, save_checkpoint
from lottery.training.fit import fit
from lottery.training.masking import mask_optimizer_state
from lottery.training.module import Hooks, MaskedTraining
from lottery.training.optim import optimizer_state
from lottery.training.progress import Progress

VERSION = 1  # raise when the numerics of training change
LOG = logging.getLogger("lottery")


class Trainings(Setup):
    """Trainings of tickets, cached."""

    def train(self, ticket: Ticket, keep: Iterable[int] = ()) -> Trained:
        """Train the ticket to its end; cached. `keep` names the steps whose full state will be needed.

        Kept steps are no part of the key, since they change no number. If a finished training lacks one, the training
        up to that step is repeated as a stage of its own. LotteryError for a step outside of the training.
        """
        wanted = {step for step in keep if step != ticket.step}
        end = ticket.step + ticket.steps
        if outside := sorted(step for step in wanted if not ticket.step < step <= end):
            raise LotteryError(f"steps to keep: got {outside}, expected steps between {ticket.step} and {end}")
        trained = self._train_stage(ticket, None, wanted)
        stretches = [self._train_stage(ticket, step, {step}) for step in sorted(wanted - set(trained.kept))]
        kept = {step: state for each in (trained, *stretches) for step, state in each.kept.items()}
        return replace(trained, kept=kept, cached=all(each.cached for each in (trained, *stretches)))

    def _train_stage(self, ticket: Ticket, until: int | None, keep: set[int]) -> Trained:
        """Find or compute one train stage. `until`: the step where it ends, if before the ticket's end."""

        def compute(stage: Stage) -> None:
            with self.ranks.translate_errors():
                TrainRun(self, stage, ticket, until, frozenset(keep)).compute()

        return self.cached("train", self._train_inputs(ticket, until), compute, partial(Trained.read, ticket))

    def train_stage(self, ticket: Ticket) -> Stage:
        """Return the stage of a ticket's training, finished or not."""
        return self.store.stage("train", self._train_inputs(ticket, None))

    def _train_inputs(self, ticket: Ticket, until: int | None) -> dict[str, Any]:
        """Return the inputs of a train stage: all that its numbers depend on (design, 4.7)."""
        inputs = {
            "version": VERSION,
            **self.common_inputs,
            "recipe": self._recipe_of(ticket).inputs(),
            "state": ticket.state.digest,
            "mask": ticket.mask.digest,
            "optimizer": ticket.optimizer.digest if ticket.optimizer else None,
            "until": until,
            **{name: getattr(ticket, name) for name in ("step", "order_step", "steps", "hold_lr")},
        }
        inputs |= {"silent": True} if ticket.silent else {}
        return inputs | ({"removed": sorted(ticket.removed)} if ticket.removed else {})

    def _recipe_of(self, ticket: Ticket) -> Recipe:
        """Return the ticket's recipe or else the study's, with the ticket's data order where it has one."""
        recipe = ticket.recipe or self.recipe
        return recipe if ticket.order_seed is None else replace(recipe, order_seed=ticket.order_seed)


@dataclass
class TrainRun:
    """A run of one train stage. Where several ranks do it together, only rank 0 reads and writes files.

    The network that is trained is the shallow one, without the units that the ticket removes. The state that is written
    is the equivalent dense network's, in which the parameters of these units are zero.
    """

    setup: Trainings
    stage: Stage
    ticket: Ticket
    until: int | None
    keep: frozenset[int]

    def __post_init__(self) -> None:
        self.checkpoint = self.stage.folder / "checkpoint.safetensors"
        self.saved_at, self.saved_step = monotonic(), self.ticket.step
        self.saved_batches = 0  # measured at that step
        self.ranks = self.setup.ranks
        self.removed = [self.setup.units[name] for name in self.ticket.removed]
        self.parameters: frozenset[str] = frozenset()  # names in the dense network

    def compute(self) -> None:
        """Train on rank 0, and send the training to the other ranks, which join it."""
        self.ranks.start_others()
        start = self.beginning()
        self.ranks.broadcast(Broadcast(self.stage.key, self.ticket, self.until, self.keep, start))
        self.train(*start)

    def train(self, network_state: State, optimizer: State | None, progress: Progress) -> None:
        """Train to the end, or until a signal. All ranks call this."""
        ranks = self.ranks
        ranks.check_same("mask", lambda: self.ticket.mask.digest)
        ranks.check_same("network", lambda: state_digest(network_state))
        self.saved_step, self.saved_batches, self.told = progress.step, progress.measured, 0
        network = self.setup.network()
        self.parameters = frozenset(name for name, _ in network.named_parameters())
        remove_(network, self.removed)
        restore_(network, network_state)
        hooks = Hooks(
            stop=lambda: bool(self.setup.stop),
            due=self.due,
            tick=lambda step, loss, accuracy: self.setup.on_tick(self.ticket, step, loss * ranks.world, accuracy),
            keep=lambda module: ranks.on_first(lambda: self.keep_state(module)),
            checkpoint=self.maybe_checkpoint,
            finish=self.finish,
        )
        module = self.module(network, progress, optimizer, hooks)
        fit(module, ranks.accelerator, self.stage.folder, ranks.index)

    def module(self, network: nn.Module, progress: Progress, optimizer: State | None, hooks: Hooks) -> MaskedTraining:
        """Build the module that Lightning drives."""
        ticket, data = self.shallow_ticket(), self.setup.data_on
        recipe = self.setup._recipe_of(ticket)
        return MaskedTraining(
            network, ticket, recipe, data, progress, self.keep, self.until, optimizer, hooks, self.ranks
        )

    def shallow_ticket(self) -> Ticket:
        """Return the ticket for the shallow network: without removed units and their masks."""
        if not self.removed:
            return self.ticket
        gone = {name for unit in self.removed for name in unit.tensors}
        mask = Mask({name: kept for name, kept in self.ticket.mask.items() if name not in gone})
        return replace(self.ticket, mask=mask, removed=())

    def dense(self, state: State) -> State:
        """Convert the shallow network's state to the dense network's."""
        if not self.removed:
            return state
        return dense_form(state, self.ticket.state.tensors(), self.removed, self.parameters)

    def beginning(self) -> tuple[State, State | None, Progress]:
        """Return the state to start from: that of the last checkpoint, or else the ticket's."""
        if self.checkpoint.exists():
            try:
                found = load_checkpoint(self.checkpoint, self.stage.key)
                self.check_kept(found[2])
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

    def check_kept(self, progress: Progress) -> None:
        """Raise LotteryError where kept files make the checkpoint useless. A training's can be computed again."""

    def note_environment(self) -> None:
        """Warn if a training is continued with other versions or on another machine than it was begun."""
        then, now = recorded_environment(self.stage.folder), environment() | self.setup.facts()
        changed = [f"{name} {then.get(name)}, now {now[name]}" for name in now if then.get(name) != now[name]]
        if changed:
            LOG.warning("training %s was begun with %s", self.stage.key[:12], "; ".join(changed))

    def keep_state(self, module: MaskedTraining) -> None:
        """Write the states of network and optimizer at the current step."""
        step, optimizer = module.progress.step, optimizer_state(module.optimizer, module.network)
        states = {"state": self.dense(module.snapshot()), "optimizer": optimizer}
        for what, state in states.items():
            save_state(state, kept_path(self.stage.folder, what, step))
        module.progress.kept[str(step)] = {what: state_digest(state) for what, state in states.items()}

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due, by the clock or by the step count."""
        options = self.setup.config.train
        by_count = options.checkpoint_steps is not None and step - self.saved_step >= options.checkpoint_steps
        return by_count or monotonic() - self.saved_at > 60 * options.checkpoint_minutes

    def maybe_checkpoint(self, module: MaskedTraining) -> None:
        """Save a checkpoint if it is due. After a stop signal on any rank, save and raise Interrupted."""
        step = module.progress.step
        if points := module.progress.curve[self.told :]:
            self.told += len(points)
            self.setup.on_points(self.ticket, points)
        signum, due = self.ranks.maximum(self.setup.stop.signum or 0, self.due(step))
        if not signum and not due:
            return
        self.ranks.on_first(lambda: self.save(module, leaving=signum > 0))
        self.saved_at, self.saved_step, self.saved_batches = monotonic(), step, module.progress.measured
        if signum:
            raise Interrupted(signum, f"at step {step}")

    def save(self, module: MaskedTraining, leaving: bool) -> None:
        """Write the checkpoint. A failure, such as a full disk, is only logged, unless the process is `leaving`."""
        try:
            save_checkpoint(module, self.checkpoint, self.stage.key)
            if (module.progress.step, module.progress.measured) > (self.saved_step, self.saved_batches):
                self.setup.store.attempts.left()
        except LeaseLost:
            raise
        except LotteryError as error:
            if leaving:
                raise
            LOG.warning("%s; the training goes on without this checkpoint", error)

    def finish(self, module: MaskedTraining) -> None:
        """Measure, write the results, and seal the stage. A training reads the test set only here."""
        progress, state = module.progress, module.snapshot()
        self.ranks.check_same("trained network", lambda: state_digest(state))
        result: dict[str, Any] = {
            "kept": progress.kept,
            "curve": progress.curve,
            "steps": module.end - self.ticket.step,
            "seconds": progress.seconds,
        }
        early = None
        if self.until is None:
            result |= _final_scores(module, state)
            early = progress.best_state if progress.best_step not in (self.ticket.step, module.end) else None
        self.ranks.on_first(lambda: self.write(state, early, result))

    def write(self, state: State, early: State | None, result: dict[str, Any]) -> None:
        """Write the results, and seal the stage. early: the state of lowest validation loss, if neither end is it."""
        if early is not None:
            early = self.dense(early)
            save_state(early, self.stage.folder / EARLY_STOP)
            result["early_stop_digest"] = state_digest(early)
        state = self.dense(state)
        result["kept"] = {step: digests for step, digests in result["kept"].items() if self.sound(step, digests)}
        save_state(state, self.stage.folder / END)
        self.seal({"state_digest": state_digest(state), **result})

    def seal(self, result: dict[str, Any]) -> None:
        """Finish the stage, and remove its checkpoint."""
        self.stage.finish(result, without=(self.checkpoint.name,))
        self.checkpoint.unlink(missing_ok=True)

    def sound(self, step: str, digests: dict[str, str]) -> bool:
        """Whether the states kept at a step are intact. Damaged ones are deleted, and `train` computes them again."""
        try:
            for reference in kept_states(self.stage.folder, step, digests).values():
                reference.tensors()
        except LotteryError as error:
            LOG.warning("%s; it is computed again if it is needed", error)
            for what in digests:
                kept_path(self.stage.folder, what, step).unlink(missing_ok=True)
            return False
        return True


def _final_scores(module: MaskedTraining, state: State) -> dict[str, Any]:
    """Measure the trained network, which holds `state`, and the test accuracy at the early-stop step."""
    scores: dict[str, Any] = {}
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        measured = module.score(split, f"final {split}") if module.data.sizes[split] else (None, None)
        scores[f"{name}_loss"], scores[f"{name}_accuracy"] = measured
    best, step = module.progress.best_state, module.progress.best_step
    scores["early_stop_step"] = step
    scores["early_stop_test_accuracy"] = scores["test_accuracy"] if step == module.end else None
    if best is not None and step != module.end:
        restore_(module.network, best)
        try:
            scores["early_stop_test_accuracy"] = module.score("test", "early stop test")[1]
        finally:  # a signal may end the measuring, and the network is saved then
            restore_(module.network, state)
    return scores
