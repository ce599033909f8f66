"""Layer tickets (Jordao et al., "When Layers Play the Lottery, all Tickets Win at Initialization").

Whole residual units are removed, so that the network gets faster on ordinary hardware: score the units, remove the
lowest, set the remaining weights to those of step i, train on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar

from lottery.errors import ConfigError
from lottery.methods.shows import Shows
from lottery.ranges import Checked, chosen, one_of, option, such_that
from lottery.stages.round import Round

if TYPE_CHECKING:
    from lottery.stages.lab import Lab

ASCENDING = such_that(
    lambda counts: counts and counts[0] >= 0 and sorted(set(counts)) == counts,
    "how many units are gone by each round: [1, 2, 3]",
)


@dataclass
class LayerTickets(Checked):
    """A round for each entry of `remove`, which is the number of units removed by that round.

    scored:    the network in which units are scored: "trained" (the paper's Algorithm 1) or "init" (its Algorithm 2)
    iterative: score anew before each round, in the ticket trained last; else the dense network's scores hold throughout
    among:     patterns of units that may be removed, such as ["*.attn"]; empty: all
    """

    remove: list[int] = option([1, 2, 3], ASCENDING)
    scored: str = option("trained", one_of("trained", "init", expected="trained or init"))
    iterative: bool = False
    among: list[str] = field(default_factory=list)
    criterion: Any = option(None, chosen("layer_criterion"))  # chosen with layer_criterion=NAME

    shows: ClassVar = Shows(needs="dense")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterative and self.scored == "init":
            raise ConfigError.of("method.iterative", True, "false with method.scored=init: nothing is trained between")

    @property
    def rounds(self) -> int:
        return len(self.remove)

    def check(self, lab: Lab) -> None:
        """Raise ConfigError for too few units, refused options, or controls that need units zeroed before."""
        lab.layers.check(self.criterion, self.candidates(lab), self.remove[-1])
        rewind, controls = lab.config.rewind, vars(lab.config.controls)
        carried = [name for name in ("weights", "batchnorm", "optimizer") if getattr(rewind, name) == "keep"]
        wanted = [kind for kind in ("random", "shuffle", "invert") if controls[kind]]
        if self.iterative and carried and wanted:
            expected = (
                f"0 with method.iterative=true and rewind.{carried[0]}=keep: units that left in earlier rounds have no "
                "weights to come back with"
            )
            raise ConfigError.of(f"controls.{wanted[0]}", controls[wanted[0]], expected)

    def candidates(self, lab: Lab) -> list[str]:
        """Return the units that may be removed, in forward order. ConfigError for a pattern that matches none."""
        units = list(lab.layers.units)
        for pattern in self.among if units else ():
            if not any(fnmatchcase(name, pattern) for name in units):
                expected = f"a pattern that fits a removable unit: {', '.join(units)}"
                raise ConfigError.of("method.among", pattern, expected)
        return [name for name in units if not self.among or any(fnmatchcase(name, each) for each in self.among)]

    def __call__(self, lab: Lab) -> Iterator[Round]:
        """Yield the dense network as round 0; round k has `remove[k - 1]` units less."""
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
