"""The `search` stage: a search for a mask by scores, cached, and continued where it was interrupted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from lottery.config import Optim
from lottery.errors import ConfigError
from lottery.own_code import code_inputs
from lottery.stages.round import Round
from lottery.stages.store import Stage
from lottery.stages.train import Trainings, TrainRun
from lottery.stages.trained import Searched, stored_mask
from lottery.state import State, StateRef, save_state, snapshot, state_digest
from lottery.tensor_files import END, kept_path
from lottery.ticket import Mask, Ticket
from lottery.training.module import Hooks, MaskedTraining
from lottery.training.phases import Phase, Tuning
from lottery.training.progress import Progress
from lottery.training.search import ScoreSearch
from lottery.training.search_options import Search

VERSION = 1  # raise when the numerics of all searches change; for one method alone raise its `Search.revision`


class Searches(Trainings):
    """Searches for masks by scores, cached."""

    def check_search(self, search: Search, tune: Tuning) -> None:
        """Raise ConfigError for several devices, options that the layers do not allow, or controls without training."""
        controls = self.config.controls
        if not self.ranks.alone:
            raise ConfigError.of("trainer.devices", self.config.trainer.devices, "1: a search runs on one device")
        search.check(self.initial.mask.shapes)
        if controls.invert:
            raise ConfigError.of("controls.invert", controls.invert, "0: a search ranks no weights to invert")
        wanted = [f"controls.{kind}" for kind, count in vars(controls).items() if count]
        if wanted and not self.duration(tune.steps, "method.tune.steps"):
            raise ConfigError(
                f"{wanted[0]}: controls are retrained as the ticket is, and method.tune.steps=0it is none"
            )

    def search_of(self, method: Any, kind: str, **options: Any) -> Search:
        """Build the options of a method's search from its fields of the usual names and further `options`."""
        steps = self.duration(method.steps, "method.steps")
        return Search(
            kind=kind,
            optim=method.scores.optim(),
            lr=method.scores.rate(steps),
            initial=method.initial,
            seed=self.config.seeds.mask,
            density=method.density,
            method=method,
            snapshots=self.every(method.snapshots, "method.snapshots"),
            **options,
        )

    def searched(self, state: StateRef, steps: str, search: Search, weights: Phase | None = None) -> Searched:
        """Search for a mask in the network of this state, for so many steps; cached.

        `weights` says how the weights are trained during the search; None: they are frozen.
        """
        self.check_stop("before a mask was searched for")
        total = self.duration(steps, "method.steps")
        optim, rate = (self._clipped(weights), weights.rate(total)) if weights else (search.optim, search.lr)
        recipe = replace(self.recipe, total=total, optim=optim, lr=rate, compile=False)
        full = Mask.ones(self.initial.mask.shapes)
        return self._search_stage(Ticket(full, state, 0, 0, total, recipe=recipe), search)

    def tuned(self, index: int, found: Searched, tune: Tuning) -> Round:
        """Tune the kept weights of a mask that was found, from where the search left them; return the round."""
        steps = self.duration(tune.steps, "method.tune.steps")
        recipe = replace(self.recipe, total=steps, optim=self._clipped(tune), lr=tune.rate(steps)) if steps else None
        silent = found.result["silent"]
        ticket = Ticket(found.mask, found.state, 0, found.result["batches"], steps, recipe=recipe, silent=silent)
        return Round(index, ticket, self.train(ticket), rewound=0, search=found)

    def _clipped(self, phase: Phase) -> Optim:
        return replace(phase.optim(), clip_norm=self.recipe.optim.clip_norm)

    def _search_stage(self, ticket: Ticket, search: Search) -> Searched:
        every = search.snapshots or ticket.steps
        keep = frozenset(range(every, ticket.steps, every))

        def compute(stage: Stage) -> None:
            SearchRun(self, stage, ticket, None, keep, search).compute()

        return self.cached("search", self._search_inputs(ticket, search), compute, partial(Searched.read, ticket))

    def _search_inputs(self, ticket: Ticket, search: Search) -> dict[str, Any]:
        own = {"search": search.inputs(), "search version": VERSION + search.revision}
        return self._train_inputs(ticket, None) | own | code_inputs(self.config.method)


@dataclass
class SearchRun(TrainRun):
    """A run of one search stage: a training with another module and other results."""

    search: Search

    def module(self, network: nn.Module, progress: Progress, optimizer: State | None, hooks: Hooks) -> ScoreSearch:
        recipe, data = self.setup._recipe_of(self.ticket), self.setup.data_on
        return ScoreSearch(self.search, network, self.ticket, recipe, data, progress, self.keep, None, optimizer, hooks)

    def keep_state(self, module: MaskedTraining) -> None:
        """Write the mask of the current step."""
        assert isinstance(module, ScoreSearch)
        step, mask = module.progress.step, module.found()
        self._save(mask, kept_path(self.stage.folder, "mask", step), step)
        module.progress.kept[str(step)] = {"mask": mask.digest}

    def _save(self, mask: Mask, path: Path, step: int) -> None:
        mask.save(path, round=step, study=self.stage.key[:12], parent=None)

    def check_kept(self, progress: Progress) -> None:
        """Raise LotteryError where a stored intermediate mask has changed: the search then starts again."""
        for step, digests in progress.kept.items():
            stored_mask(kept_path(self.stage.folder, "mask", step), digests["mask"])

    def finish(self, module: MaskedTraining) -> None:
        """Write mask, network and scores, and seal the stage."""
        assert isinstance(module, ScoreSearch)
        state, mask, scores = snapshot(module.network), module.found(), module.found_scores()
        self.check_kept(module.progress)
        save_state(state, self.stage.folder / END)
        save_state(scores, self.stage.folder / "scores.safetensors")
        self._save(mask, self.stage.folder / "mask.safetensors", module.end)
        self.seal(
            {
                "state_digest": state_digest(state),
                "mask_digest": mask.digest,
                "scores_digest": state_digest(scores),
                "snapshots": {step: digests["mask"] for step, digests in module.progress.kept.items()},
                "log": module.progress.log,
                "silent": module.silent,
                "steps": module.end,
                "batches": module.end * self.search.batches,
                "seconds": module.progress.seconds,
            }
        )
