"""A lab in which nothing is computed: a method runs through it, and the stages that it requests are recorded.

A value that is not known yet (trained weights, a mask that follows from them) is replaced by a digest of its origin.
Stage keys are made of these digests, so two studies that would share a stage get equal keys here too. A key without
such a digest is the stage's real key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lottery.config import Config, digest
from lottery.record.names import TABLE
from lottery.record.rows import identity, read_rows
from lottery.signals import StopFlag
from lottery.stages.lab import Lab
from lottery.stages.layers import LayerStages
from lottery.stages.masks import Scores
from lottery.stages.store import Stage
from lottery.stages.trained import Finished, Moved, Searched, Trained
from lottery.state import State, StateRef
from lottery.ticket import Mask, Ticket
from lottery.training.search_options import Search


@dataclass
class PlannedStage:
    """A training or a search that studies request."""

    kind: str
    key: str
    batches: int  # drawn; each is one step of the optimizer
    images: int  # evaluated: held-out ones at every point of the curve, all at the end
    done: bool
    asked: int = 1


@dataclass
class Ledger:
    """All requested stages, each once."""

    stages: dict[str, PlannedStage] = field(default_factory=dict)
    last: list[str] = field(default_factory=list)  # requested since the list was last cleared
    kept: dict[str, set[int]] = field(default_factory=dict)  # key of a training -> steps whose state is kept

    def note(self, stage: PlannedStage) -> None:
        known = self.stages.setdefault(stage.key, stage)
        if known is not stage:
            known.asked += 1
            known.done |= stage.done
        self.last.append(stage.key)


# -- what nobody knows yet --------------------------------------------------------------------------------------------


class PlannedState(StateRef):
    """A state of which only the origin is known."""

    def tensors(self) -> State:
        """Return one tensor of the origin's digest; mixed with others, as by a rewind policy, it gives a new state."""
        return {"origin": torch.frombuffer(bytearray(bytes.fromhex(self.digest)), dtype=torch.uint8)}


def state_of(*origin: Any) -> StateRef:
    return PlannedState(digest(["state", *origin]), dict)


