"""Filter tickets: in every convolution the filters of lowest score leave, the same share of each layer.

What layer tickets are compared with (Jordao et al., Table 3). The score of a filter is the mean of its weights' scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lottery.errors import ConfigError, nearest
from lottery.methods.phases import check_density
from lottery.stages.round import Round

if TYPE_CHECKING:
    from lottery.stages.lab import Lab


@dataclass
class FilterTickets:
    """One round beside the dense one, with `density` of each layer's filters: at least as many, to the next whole one.

    scored: the network that filters are scored in: "trained", after which what is left is rewound, or "init"
    """

    density: float = 0.8
    scored: str = "init"

    def __post_init__(self) -> None:
        check_density(self.density)
        if self.scored not in ("trained", "init"):
            expected = f"trained or init{nearest(self.scored, ('trained', 'init'))}"
            raise ConfigError.of("method.scored", self.scored, expected)

    @property
    def rounds(self) -> int:
        return 1

    def check(self, lab: Lab) -> None:
        """Raise ConfigError for layers that have no filters, or so few that none would be left."""
        from lottery.pruning.structure import lowest_filters

        lowest_filters({name: kept.float() for name, kept in lab.initial.mask.items()}, self.density)
        if lab.config.controls.invert:
            raise ConfigError.of("controls.invert", lab.config.controls.invert, "0: it would not remove whole filters")

    def __call__(self, lab: Lab) -> Iterator[Round]:
        """Round 0 is the dense network; round 1 lacks the filters, with all that follows from them."""
        from lottery.pruning.structure import lowest_filters

        full, init = lab.initial.mask, self.scored == "init"
        dense = lab.train(lab.initial, keep=() if init else lab.rewind.keep_dense())
        yield Round(0, lab.initial, dense)
        scores = lab.scores(lab.initial.state if init else dense.state, full)
        mask = lab.ranked(full, lowest_filters(scores, self.density), scores)
        ticket = replace(lab.initial, mask=mask) if init else lab.rewind.ticket(dense, dense, mask)
        ticket = replace(ticket, silent=True)
        yield Round(1, ticket, lab.train(ticket), rewound=0 if init else None)
