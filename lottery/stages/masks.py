"""Masks: weights scored, pruned and ranked; and the `score` stage, which keeps scores or a whole search for a mask."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor, nn

from lottery.data.dataset import Batch, Dataset
from lottery.data.sample import check_per_class
from lottery.errors import ConfigError, LotteryError
from lottery.files import write_json
from lottery.pruning.allocations import Allocation, Budget, counts
from lottery.pruning.prune import prune, prune_to, prune_to_counts
from lottery.pruning.ranking import Ranking
from lottery.pruning.scoring import Criterion, Scoring
from lottery.seeding import derive
from lottery.stages.lease import Lease
from lottery.stages.store import Stage, Store, recorded_environment
from lottery.state import StateRef, save_state, state_digest
from lottery.ticket import Mask

LOG = logging.getLogger("lottery")
VERSION = 1  # raise when the numerics of scoring or pruning change


class Unscored(Exception):
    """Scores were asked for, where only options are checked."""


class _Unseen(Mapping[str, Tensor]):
    """Weights that nobody may look at yet."""

    def __getitem__(self, name: str) -> Tensor:
        raise Unscored

    def __iter__(self) -> Iterator[str]:
        raise Unscored

    def __len__(self) -> int:
        raise Unscored


@dataclass
class MaskStages:
    """Scores and prunes one network on one data set."""

    store: Store
    build: Callable[[], nn.Module]  # a new network; its weights are then replaced by the state's
    data: Callable[[], Dataset]  # on the training device
    device: torch.device
    criterion: Criterion
    seed: int  # seeds.mask
    ignored: int  # convolution and linear weights that are never pruned
    inputs: dict[str, Any]  # what a search reads besides its own options: model, data, criterion
    rank: bool  # remember in which order weights go, for the inverted control
    network: dict[str, torch.Size]  # all weights, prunable or not
    facts: Callable[[], dict[str, str]]  # recorded with a stage: device, threads
    on_reuse: Callable[[dict[str, str]], None]  # is told the environment of a stage that was found
    keys: dict[str, str] = field(default_factory=dict)  # mask digest: the score stage that it came from
    _inverted: dict[str, Mask] = field(default_factory=dict)  # mask digest: its inverse, from the store
    _ranking: Ranking | None = None  # of the mask that was pruned last
    _searching: bool = False
    _warned: bool = False
    _kept_scores: tuple[dict[str, Tensor], str] | None = None  # the scores that came last from a stage, and its key

    # -- scoring ----------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """In how many steps the criterion's authors prune."""
        return getattr(getattr(self.criterion, "func", self.criterion), "steps", 1)

    def scores(self, state: StateRef, mask: Mask) -> dict[str, Tensor]:
        """The criterion's score of every prunable weight of this state; the lowest go first.

        Scores that took a look at the network are kept as a stage, since other machines would give them other last
        digits; those of the weights alone are computed as fast as read. What a search is made of is not kept.
        """
        if self._searching:
            return _telling(self.scored(state, mask, self.criterion), mask)
        stage = self._stage({"state": state.digest, "mask": mask.digest})
        if not stage.done:
            began, looks = monotonic(), list[int]()
            scores = _telling(self.scored(state, mask, self.criterion, looks), mask)
            if not looks:
                return scores

            def compute(lease: Lease) -> None:
                lease.check()
                kept = {name: scores[name].detach().cpu() for name in mask}
                save_state(kept, _path(stage, "scores"))
                facts = {"scores_digest": state_digest(kept), "seconds": monotonic() - began}
                write_json(stage.folder / "result.json", facts)
                stage.finish()

            self.store.finished(stage, compute, **self.facts())
        else:
            self.on_reuse(recorded_environment(stage.folder))
        stored = StateRef.file(_path(stage, "scores"), stage.result()["scores_digest"])
        self._kept_scores = stored.tensors(), stage.key
        return self._kept_scores[0]

    def scored(
        self, state: StateRef, mask: Mask, criterion: Criterion, looks: list[int] | None = None
    ) -> dict[str, Tensor]:
        """Scores by any criterion, computed now. An entry is added to `looks` for each look at the network."""
        weights = state.tensors()

        def network() -> nn.Module:
            if looks is not None:
                looks.append(1)
            copy = self.build()
            copy.load_state_dict(mask.apply(weights), strict=True)
            return copy.to(self.device).train()

        def sample(per_class: int) -> Batch:
            return self.data().sample(per_class, self.seed)

        generator = torch.Generator().manual_seed(derive(self.seed, "scores", mask.digest))
        prunable = {name: weights[name] for name in mask}
        scores = criterion(Scoring(prunable, mask, generator, network, sample, self.data().shape))
        self._warn_blind(scores, mask)
        return scores

    def _warn_blind(self, scores: dict[str, Tensor], mask: Mask) -> None:
        """Say once which layers a criterion tells nothing about."""
        blind = [name for name, kept in mask.items() if name in scores and kept.any() and not scores[name].any()]
        if blind and not self._warned:
            self._warned = True
            LOG.warning(
                "%s and %d other layer(s) score 0 everywhere, so they go first. Networks whose branches start at zero "
                "do that (model.bn_scale=one, or of timm +model.options.zero_init_last=false, switches them on), and "
                "gates that SynFlow finds wide open (prunable.exclude leaves them whole)",
                blind[0], len(blind) - 1,
            )  # fmt: skip

    def counts(self, allocation: Allocation, density: float, mask: Mask, state: StateRef) -> dict[str, int]:
        """How many weights each layer keeps, by an allocation over the dense network of this state."""
        full = Mask.ones(mask.shapes)
        budget = Budget(mask.shapes, density, lambda criterion: self.scored(state, full, criterion), self.network)
        return counts(allocation(budget), mask.shapes, density)

    # -- checks before anything is computed -------------------------------------------------------------------------

    def check_criterion(self, criterion: Criterion, key: str, mask: Mask) -> None:
        """Raise ConfigError where a criterion refuses its options, or the data have fewer images a class than it takes.

        It is called, up to the first look at the weights or at the network.
        """
        option = signature(criterion).parameters.get("per_class")
        if option is not None:
            check_per_class(self.data().class_sizes, option.default, f"{key}.per_class")

        def unscored(*_: int) -> Any:
            raise Unscored

        at = Scoring(_Unseen(), mask, torch.Generator(), unscored, unscored, self.data().shape)
        try:
            criterion(at)
        except Unscored:
            pass
        except ConfigError as error:
            raise ConfigError(str(error).replace("criterion.", f"{key}.", 1)) from error

    def check_counts(self, allocation: Allocation, density: float, mask: Mask) -> None:
        """Raise ConfigError for a density that this allocation cannot reach; what needs scores is not computed."""

        def scores(criterion: Criterion) -> dict[str, Tensor]:
            self.check_criterion(criterion, "method.allocation.criterion", mask)
            raise Unscored

        shares = dict.fromkeys(mask, density)
        with suppress(Unscored):
            shares = allocation(Budget(mask.shapes, density, scores, self.network))
        counts(shares, mask.shapes, density)

    # -- pruning ----------------------------------------------------------------------------------------------------

    def prune(self, mask: Mask, scores: dict[str, Tensor], rate: float, **options: Any) -> Mask:
        """`pruning.prune.prune`, told how many weights are never pruned, which one compatibility rule counts."""
        return self.ranked(mask, prune(mask, scores, rate, ignored=self.ignored, **options), scores)

    def prune_to(self, mask: Mask, scores: dict[str, Tensor], density: float) -> Mask:
        """`pruning.prune.prune_to`, of all layers together."""
        return self.ranked(mask, prune_to(mask, scores, density), scores)

    def prune_to_counts(self, mask: Mask, scores: dict[str, Tensor], counts: Mapping[str, int]) -> Mask:
        """`pruning.prune.prune_to_counts`."""
        return self.ranked(mask, prune_to_counts(mask, scores, counts), scores)

    def ranked(self, before: Mask, after: Mask, scores: dict[str, Tensor]) -> Mask:
        """`after`, of which is remembered what scores it came from."""
        if self._kept_scores is not None and self._kept_scores[0] is scores:
            self.keys[after.digest] = self._kept_scores[1]
        if self.rank:
            known = self._ranking if self._ranking is not None and self._ranking.mask == before else None
            if known is None and before.kept == before.size:
                known = Ranking.begin(before)
            self._ranking = known and known.pruned(after, scores)
        return after

    def inverted(self, mask: Mask) -> Mask:
        """As many weights in each layer as this mask, which was pruned last, but those that go first."""
        if mask.digest in self._inverted:
            return self._inverted[mask.digest]
        if self._ranking is None or self._ranking.mask != mask:
            raise LotteryError("controls.invert: nothing has ranked the weights of this mask")
        return self._ranking.inverted()

    # -- the stage --------------------------------------------------------------------------------------------------

    def _stage(self, inputs: dict[str, Any]) -> Stage:
        return self.store.stage("score", {"version": VERSION, "seed": self.seed, **self.inputs, **inputs})

    def found(self, search: Callable[[], Mask], inputs: dict[str, Any]) -> Mask:
        """The mask that `search` finds from `inputs` (JSON values) and from ours: from the store, or searched now."""
        stage = self._stage(inputs)

        def compute(lease: Lease) -> None:
            began, wanted, self.rank, self._ranking, self._searching = monotonic(), self.rank, True, None, True
            try:
                mask = search()
                masks = {"mask": mask}
                if self._ranking is not None and self._ranking.mask == mask:
                    masks["inverted"] = self._ranking.inverted()
            finally:
                self.rank, self._ranking, self._searching = wanted, None, False
            lease.check()
            for name, found in masks.items():
                found.save(_path(stage, name), round=1, study=stage.key[:12], parent=None)
            digests = {f"{name}_digest": found.digest for name, found in masks.items()}
            write_json(stage.folder / "result.json", {**digests, "seconds": monotonic() - began})
            stage.finish()

        if self.store.finished(stage, compute, **self.facts()):
            self.on_reuse(recorded_environment(stage.folder))
        mask, inverted = _read(stage, "mask"), _read(stage, "inverted")
        if mask is None:
            raise LotteryError(f"{stage.folder}: holds no mask")
        self.keys[mask.digest] = stage.key
        if inverted is not None:
            self.keys[inverted.digest] = stage.key
            self._inverted[mask.digest] = inverted
        return mask


def _telling(scores: dict[str, Tensor], mask: Mask) -> dict[str, Tensor]:
    """These scores; LotteryError where they are all 0 in a dense network: the choice would be by position alone."""
    if mask.kept == mask.size and not any(score.any() for score in scores.values()):
        raise LotteryError(
            "criterion: every weight of the network scores 0, so there is nothing to choose by. Networks whose "
            "classifier starts at zero do that; model.init=kaiming_normal draws all weights anew"
        )
    return scores


def _path(stage: Stage, name: str) -> Path:
    return stage.folder / f"{name}.safetensors"


def _read(stage: Stage, name: str) -> Mask | None:
    """A mask of a finished stage; None if the stage has none of this name. LotteryError where it is another one."""
    digest = stage.result().get(f"{name}_digest")
    if digest is None:
        return None
    mask = Mask.load(_path(stage, name))
    if mask.digest != digest:
        raise LotteryError(f"{_path(stage, name)}: not the mask that result.json names")
    return mask
