"""The `train` stage: a ticket trained by a recipe, cached, and continued where it was cut short."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import nn

from lottery.data.dataset import Dataset
from lottery.errors import Interrupted, LotteryError
from lottery.files import write_json
from lottery.stages.lease import Lease
from lottery.stages.store import Stage, Store, environment
from lottery.state import State, StateRef, save_state, state_digest
from lottery.ticket import Ticket
from lottery.training.checkpoint import load_checkpoint, save_checkpoint
from lottery.training.masking import mask_optimizer_state
from lottery.training.module import Hooks, MaskedTraining, Progress, snapshot
from lottery.training.optim import optimizer_state
from lottery.training.recipe import Recipe
from lottery.training.signals import StopFlag

VERSION = 1  # raise when the numerics of training change
LOG = logging.getLogger("lottery")


@dataclass(frozen=True)
class Kept:
    """The full state of a training at one step: network and optimizer."""

    state: StateRef
    optimizer: StateRef

    @classmethod
    def paths(cls, folder: Path, step: int) -> tuple[Path, Path]:
        return folder / f"state_{step:08d}.safetensors", folder / f"optimizer_{step:08d}.safetensors"

    @classmethod
    def read(cls, folder: Path, step: int, digests: dict[str, str]) -> Kept:
        state, optimizer = cls.paths(folder, step)
        return cls(StateRef.file(state, digests["state"]), StateRef.file(optimizer, digests["optimizer"]))


@dataclass(frozen=True)
class Trained:
    """A finished training. States are read from disk when asked for."""

    ticket: Ticket
    key: str
    folder: Path
    result: dict[str, Any]
    kept: dict[int, Kept]
    cached: bool

    @classmethod
    def read(cls, ticket: Ticket, stage: Stage, cached: bool) -> Trained:
        result = stage.result()
        kept = {int(step): Kept.read(stage.folder, int(step), digests) for step, digests in result["kept"].items()}
        return cls(ticket, stage.key, stage.folder, result, kept, cached)

    @property
    def state(self) -> StateRef:
        """The trained network; pruned weights are exactly zero."""
        return StateRef.file(self.folder / "state.safetensors", self.result["state_digest"])

    def at(self, step: int) -> StateRef:
        """The network at the start, or at a kept step."""
        return self.ticket.state if step == self.ticket.step else self._kept(step).state

    def optimizer_at(self, step: int) -> StateRef | None:
        """The optimizer's state at a kept step; at the start, what the ticket said (None: fresh)."""
        return self.ticket.optimizer if step == self.ticket.step else self._kept(step).optimizer

    def environment(self) -> dict[str, str]:
        """Library versions, machine and device that it was computed with."""
        return json.loads((self.folder / "stage.json").read_text())["environment"]

    def _kept(self, step: int) -> Kept:
        if step not in self.kept:
            raise LotteryError(f"step {step} of training {self.key[:12]} was not kept; kept: {sorted(self.kept)}")
        return self.kept[step]


@dataclass
class TrainStages:
    """Runs and caches trainings of one network family on one data set by one recipe."""

    store: Store
    build: Callable[[], nn.Module]  # a new network; its weights are then replaced by the ticket's
    model_inputs: dict[str, Any]
    data: Callable[[torch.device], Dataset]
    data_inputs: dict[str, Any]
    recipe: Recipe
    accelerator: str
    checkpoint_seconds: float
    checkpoint_steps: int | None
    stop: StopFlag
    on_tick: Callable[[Ticket, int, float, float | None], None]

    def inputs(self, ticket: Ticket, until: int | None) -> dict[str, Any]:
        """Exactly what the numbers of this training depend on (design, 4.7)."""
        return {
            "version": VERSION,
            "model": self.model_inputs,
            "data": self.data_inputs,
            "recipe": self.recipe.inputs(),
            "state": ticket.state.digest,
            "mask": ticket.mask.digest,
            "optimizer": ticket.optimizer.digest if ticket.optimizer else None,
            "step": ticket.step,
            "order_step": ticket.order_step,
            "steps": ticket.steps,
            "hold_lr": ticket.hold_lr,
            "until": until,
        }

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
            _Run(self, stage, lease, ticket, until, frozenset(keep)).compute()

        cached = self.store.finished(stage, compute, **self.facts())
        return Trained.read(ticket, stage, cached)

    def facts(self) -> dict[str, str]:
        """What is recorded of this process beside the library versions."""
        return {"device": self.device_name(), "threads": str(torch.get_num_threads())}

    def device_name(self) -> str:
        """What trains: "cpu" or the name of the GPU."""
        if self.accelerator != "cpu" and torch.cuda.is_available():
            return torch.cuda.get_device_name()
        return "cpu"


