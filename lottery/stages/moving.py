"""The training of a network whose mask moves: a `train` stage with a further result, the mask at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from torch import nn

from lottery.cost.counts import multiply_adds
from lottery.errors import ConfigError
from lottery.moving.cost import relative_cost
from lottery.moving.plan import Plan
from lottery.own_code import code_inputs
from lottery.stages.store import Stage
from lottery.stages.train import Trainings, TrainRun
from lottery.stages.trained import Moved, kept_path, stored_mask
from lottery.state import State
from lottery.ticket import Ticket
from lottery.training.module import Hooks, MaskedTraining
from lottery.training.moving import MovingTraining
from lottery.training.progress import Progress

VERSION = 2  # raise when the numerics of all such trainings change; for one method alone raise its `revision`
UNKEYED = ("allocation", "snapshots")  # the mask at the start stands for the first


class Movings(Trainings):
    """Trainings under a mask that moves, cached."""

    def check_moving(self, method: Any) -> None:
        """Raise ConfigError for several devices, or a plan that is no plan."""
        if not self.ranks.alone:
            raise ConfigError.of("trainer.devices", self.config.trainer.devices, "1: a mask moves on one device")
        self.plan(method)

    def plan(self, method: Any) -> Plan:
        """Return when the mask of a method moves, in steps."""
        total = self.initial.steps
        every = self.every(method.every, "method.every")
        begin, end = round(method.begin * total), min(round(method.end * total), total - 1)  # the last step at most
        if begin >= end:
            raise ConfigError.of("method.begin", method.begin, f"a share of the training below method.end={method.end}")
        return Plan(every or 1, begin, end, total)

    def moved(self, ticket: Ticket, method: Any) -> Moved:
        """Train a ticket while the method moves its mask; cached."""
        plan = self.plan(method)
        every = self.every(method.snapshots, "method.snapshots")
        keep = frozenset(range(every, ticket.steps, every) if every else ())
        options = {name: value for name, value in asdict(method).items() if name not in UNKEYED}
        moves = {"method": type(method).__name__, "version": VERSION + method.revision, "seed": self.config.seeds.mask}
        inputs = self._train_inputs(ticket, None) | code_inputs(self.config.method)
        inputs |= {"moves": moves | options | asdict(plan) | {"snapshots": every}}

        def compute(stage: Stage) -> None:
            MoveRun(self, stage, ticket, None, keep, method, plan).compute()

        return self._move_stage(ticket, inputs, compute)

    def _move_stage(self, ticket: Ticket, inputs: dict[str, Any], compute: Callable[[Stage], None]) -> Moved:
        return self.cached("train", inputs, compute, partial(Moved.read, ticket))


@dataclass
class MoveRun(TrainRun):
    """A run of one such training."""

    method: Any
    plan: Plan

    def module(self, network: nn.Module, progress: Progress, optimizer: State | None, hooks: Hooks) -> MovingTraining:
        recipe, seed = self.setup._recipe_of(self.ticket), self.setup.config.seeds.mask
        return MovingTraining(
            self.method, self.plan, seed,
            network, self.ticket, recipe, self.setup.data_on, progress, self.keep, None, optimizer, hooks,
        )  # fmt: skip

    def keep_state(self, module: MaskedTraining) -> None:
        """Write the mask of the current step."""
        assert isinstance(module, MovingTraining)
        step, mask = module.progress.step, module.found()
        mask.save(kept_path(self.stage.folder, "mask", step), round=step, study=self.stage.key[:12], parent=None)
        module.progress.kept[str(step)] = {"mask": mask.digest}

    def check_kept(self, progress: Progress) -> None:
        """Raise LotteryError where a stored mask has changed: the training then starts again."""
        for step, digests in progress.kept.items():
            stored_mask(kept_path(self.stage.folder, "mask", step), digests["mask"])

    def finish(self, module: MaskedTraining) -> None:
        """Write the mask, measure, write the results, and seal the stage."""
        assert isinstance(module, MovingTraining)
        mask = module.found()
        sizes = {name: shape.numel() for name, shape in mask.shapes.items()}
        mask.save(self.stage.folder / "mask.safetensors", round=module.end, study=self.stage.key[:12], parent=None)
        self.further = {
            "mask_digest": mask.digest,
            "moves": module.moves,
            "explored": module.explored_weights() / mask.size,
            "layers": list(mask),
            "points": self.points(module, sizes),
            "history": module.history,
            "train_cost": relative_cost(self.multiply_adds(), sizes, module.history, module.end),
            "snapshots": {step: digests["mask"] for step, digests in module.progress.kept.items()},
        }
        super().finish(module)

    def points(self, module: MovingTraining, sizes: dict[str, int]) -> list[dict[str, Any]]:
        """Return the mask's course: moves, share explored, the share expected, and layer densities, where measured."""
        start, total, found = module.points[0][3:], sum(sizes.values()), []
        for step, moves, explored, *kept in module.points:
            densities = {name: count / size for count, (name, size) in zip(kept, sizes.items(), strict=True)}
            point = {"step": step, "moves": moves, "density": sum(kept) / total, "explored": explored / total}
            expected = self.method.expected_exploration(self.plan, list(sizes.values()), start, step)
            found.append(point | {"expected": expected, "layer_density": densities})
        return found

    def multiply_adds(self) -> dict[str, int]:
        """Count the multiply-adds of each layer for one image."""
        return multiply_adds(self.setup.network().eval(), self.setup.sample(1)[0][:1].cpu())

    def write(self, state: State, early: State | None, result: dict[str, Any]) -> None:
        self.check_kept(Progress(0, kept=result["kept"]))
        super().write(state, early, result | {"kept": {}} | self.further)