class PlannedMask(Mask):
    """A mask of which only the origin and the shapes are known; half of its weights count as kept."""

    def __init__(self, shapes: Mapping[str, torch.Size], *origin: Any) -> None:
        self._shapes = dict(shapes)
        self._packed = {}
        self.__dict__["digest"] = digest(["mask", *origin])

    def __getitem__(self, name: str) -> Tensor:
        return torch.ones((), dtype=torch.bool).expand(self._shapes[name])

    @property
    def kept(self) -> int:
        return max(1, self.size // 2)


def planned_scores(shapes: Mapping[str, torch.Size], *origin: Any) -> Scores:
    """Return scores of which only the origin is known; the tensors take no memory."""
    scores = Scores({name: torch.zeros(()).expand(shape) for name, shape in shapes.items()})
    scores.stage = digest(["scores", *origin])
    return scores


class _Planned(Finished):
    @property
    def state(self) -> StateRef:
        return state_of(self.key)


class PlannedTrained(_Planned, Trained):
    """A training that is not computed."""


class _PlannedMask(_Planned):
    @property
    def mask(self) -> Mask:
        return PlannedMask(self.ticket.mask.shapes, self.key)


class PlannedSearched(_PlannedMask, Searched):
    """A search that is not computed."""


class PlannedMoved(_PlannedMask, Moved):
    """A training under a mask that moves that is not computed."""


# -- the lab ----------------------------------------------------------------------------------------------------------


class PlannedLayers(LayerStages):
    """Layer stages whose scores are drawn from the digest of their inputs."""

    def scores(self, criterion: Any, state: StateRef, ticket: Ticket, candidates: Any) -> tuple[dict[str, float], str]:
        inputs = [dict(criterion), state.digest, ticket.mask.digest, sorted(ticket.removed), list(candidates)]
        key = digest([*inputs, self.setup.config.seeds.mask])
        return {name: int(digest([key, name])[:8], 16) / 2**32 for name in candidates}, key


class PlannedLab(Lab):
    """The lab of one study; the stages that it requests go into `ledger`."""

    def __init__(self, config: Config, ledger: Ledger) -> None:
        super().__init__(config, StopFlag(), lambda *_: None)
        self.ledger = ledger

    @cached_property
    def layers(self) -> LayerStages:
        return PlannedLayers(self)

    def _train_stage(self, ticket: Ticket, until: int | None, keep: set[int]) -> Trained:
        """Record a training, or its part up to a step. The steps that the first study requests are kept."""
        stage, whole = (self.store.stage("train", self._train_inputs(ticket, end)) for end in (until, None))
        self._note_training(stage, ticket, ticket.step + ticket.steps if until is None else until, until is None)
        if until is None:
            done = stage.done and stage.key not in self.ledger.kept
            keep = self.ledger.kept.setdefault(stage.key, set(map(int, stage.result()["kept"])) if done else keep)
        kept = {step: {what: state_of(whole.key, what, step) for what in ("state", "optimizer")} for step in keep}
        result = {"state_digest": state_of(stage.key).digest, "curve": [], "seconds": 0.0}
        return PlannedTrained(ticket, stage.key, stage.folder, result, stage.done, kept)

    def _move_stage(self, ticket: Ticket, inputs: dict[str, Any], compute: Callable[[Stage], None]) -> Moved:
        stage = self.store.stage("train", inputs)
        self._note_training(stage, ticket, ticket.step + ticket.steps)
        result = {"state_digest": state_of(stage.key).digest, "curve": [], "seconds": 0.0}
        return PlannedMoved(ticket, stage.key, stage.folder, result, stage.done, {})

    def _note_training(self, stage: Stage, ticket: Ticket, end: int, measured: bool = True) -> None:
        every = self._recipe_of(ticket).eval_every
        self._note(stage, end - ticket.step, end // every - ticket.step // every, measured)

    def _search_stage(self, ticket: Ticket, search: Search) -> Searched:
        stage = self.store.stage("search", self._search_inputs(ticket, search))
        batches = ticket.steps * search.batches
        self._note(stage, batches, ticket.steps // self._recipe_of(ticket).eval_every)
        result = {"silent": False, "batches": batches, "steps": ticket.steps, "seconds": 0.0}
        return PlannedSearched(ticket, stage.key, stage.folder, result, stage.done)

    def _note(self, stage: Stage, batches: int, points: int, measured: bool = True) -> None:
        """Record a stage that evaluates held-out images `points` + 1 times and, if `measured`, all images once."""
        sizes = self.dataset.sizes
        images = (points + 1) * sizes["validation"] + (sum(sizes.values()) if measured else 0)
        self.ledger.note(PlannedStage(stage.kind, stage.key, batches, images, stage.done))

    def initial_state(self, seed: int) -> StateRef:
        return state_of("initial", self.common_inputs["model"], self.config.model.get("init"), seed)

    def scores(self, state: StateRef, mask: Mask) -> Scores:
        return planned_scores(mask.shapes, state.digest, mask.digest, self.config.criterion, self.config.seeds.mask)

    def scored_by(self, criterion: Any, state: StateRef, mask: Mask, looks: Any = None) -> Scores:
        return planned_scores(mask.shapes, state.digest, mask.digest, repr(criterion))

    def _pruned(
        self, rule: Callable[..., Mask], mask: Mask, scores: Mapping[str, Tensor], how: Any, **options: Any
    ) -> Mask:
        return self._chosen(rule.__name__, mask, scores, how, options)

    def ranked(self, before: Mask, after: Mask, scores: Mapping[str, Tensor]) -> Mask:
        return self._chosen("ranked", before, scores, after.digest)

    def _chosen(self, how: str, mask: Mask, scores: Mapping[str, Tensor], *options: Any) -> Mask:
        return PlannedMask(mask.shapes, how, mask.digest, getattr(scores, "stage", None), *options)

    def counts(self, allocation: Any, density: float, state: StateRef | None = None) -> dict[str, int]:
        """Draw counts from the digest of their inputs, so that they differ between allocations."""
        origin = digest([dict(allocation), density, (state or self.initial.state).digest])
        shapes = self.initial.mask.shapes
        return {
            name: 1 + int(digest([origin, name])[:8], 16) % max(1, round(density * shape.numel()))
            for name, shape in shapes.items()
        }

    def drawn(self, counts: Mapping[str, int]) -> Mask:
        return PlannedMask(self.initial.mask.shapes, "drawn", dict(counts), self.config.seeds.mask)

    def found(self, search: Callable[[Any], Mask], **inputs: Any) -> Mask:
        method = self.config.method["_target_"]
        seed, criterion = self.config.seeds.mask, self.config.criterion
        return PlannedMask(self.initial.mask.shapes, self.initial.state.digest, method, repr(inputs), criterion, seed)

    def inverted(self, mask: Mask) -> Mask:
        return PlannedMask(mask.shapes, "inverted", mask.digest)

    def shuffled(self, mask: Mask, seed: int, filters: bool) -> Mask:
        return PlannedMask(mask.shapes, "shuffled", mask.digest, seed)


def row_identities(folder: Path) -> set[tuple[int, str | None, int]]:
    """Return round, control and copy of every row in a run folder."""
    if not (folder / TABLE).exists():
        return set()
    return {identity(row) for row in read_rows(folder, lenient=True)}