@dataclass
class _Run:
    """The computation of one train stage."""

    owner: TrainStages
    stage: Stage
    lease: Lease
    ticket: Ticket
    until: int | None
    keep: frozenset[int]

    def __post_init__(self) -> None:
        self.checkpoint = self.stage.folder / "checkpoint.safetensors"
        self.saved_at, self.saved_step = monotonic(), self.ticket.step

    def compute(self) -> None:
        network_state, optimizer, progress = self.beginning()
        self.saved_step = progress.step
        network = self.owner.build()
        network.load_state_dict(network_state, strict=True)
        hooks = Hooks(
            stop=lambda: bool(self.owner.stop),
            due=self.due,
            tick=lambda step, loss, accuracy: self.owner.on_tick(self.ticket, step, loss, accuracy),
            keep=self.keep_state,
            checkpoint=self.maybe_checkpoint,
            finish=self.finish,
        )
        module = MaskedTraining(
            network, self.ticket, self.owner.recipe, self.owner.data, progress, self.keep, self.until, optimizer, hooks
        )
        fit(module, self.owner.accelerator, self.stage.folder)

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
        state = self.ticket.mask.apply(self.ticket.state.tensors())
        optimizer = None
        if self.ticket.optimizer is not None:
            optimizer = mask_optimizer_state(self.ticket.optimizer.tensors(), self.ticket.mask)
        return state, optimizer, Progress(self.ticket.step)

    def note_environment(self) -> None:
        """Say where a training is continued by other versions or elsewhere than it was begun."""
        then, now = self.stage.environment(), environment() | self.owner.facts()
        changed = [f"{name} {then.get(name)}, now {now[name]}" for name in now if then.get(name) != now[name]]
        if changed:
            LOG.warning("training %s was begun with %s", self.stage.key[:12], "; ".join(changed))

    def keep_state(self, module: MaskedTraining) -> None:
        """Write network and optimizer at the present step."""
        step = module.progress.step
        state, optimizer = snapshot(module.network), optimizer_state(module.optimizer, module.network)
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
        """Save when it is due; after a stop signal save and leave, to continue from here.

        A disk that is full for the moment does not end a training that could still finish.
        """
        signum, step = self.owner.stop.signum, module.progress.step
        if signum is None and not self.due(step):
            return
        self.lease.check()
        try:
            save_checkpoint(module, self.checkpoint)
        except LotteryError as error:
            if signum is not None:
                raise
            LOG.warning("%s; the training goes on without this checkpoint", error)
        self.saved_at, self.saved_step = monotonic(), step
        if signum is not None:
            raise Interrupted(signum, f"at step {step}")

    def finish(self, module: MaskedTraining) -> None:
        """Measure, write the results, and seal the stage. The test set is read here and nowhere else."""
        progress = module.progress
        state = snapshot(module.network)
        result: dict[str, Any] = {
            "state_digest": state_digest(state),
            "kept": progress.kept,
            "curve": progress.curve,
            "steps": module.end - self.ticket.step,
            "seconds": progress.seconds,
        }
        if self.until is None:
            result |= _final_scores(module, state)
        self.lease.check()
        save_state(state, self.stage.folder / "state.safetensors")
        write_json(self.stage.folder / "result.json", result)
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


class _Trainer(pl.Trainer):
    """Leaves to us a SIGTERM that the stop flag has seen: Lightning would exit between chunks, with nothing saved."""

    stop: Callable[[], bool]

    @property
    def received_sigterm(self) -> bool:
        return super().received_sigterm and not self.stop()


def fit(module: MaskedTraining, accelerator: str, folder: Path) -> None:
    """Let Lightning drive the chunks.

    The environment plugin is chosen, never detected: under SLURM Lightning would otherwise install signal handlers of
    its own and silently load the newest `hpc_ckpt_*` of the folder (specs: anchors E.3).
    """
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric)\b.*")
        trainer = _Trainer(
            accelerator=accelerator,
            devices=1,
            max_epochs=1,
            plugins=[LightningEnvironment()],
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.stop = module.hooks.stop
        try:
            trainer.fit(module)
        except SystemExit as error:  # what Lightning makes of a KeyboardInterrupt
            if isinstance(error.__context__, KeyboardInterrupt):
                raise error.__context__ from None
            raise
