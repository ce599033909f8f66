"""Score and prune weights. The `score` stage caches scores, or the mask that a whole search found."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from copy import copy
from functools import cached_property
from inspect import signature
from pathlib import Path
from re import sub
from time import monotonic
from typing import Any, Self

import torch
from torch import Tensor, nn

from lottery.data.order import check_per_class
from lottery.errors import ConfigError, LotteryError
from lottery.own_code import own_code
from lottery.parts import instantiated
from lottery.pruning import prune
from lottery.pruning.allocations import Budget, counts, drawn
from lottery.pruning.controls import Ranking, shuffled
from lottery.pruning.scoring import Criterion, Scoring
from lottery.seeding import derive
from lottery.stages.setup import Setup
from lottery.stages.store import Stage
from lottery.stages.trained import stored_mask
from lottery.state import StateRef, save_state, state_digest
from lottery.ticket import Mask, read_metadata

LOG = logging.getLogger("lottery")
VERSION = 1  # raise when the numerics of scoring or pruning change


class Scores(dict[str, Tensor]):
    """Scores of all prunable weights. `stage`: the key of the `score` stage that caches them, or None."""

    stage: str | None = None


class ScoredMask(Mask):
    """A mask that records which stage it came from.

    stage:   key of the `score` stage of its scores, or of the whole search for it
    inverse: its inverse, if that stage stores one
    """

    def __init__(self, mask: Mask, stage: str, inverse: Mask | None = None) -> None:
        vars(self).update(vars(mask))  # the same bits, not packed again
        self.stage, self.inverse = stage, inverse


class Unscored(Exception):
    """Exception that ends a check of options at the first request for weights, scores or the network."""


def unscored(*_: object) -> Any:
    """Raise Unscored: takes the place of weights and network where only options are checked."""
    raise Unscored


class _Unseen(Mapping[str, Tensor]):
    __getitem__ = __iter__ = __len__ = unscored


def check_options(criterion: Callable[[Any], object], at: object, key: str, setup: Setup) -> None:
    """Raise ConfigError, naming `key`, where a criterion refuses its options or a class has too few images.

    The criterion is called with `at`, up to its first use of weights or network, which raises Unscored.
    """
    option = signature(criterion).parameters.get("per_class")
    if option is not None:
        check_per_class(setup.data.class_sizes, option.default, f"{key}.per_class")
    try:
        criterion(at)
    except Unscored:
        pass
    except ConfigError as error:
        raise ConfigError(sub(r"^criterion\.", f"{key}.", str(error))) from error


class Masks(Setup):
    """Scoring and pruning of a study's network."""

    _ranking: Ranking | None = None  # ranking of the mask that was pruned last
    _for_search = False  # True: scores are not cached, and the order of pruning is recorded

    # -- scoring ------------------------------------------------------------------------------------------------------

    @cached_property
    def _criterion(self) -> Criterion:
        return instantiated(self.config.criterion, "criterion")

    @property
    def criterion_steps(self) -> int:
        """The number of steps in which the criterion's authors prune."""
        return getattr(getattr(self._criterion, "func", self._criterion), "steps", 1)

    def scores(self, state: StateRef, mask: Mask) -> Scores:
        """Score every prunable weight of this state by the criterion; the lowest are pruned first.

        Scores that ran the network are cached as a stage, since other machines would round them differently. Scores of
        the weights alone are not: computing them is as fast as reading. Inside of `found` no scores are cached.
        """
        self.check_stop("before weights were scored")
        if self._for_search:
            return self._scored(state, mask)
        inputs = self._score_inputs({"state": state.digest, "mask": mask.digest})
        scores, began, looks = Scores(), monotonic(), list[int]()
        if not self.store.stage("score", inputs).done:
            scores = self._scored(state, mask, looks)
            if not looks:
                return scores

        def keep(stage: Stage) -> None:
            kept = {name: scores[name].detach().cpu() for name in mask}
            save_state(kept, _path(stage, "scores"))
            stage.finish({"scores_digest": state_digest(kept), "seconds": monotonic() - began})

        def read(stage: Stage, _: bool) -> Scores:
            found = Scores(StateRef.file(_path(stage, "scores"), stage.result()["scores_digest"]).tensors())
            found.stage = stage.key
            return found

        return self.cached("score", inputs, keep, read)

    def _scored(self, state: StateRef, mask: Mask, looks: list[int] | None = None) -> Scores:
        """Compute the criterion's scores, uncached. LotteryError where all are 0 in a dense network."""
        scores = Scores(self.scored_by(self._criterion, state, mask, looks))
        if mask.kept == mask.size and not any(score.any() for score in scores.values()):
            raise LotteryError(
                "criterion: every weight of the network scores 0, so there is nothing to choose by. Networks whose "
                "classifier starts at zero do that; model.init=kaiming_normal draws all weights anew"
            )
        return scores

    def scored_by(
        self, criterion: Criterion, state: StateRef, mask: Mask, looks: list[int] | None = None
    ) -> dict[str, Tensor]:
        """Compute the scores of any criterion, uncached. `looks` gets an entry each time it asks for the network."""
        weights = state.tensors()

        def network() -> nn.Module:
            if looks is not None:
                looks.append(1)
            return self.loaded(mask.apply(weights)).train()

        generator = torch.Generator().manual_seed(derive(self.config.seeds.mask, "scores", mask.digest))
        prunable = {name: weights[name] for name in mask}
        scores = criterion(Scoring(prunable, mask, generator, network, self.sample, self.dataset.shape))
        blind = [name for name, kept in mask.items() if name in scores and kept.any() and not scores[name].any()]
        if blind and "blind" not in self.warned:
            self.warned.add("blind")
            LOG.warning(
                "%s and %d other layer(s) score 0 everywhere, so they go first. Networks whose branches start at zero "
                "do that (model.bn_scale=one, or of timm +model.options.zero_init_last=false, switches them on), and "
                "gates that SynFlow finds wide open (prunable.exclude leaves them whole)",
                blind[0], len(blind) - 1,
            )  # fmt: skip
        return scores

    def check(self) -> None:
        """Raise ConfigError where network and data do not allow the criterion, before anything is computed."""
        self.check_criterion(self._criterion, "criterion")

    def check_criterion(self, criterion: Criterion, key: str) -> None:
        """Raise ConfigError, naming `key`, where a criterion refuses its options or has too few images of a class."""
        at = Scoring(_Unseen(), self.initial.mask, torch.Generator(), unscored, unscored, self.dataset.shape)
        check_options(criterion, at, key, self)

    # -- layer counts -------------------------------------------------------------------------------------------------

    def counts(self, allocation: Any, density: float, state: StateRef | None = None) -> dict[str, int]:
        """Return how many weights an allocation (its node in the configuration) leaves each layer of the dense network.

        The network has its initial state, or `state`. The counts add up to round(density * prunable), else ConfigError.
        """
        start = state or self.initial.state
        return self._counts(allocation, density, lambda criterion: self.scored_by(criterion, start, self.initial.mask))

    def check_counts(self, allocation: Any, density: float) -> None:
        """Raise ConfigError where `counts` would, as far as that can be known without scoring weights."""

        def scores(criterion: Criterion) -> dict[str, Tensor]:
            self.check_criterion(criterion, "method.allocation.criterion")
            raise Unscored

        try:
            self._counts(allocation, density, scores)
        except Unscored:
            shapes = self.initial.mask.shapes
            counts(dict.fromkeys(shapes, density), shapes, density)

    def _counts(
        self, allocation: Any, density: float, scores: Callable[[Criterion], Mapping[str, Tensor]]
    ) -> dict[str, int]:
        shapes = self.initial.mask.shapes
        budget = Budget(shapes, density, scores, self.weights)
        return counts(instantiated(allocation, "method.allocation")(budget), shapes, density)

    def drawn(self, counts: Mapping[str, int]) -> Mask:
        """Draw a mask of these layer counts, at uniformly random positions from `seeds.mask`."""
        generator = torch.Generator().manual_seed(derive(self.config.seeds.mask, "positions"))
        return drawn(counts, self.initial.mask.shapes, generator)

    # -- pruning ------------------------------------------------------------------------------------------------------

    def prune(self, mask: Mask, scores: Mapping[str, Tensor], rate: float, **options: Any) -> Mask:
        """Prune a fraction `rate` of the kept weights (`pruning.prune.prune`)."""
        ignored = self.total_weights - self.initial.mask.size  # one compatibility rule counts these
        return self._pruned(prune.prune, mask, scores, rate, ignored=ignored, **options)

    def prune_to(self, mask: Mask, scores: Mapping[str, Tensor], density: float) -> Mask:
        """Prune to exactly round(density * prunable) weights, all layers ranked together."""
        return self._pruned(prune.prune_to, mask, scores, density)

    def prune_to_counts(self, mask: Mask, scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> Mask:
        """Prune each layer to exactly its number of weights in `counts`."""
        return self._pruned(prune.prune_to_counts, mask, scores, counts)

    def _pruned(
        self, rule: Callable[..., Mask], mask: Mask, scores: Mapping[str, Tensor], how: Any, **options: Any
    ) -> Mask:
        return self.ranked(mask, rule(mask, scores, how, **options), scores)

    def ranked(self, before: Mask, after: Mask, scores: Mapping[str, Tensor]) -> Mask:
        """Return `after`, which these scores chose from `before`, as a mask that records the scores' stage."""
        if self._for_search or self.config.controls.invert:
            known = self._ranking if self._ranking is not None and self._ranking.mask == before else None
            if known is None and before.kept == before.size:
                known = Ranking.begin(before)
            self._ranking = known and known.pruned(after, scores)
        stage = getattr(scores, "stage", None)
        return after if stage is None else ScoredMask(after, stage)

    def inverted(self, mask: Mask) -> Mask:
        """Invert the mask that was pruned last: as many weights in each layer, but those that were pruned first."""
        if (known := getattr(mask, "inverse", None)) is not None:
            return known
        if self._ranking is None or self._ranking.mask != mask:
            raise LotteryError("controls.invert: nothing has ranked the weights of this mask")
        return self._ranking.inverted()

    def shuffled(self, mask: Mask, seed: int, filters: bool) -> Mask:
        """Draw a mask of the same layer counts; with `filters`, of whole filters."""
        return shuffled(mask, seed, filters=filters)

    # -- the stage ----------------------------------------------------------------------------------------------------

    def _score_inputs(self, further: dict[str, Any]) -> dict[str, Any]:
        criterion = self.config.criterion
        scored = {"criterion": criterion, "own code": own_code(criterion), "seed": self.config.seeds.mask}
        return {"version": VERSION, **self.common_inputs, **scored, **further}

    def found(self, search: Callable[[Self], Mask], **inputs: Any) -> Mask:
        """Search for a mask of the initial weights, cached. `inputs` are the options that the search reads.

        `search` is called with a copy of this lab that caches no scores. A saved mask among the inputs
        (`allocation.path`) enters the key by its digest, the user's own code by the digest of its file.
        """
        method = self.config.method
        own = own_code([method, inputs])
        allocation = inputs.get("allocation") or {}
        if "path" in allocation:
            inputs |= {"allocation": {**allocation, "path": read_metadata(allocation["path"])["digest"]}}
        start = {"state": self.initial.state.digest, "mask": self.initial.mask.digest}
        search_inputs = {"method": method["_target_"], **inputs, "own code": own}

        def compute(stage: Stage) -> None:
            began, lab = monotonic(), copy(self)
            lab._for_search, lab._ranking = True, None
            masks = {"mask": search(lab)}
            if lab._ranking is not None and lab._ranking.mask == masks["mask"]:
                masks["inverted"] = lab._ranking.inverted()
            for name, mask in masks.items():
                mask.save(_path(stage, name), round=1, study=stage.key[:12], parent=None)
            digests = {f"{name}_digest": mask.digest for name, mask in masks.items()}
            stage.finish({**digests, "seconds": monotonic() - began})

        return self.cached("score", self._score_inputs({**start, "search": search_inputs}), compute, _read)


def _path(stage: Stage, name: str) -> Path:
    return stage.folder / f"{name}.safetensors"


def _read(stage: Stage, _: bool) -> Mask:
    """Read the mask that a search found, and its inverse if stored. LotteryError where a digest does not match."""
    digests = {name: stage.result().get(f"{name}_digest") for name in ("mask", "inverted")}
    found = {name: stored_mask(_path(stage, name), digest) for name, digest in digests.items() if digest}
    inverse = ScoredMask(found["inverted"], stage.key) if "inverted" in found else None
    return ScoredMask(found["mask"], stage.key, inverse)
