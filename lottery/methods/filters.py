"""Filter tickets: in every convolution the filters of lowest score are removed, the same share of each layer.

They are the baseline of layer tickets (Jordao et al., Table 3). A filter's score is the mean of its weights' scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from lottery.errors import ConfigError
from lottery.ranges import FRACTION, Checked, one_of, option
from lottery.stages.round import Round

if TYPE_CHECKING:
    from lottery.stages.lab import Lab


@dataclass
class FilterTickets(Checked):
    """One round beside the dense one, with `density` of each layer's filters, rounded up to a whole number.

    scored: the network in which filters are scored: "trained", and rewound afterwards, or "init"
    """

    density: float = option(0.8, FRACTION)
    scored: str = option("init", one_of("trained", "init", expected="trained or init"))

    rounds: ClassVar = 1

    def check(self, lab: Lab) -> None:
        """Raise ConfigError for layers that have no filters, or so few that none would be left."""
        from lottery.pruning.structure import lowest_filters

        lowest_filters({name: kept.float() for name, kept in lab.initial.mask.items()}, self.density)
        if lab.config.controls.invert:
            raise ConfigError.of("controls.invert", lab.config.controls.invert, "0: it would not remove whole filters")

    def __call__(self, lab: Lab) -> Iterator[Round]:
        """Yield the dense network, then the ticket without the removed filters, their biases and normalisation."""
        from lottery.pruning.structure import lowest_filters

        full, init = lab.initial.mask, self.scored == "init"
        dense = lab.train(lab.initial, keep=() if init else lab.rewind.keep_dense())
        yield Round(0, lab.initial, dense)
        scores = lab.scores(lab.initial.state if init else dense.state, full)
        mask = lab.ranked(full, lowest_filters(scores, self.density), scores)
        ticket = replace(lab.initial, mask=mask) if init else lab.rewind.ticket(dense, dense, mask)
        ticket = replace(ticket, silent=True)
        yield Round(1, ticket, lab.train(ticket), rewound=0 if init else None)
