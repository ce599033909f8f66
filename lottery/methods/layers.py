"""Layer tickets (Jordao et al., "When Layers Play the Lottery, all Tickets Win at Initialization").

Whole residual units leave, so that the network gets faster on ordinary hardware.

Score the units, remove the lowest, set what is left to the weights of step i, train on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from lottery.errors import ConfigError, nearest
from lottery.stages.round import Round

if TYPE_CHECKING:
    from lottery.stages.lab import Lab


@dataclass
class LayerTickets:
    """A round for each entry of `remove`: so many units are gone then.

    scored:    the network that units are scored in: "trained" (the paper's Algorithm 1) or "init" (its Algorithm 2)
    iterative: score anew before each round, in the ticket trained last; else the dense network's scores hold throughout
    among:     patterns of units that may go, such as ["*.attn"]; all where there are none
    """

    remove: list[int] = field(default_factory=lambda: [1, 2, 3])
    scored: str = "trained"
    iterative: bool = False
    among: list[str] = field(default_factory=list)
    criterion: Any = None  # chosen with layer_criterion=NAME

    def __post_init__(self) -> None:
        if self.criterion is None:
            raise ConfigError(
                "method.criterion: nothing chosen; choose one with layer_criterion=NAME (--help lists them)"
            )
        if self.scored not in ("trained", "init"):
            expected = f"trained or init{nearest(self.scored, ('trained', 'init'))}"
            raise ConfigError.of("method.scored", self.scored, expected)
        if not self.remove or self.remove[0] < 0 or sorted(set(self.remove)) != self.remove:
            raise ConfigError.of("method.remove", self.remove, "how many units are gone by each round: [1, 2, 3]")
        if self.iterative and self.scored == "init":
            raise ConfigError.of("method.iterative", True, "false with method.scored=init: nothing is trained between")

    @property
    def rounds(self) -> int:
        return len(self.remove)

    def check(self, lab: Lab) -> None:
        """Raise ConfigError for a network without removable units, too few of them, and what units do not have."""
        lab.layers.check(self.criterion, self.candidates(lab), self.remove[-1])
        self.check_controls(lab)

    def check_controls(self, lab: Lab) -> None:
        """Raise ConfigError for controls that would need a unit again that has been zero since an earlier round."""
        carried = [name for name in ("weights", "batchnorm", "optimizer") if getattr(lab.config.rewind, name) == "keep"]
        for kind in ("random", "shuffle", "invert"):
            wanted = getattr(lab.config.controls, kind)
            if self.iterative and carried and wanted:
                expected = (
                    f"0 with method.iterative=true and rewind.{carried[0]}=keep: units that left in earlier rounds "
                    "have no weights to come back with"
                )
                raise ConfigError.of(f"controls.{kind}", wanted, expected)

    def candidates(self, lab: Lab) -> list[str]:
        """The units that may go, in the order of the forward pass. ConfigError for a pattern that fits none."""
        units = list(lab.layers.units)
        for pattern in self.among if units else ():
            if not any(fnmatchcase(name, pattern) for name in units):
                expected = f"a pattern that fits a removable unit: {', '.join(units)}"
                raise ConfigError.of("method.among", pattern, expected)
        return [name for name in units if not self.among or any(fnmatchcase(name, each) for each in self.among)]

    def __call__(self, lab: Lab) -> Iterator[Round]:
        """Round 0 is the dense network; round k has `remove[k - 1]` units less."""
        rewind, candidates = lab.rewind, self.candidates(lab)
        dense = trained = lab.train(lab.initial, keep=rewind.keep_dense() if self.scored == "trained" else ())
        ticket = lab.initial
        yield Round(0, ticket, dense, units=lab.layers.kept(ticket))
        for k, count in enumerate(self.remove, 1):
            so_far = ticket if self.iterative else lab.initial
            state = lab.initial.state if self.scored == "init" else trained.state if self.iterative else dense.state
            removed = lab.layers.lowest(self.criterion, state, so_far, candidates, count)
            start = lab.initial
            if self.scored == "trained":
                start = rewind.ticket(dense, trained if self.iterative else dense, lab.initial.mask)
            ticket = lab.layers.ticket(start, removed)
            trained = lab.train(ticket, keep=rewind.keep_pruned() if self.iterative else ())
            rewound = 0 if self.scored == "init" else None
            yield Round(k, ticket, trained, rewound=rewound, units=lab.layers.kept(ticket))
