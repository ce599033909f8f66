"""The options of a search for a mask, and the interface of a method that searches."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lottery.config import Optim
from lottery.errors import ConfigError, nearest
from lottery.own_code import is_lotterys
from lottery.ranges import one_of
from lottery.schedule import LearningRate
from lottery.search.initial import INITIAL
from lottery.search.rules import NM, Rule, Swaps, TopGroups
from lottery.search.top import Top
from lottery.training.phases import Tuning

GROUPS = {"filter": 0, "channel": 1}  # pattern: the dimension of its groups
LEVELS = ("two_level", "two_level_random")  # scores 0.99 and 1, by magnitude or at random
UNKEYED = {"keyed": False}  # metadata of fields that follow from `kind`, the pattern and the method's options

Optimizers = dict[str, tuple[torch.optim.Optimizer, nn.Module]]  # name: an optimizer, and the module that it moves


class SearchMethod(Protocol):
    """A dataclass of options, with the `update` that does one step of its search."""

    def update(self, run: Any, step: int) -> Tensor:
        """Move the scores of `run`, a `training.search.ScoreSearch`, to `step + 1`; return a batch's loss, detached."""


@dataclass(frozen=True)
class Search:
    """The options of a search for a mask, without network, data, and the recipe of its ticket.

    The first fields and the options of a user's own method make up the stage key.

    kind:          the name of the update in the key
    optim, lr:     optimizer and learning rate of the scores
    initial:       the name of the initial scores (search.initial)
    seed:          the seed of the initial scores, seeds.mask
    pattern:       unstructured, filter, channel, or N:M such as 2:4
    density:       of all weights together, or of each layer's groups where the pattern has groups
    counts:        how many weights each layer keeps; None: all are ranked together
    restriction:   short restriction of the swaps; None: none
    inner:         steps of the weights for each step of the scores
    inverse_gamma: 1/γ of an implicit gradient; 0: there is none
    snapshots:     a mask is kept every so many steps; None: only the last

    method:        its `update` is called at each step
    revision:      raised when the numerics of this update alone change
    absolute:      |s| is ranked, not s
    batches:       how many batches a step draws
    silences:      a removed filter's bias and normalisation are zero as well
    shared:        the scores are the weights, in the same memory
    optimizers:    builds further optimizers, whose state is in the checkpoints too
    """

    kind: str
    optim: Optim
    lr: LearningRate
    initial: str
    seed: int
    density: float
    method: SearchMethod = field(metadata=UNKEYED)
    pattern: str = "unstructured"
    counts: dict[str, int] | None = None
    restriction: str | float | None = None
    inner: int = 1
    inverse_gamma: float = 0.0
    snapshots: int | None = None
    revision: int = field(default=0, metadata=UNKEYED)
    absolute: bool = field(default=False, metadata=UNKEYED)
    batches: int = field(default=1, metadata=UNKEYED)
    silences: bool = field(default=True, metadata=UNKEYED)
    shared: bool = field(default=False, metadata=UNKEYED)
    optimizers: Callable[[Any], Optimizers] | None = field(default=None, metadata=UNKEYED)

    def check(self, shapes: Mapping[str, torch.Size]) -> None:
        """Raise ConfigError for unknown initial scores, or a pattern or density that these layers cannot have."""
        one_of(*INITIAL, *LEVELS)("method.initial", self.initial)
        if self.pattern not in ("unstructured", *GROUPS) and not self.n_of_m:
            expected = f"unstructured, {', '.join(GROUPS)}, or N:M such as 2:4{nearest(self.pattern, GROUPS)}"
            if self.pattern.isdigit():
                expected += "; in a file in quotes, or YAML reads a time"
            raise ConfigError.of("method.pattern", self.pattern, expected)
        size = sum(shape.numel() for shape in shapes.values())
        if self.pattern == "unstructured" and self.counts is None and round(self.density * size) < 1:
            expected = f"at least {1 / size:.4g}, one of the {size:,} weights"
            raise ConfigError.of("method.density", self.density, expected)
        self.rule(shapes)
        if self.n_of_m and abs(self.density - self.n_of_m[0] / self.n_of_m[1]) > 1e-9:
            expected = f"{self.n_of_m[0] / self.n_of_m[1]:.6g}, which method.pattern={self.pattern} keeps"
            raise ConfigError.of("method.density", self.density, expected)

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """N and M of a pattern N:M; None for another pattern."""
        found = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", self.pattern)
        return (int(found[1]), int(found[2])) if found else None

    def top(self, shapes: Mapping[str, torch.Size]) -> Rule:
        """Return the rule that keeps the highest scores. ConfigError where these layers cannot have the pattern."""
        if self.pattern in GROUPS:
            return TopGroups(shapes, self.density, GROUPS[self.pattern])
        if self.n_of_m:
            return NM(shapes, *self.n_of_m)
        if self.counts is None:
            return Top(round(self.density * sum(shape.numel() for shape in shapes.values())))
        return Top([self.counts[name] for name in shapes])

    def rule(self, shapes: Mapping[str, torch.Size]) -> Rule:
        """Return the rule by which the mask follows from the scores at each step."""
        if self.restriction is None or self.counts is None:
            return self.top(shapes)
        return Swaps([self.counts[name] for name in shapes], self.restriction)

    def inputs(self) -> dict[str, Any]:
        """Return the inputs of the stage key, with all options of a user's own method: its `update` may read any."""
        keyed = {each.name: getattr(self, each.name) for each in fields(self) if each.metadata != UNKEYED}
        keyed |= {"optim": asdict(self.optim), "lr": self.lr.inputs()}
        options = own_options(self.method)
        return keyed | ({"options": options} if options else {})


def own_options(method: Any) -> dict[str, Any]:
    """Return the options that a user's own method adds to lottery's, without those of the tuning after the search."""
    theirs = [cls for cls in type(method).__mro__ if is_dataclass(cls) and is_lotterys(cls.__module__)]
    known = {each.name for cls in theirs for each in fields(cls)}
    read = [each.name for each in fields(method) if not isinstance(getattr(method, each.name), Tuning)]
    options = asdict(method)
    return {name: options[name] for name in read if name not in known}
