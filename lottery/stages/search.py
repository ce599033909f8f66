"""The `search` stage: a mask that was searched for by scores, cached, and continued where it was cut short."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lottery.errors import LotteryError
from lottery.files import write_json
from lottery.stages.lease import Lease
from lottery.stages.store import recorded_environment
from lottery.stages.train import TrainRun, TrainStages
from lottery.state import State, StateRef, save_state, state_digest
from lottery.ticket import Mask, Ticket
from lottery.training.module import Hooks, MaskedTraining, Progress, snapshot
from lottery.training.search import ScoreSearch, Search
from lottery.training.searches import KINDS

VERSION = 1  # raise when the numerics of searching change


@dataclass(frozen=True)
class Searched:
    """A finished search."""

    ticket: Ticket
    key: str
    folder: Path
    result: dict[str, Any]
    cached: bool

    @property
    def state(self) -> StateRef:
        """The network at the end of the search: θ, also of pruned weights, which a ticket's own mask then removes."""
        return StateRef.file(self.folder / "state.safetensors", self.result["state_digest"])

    @property
    def mask(self) -> Mask:
        """The mask that was found. LotteryError where the file holds another one."""
        return _mask(self.folder / "mask.safetensors", self.result["mask_digest"])

    @property
    def snapshots(self) -> dict[int, Mask]:
        """The masks on the way: step -> mask."""
        found = {int(step): digest for step, digest in self.result["snapshots"].items()}
        return {step: _mask(_snapshot(self.folder, step), found[step]) for step in sorted(found)}

    def environment(self) -> dict[str, str]:
        """Library versions, machine and device that it was computed with."""
        return recorded_environment(self.folder)


def _mask(path: Path, digest: str) -> Mask:
    mask = Mask.load(path)
    if mask.digest != digest:
        raise LotteryError(f"{path}: not the mask that result.json names")
    return mask


def _snapshot(folder: Path, step: int) -> Path:
    return folder / f"mask_{step:08d}.safetensors"


def searched(owner: TrainStages, ticket: Ticket, search: Search) -> Searched:
    """The mask that this search finds in the ticket's network: from the store, or searched now, on one device."""
    inputs = owner.inputs(ticket, None) | {"search": search.inputs(), "search version": VERSION}
    stage = owner.store.stage("search", inputs)
    every = search.snapshots or ticket.steps
    keep = frozenset(range(every, ticket.steps, every))

    def compute(lease: Lease) -> None:
        SearchRun(owner, stage, lease, ticket, None, keep, search).compute()

    cached = owner.store.finished(stage, compute, **owner.facts())
    return Searched(ticket, stage.key, stage.folder, stage.result(), cached)


@dataclass
class SearchRun(TrainRun):
    """The computation of one search stage: that of a training, with another module and other results."""

    search: Search

    def module(self, network: nn.Module, progress: Progress, optimizer: State | None, hooks: Hooks) -> ScoreSearch:
        owner = self.owner
        recipe = owner.recipe_of(self.ticket)
        return KINDS[self.search.kind](
            self.search, network, self.ticket, recipe, owner.data, progress, self.keep, None, optimizer, hooks
        )

    def keep_state(self, module: MaskedTraining) -> None:
        """Write the mask of the present step."""
        assert isinstance(module, ScoreSearch)
        step = module.progress.step
        mask = module.found()
        self.lease.check()
        self._save(mask, _snapshot(self.stage.folder, step), step)
        module.progress.kept[str(step)] = {"mask": mask.digest}

    def _save(self, mask: Mask, path: Path, step: int) -> None:
        mask.save(path, round=step, study=self.stage.key[:12], parent=None)

    def finish(self, module: MaskedTraining) -> None:
        """Write mask, network and scores, and seal the stage."""
        assert isinstance(module, ScoreSearch)
        state, mask, scores = snapshot(module.network), module.found(), module.found_scores()
        self.lease.check()
        save_state(state, self.stage.folder / "state.safetensors")
        save_state(scores, self.stage.folder / "scores.safetensors")
        self._save(mask, self.stage.folder / "mask.safetensors", module.end)
        result = {
            "state_digest": state_digest(state),
            "mask_digest": mask.digest,
            "scores_digest": state_digest(scores),
            "snapshots": {step: digests["mask"] for step, digests in module.progress.kept.items()},
            "log": module.progress.log,
            "silent": self.search.pattern == "filter",
            "steps": module.end,
            "batches": module.end * module.batches_a_step,
            "seconds": module.progress.seconds,
        }
        write_json(self.stage.folder / "result.json", result)
        self.stage.finish(without=(self.checkpoint.name,))
        self.checkpoint.unlink(missing_ok=True)
