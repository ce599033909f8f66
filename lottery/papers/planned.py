"""A lab in which nothing is computed: a method runs through it, and what it would have trained is written down.

What nobody knows yet (trained weights, the masks that they lead to) is stood in for by where it comes from, as a
digest. A stage's key is made of such digests, so that two studies which would share a stage get the same key here too.
A key that holds none of them is the stage's real one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lottery.config import Config, digest
from lottery.methods.phases import Phase
from lottery.seeding import derive
from lottery.stages.lab import Lab
from lottery.stages.layers import LayerStages
from lottery.stages.round import Round
from lottery.stages.search import VERSION as SEARCH_VERSION
from lottery.stages.search import Searched
from lottery.stages.store import Stage as StoredStage
from lottery.stages.trained import Trained
from lottery.state import State, StateRef
from lottery.ticket import Mask, Ticket
from lottery.training.search import Search
from lottery.training.signals import StopFlag


@dataclass
class Stage:
    """A training or a search that studies ask for."""

    kind: str
    key: str
    batches: int  # that it draws, each of them one step of the optimizer
    images: int  # that it evaluates: held-out ones at every point of its curve, all at its end
    done: bool
    asked: int = 1


@dataclass
class Ledger:
    """All stages that were asked for, each once."""

    stages: dict[str, Stage] = field(default_factory=dict)
    last: list[str] = field(default_factory=list)  # those asked for since somebody looked
    kept: dict[str, set[int]] = field(default_factory=dict)  # training: the steps whose state is kept

    def note(self, stage: Stage) -> None:
        known = self.stages.setdefault(stage.key, stage)
        if known is not stage:
            known.asked += 1
            known.done |= stage.done
        self.last.append(stage.key)


class PlannedState(StateRef):
    """A state that is known only by where it comes from."""

    def tensors(self) -> State:
        """One tensor that says so: mixed with others (a rewinding policy does that) it gives yet another state."""
        return {"origin": torch.frombuffer(bytearray(bytes.fromhex(self.digest)), dtype=torch.uint8)}


def state_of(*origin: Any) -> StateRef:
    return PlannedState(digest(["state", *origin]), dict)


class PlannedMask(Mask):
    """A mask that is known only by where it comes from: of these shapes, and not whole."""

    def __init__(self, shapes: Mapping[str, torch.Size], *origin: Any) -> None:
        self._shapes = dict(shapes)
        self._packed = {}
        self.__dict__["digest"] = digest(["mask", *origin])

    def __getitem__(self, name: str) -> Tensor:
        return torch.ones((), dtype=torch.bool).expand(self._shapes[name])

    @property
    def kept(self) -> int:
        return max(1, self.size // 2)


class PlannedScores(dict[str, Tensor]):
    """Scores that are known only by where they come from; the tensors take no memory."""

    def __init__(self, shapes: Mapping[str, torch.Size], *origin: Any) -> None:
        super().__init__({name: torch.zeros(()).expand(shape) for name, shape in shapes.items()})
        self.origin = digest(["scores", *origin])


class PlannedTrained(Trained):
    """A training that was not done; every step of it can be asked for."""

    @property
    def state(self) -> StateRef:
        return state_of(self.key)

    def at(self, step: int) -> StateRef:
        return self.ticket.state if step == self.ticket.step else state_of(self.key, step)

    def optimizer_at(self, step: int) -> StateRef | None:
        return self.ticket.optimizer if step == self.ticket.step else state_of(self.key, "optimizer", step)


class PlannedSearched(Searched):
    """A search that was not done."""

    @property
    def state(self) -> StateRef:
        return state_of(self.key)

    @property
    def mask(self) -> Mask:
        return PlannedMask(self.ticket.mask.shapes, self.key)


class PlannedLayers(LayerStages):
    """Which units leave is drawn from what it depends on."""

    def scores(self, criterion: Any, state: StateRef, ticket: Ticket, candidates: Any) -> tuple[dict[str, float], str]:
        inputs = [dict(criterion), state.digest, ticket.mask.digest, sorted(ticket.removed), list(candidates)]
        key = digest([*inputs, self.seed])
        return {name: int(digest([key, name])[:8], 16) / 2**32 for name in candidates}, key


class PlannedLab(Lab):
    """The lab of one study; what it asks for goes into `ledger`."""

    def __init__(self, config: Config, ledger: Ledger) -> None:
        super().__init__(config, StopFlag(), lambda *_: None)
        self.ledger = ledger

    # -- trainings and searches -------------------------------------------------------------------------------------

    def train(self, ticket: Ticket, keep: Iterable[int] = ()) -> Trained:
        stage = self._training(ticket, None)
        kept = self.ledger.kept.get(stage.key)
        wanted = {step for step in keep if step != ticket.step}
        if kept is None:
            kept = {int(step) for step in stage.result()["kept"]} if stage.done else wanted
        for step in sorted(wanted - kept):  # trained by a study that did not ask for it: the stretch up to it again
            self._training(ticket, step)
        self.ledger.kept[stage.key] = kept
        result = {"state_digest": state_of(stage.key).digest, "curve": [], "seconds": 0.0}
        return PlannedTrained(ticket, stage.key, stage.folder, result, {}, stage.done)

    def _training(self, ticket: Ticket, until: int | None) -> StoredStage:
        """Note one training, or its stretch up to a step."""
        stage = self.store.stage("train", self._trainings.inputs(ticket, until))
        end, every = (
            ticket.step + ticket.steps if until is None else until,
            self._trainings.recipe_of(ticket).eval_every,
        )
        self._note(
            "train", stage.key, end - ticket.step, end // every - ticket.step // every, stage.done, until is None
        )
        return stage

    def searched(self, state: StateRef, steps: str, search: Search, weights: Phase | None = None) -> Searched:
        total = self.duration(steps, "method.steps")
        optim, rate = (self._clipped(weights), weights.rate(total)) if weights else (search.optim, search.lr)
        recipe = replace(self.recipe, total=total, optim=optim, lr=rate)
        ticket = Ticket(Mask.ones(self.initial.mask.shapes), state, 0, 0, total, recipe=recipe)
        inputs = self._trainings.inputs(ticket, None)
        stage = self.store.stage("search", inputs | {"search": search.inputs(), "search version": SEARCH_VERSION})
        batches = total * (search.inner + 1 if weights else 1)
        self._note("search", stage.key, batches, total // recipe.eval_every, stage.done)
        result = {"silent": False, "batches": batches, "steps": total, "seconds": 0.0}
        return PlannedSearched(ticket, stage.key, stage.folder, result, stage.done)

    def _note(self, kind: str, key: str, batches: int, points: int, done: bool, measured: bool = True) -> None:
        """`points` of the curve are measured on the held-out images; in the end, if `measured`, all images are."""
        sizes = self.dataset.sizes
        images = (points + 1) * sizes["validation"] + (sum(sizes.values()) if measured else 0)
        self.ledger.note(Stage(kind, key, batches, images, done))

    # -- masks ------------------------------------------------------------------------------------------------------

    def scores(self, state: StateRef, mask: Mask) -> dict[str, Tensor]:
        return PlannedScores(mask.shapes, state.digest, mask.digest, self.config.criterion, self.config.seeds.mask)

    def scored_by(self, criterion: Any, state: StateRef, mask: Mask) -> dict[str, Tensor]:
        return PlannedScores(mask.shapes, state.digest, mask.digest, repr(criterion))

    def prune(self, mask: Mask, scores: dict[str, Tensor], rate: float, **options: Any) -> Mask:
        return self._mask("rate", mask, scores, rate, options)

    def prune_to(self, mask: Mask, scores: dict[str, Tensor], density: float) -> Mask:
        return self._mask("density", mask, scores, density)

    def prune_to_counts(self, mask: Mask, scores: dict[str, Tensor], counts: Mapping[str, int]) -> Mask:
        return self._mask("counts", mask, scores, dict(counts))

    def ranked(self, before: Mask, after: Mask, scores: dict[str, Tensor]) -> Mask:
        return self._mask("ranked", before, scores, after.digest)

    def _mask(self, how: str, mask: Mask, scores: dict[str, Tensor], *options: Any) -> Mask:
        return PlannedMask(mask.shapes, how, mask.digest, getattr(scores, "origin", None), *options)

    def counts(self, allocation: Any, density: float, state: StateRef | None = None) -> dict[str, int]:
        """Drawn from what they depend on, so that other counts stand for other allocations."""
        origin = digest([dict(allocation), density, (state or self.initial.state).digest])
        shapes = self.initial.mask.shapes
        return {
            name: 1 + int(digest([origin, name])[:8], 16) % max(1, round(density * shape.numel()))
            for name, shape in shapes.items()
        }

    def drawn(self, counts: Mapping[str, int]) -> Mask:
        return PlannedMask(self.initial.mask.shapes, "drawn", dict(counts), self.config.seeds.mask)

    def found(self, search: Callable[[], Mask], **inputs: Any) -> Mask:
        method = self.config.method["_target_"]
        seed, criterion = self.config.seeds.mask, self.config.criterion
        return PlannedMask(self.initial.mask.shapes, self.initial.state.digest, method, repr(inputs), criterion, seed)

    @cached_property
    def layers(self) -> LayerStages:
        found = Lab.layers.func(self)  # type: ignore[attr-defined]
        return PlannedLayers(**{name: getattr(found, name) for name in LayerStages.__dataclass_fields__})

    # -- controls ---------------------------------------------------------------------------------------------------

    def initial_state(self, seed: int) -> StateRef:
        return state_of("initial", self._model_inputs, self.config.model.get("init"), seed)

    def control(self, of: Round, kind: str, copy: int) -> Round:
        if kind == "reinit" or of.units is not None:
            return super().control(of, kind, copy)
        seed = 0 if kind == "invert" else derive(self.config.seeds.mask, kind, of.index, copy)
        ticket = replace(of.ticket, mask=PlannedMask(of.mask.shapes, kind, of.mask.digest, seed))
        return Round(of.index, ticket, self.train(ticket), kind, copy, of.rewound)


def row_identities(folder: Path) -> set[tuple[int, str | None, int]]:
    """The rounds that a run folder has on record: round, control, copy."""
    from lottery.analysis.folders import lenient_rounds

    if not (folder / "rounds.jsonl").exists():
        return set()
    return {(row["round"], row.get("control"), row.get("copy", 0)) for row in lenient_rounds(folder)}
