"""Linear CKA of the features: how similar a round's layers are to the dense network's, or those of copies."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lottery.errors import ConfigError, LotteryError
from lottery.probes.copies import has_copies
from lottery.probes.images import Options
from lottery.pruning.prunable import module_of
from lottery.ranges import at_least, option, such_that
from lottery.stability.cka import CKA, gram, seen
from lottery.stages.bench import Bench
from lottery.stages.round import Round
from lottery.stages.trained import Trained
from lottery.ticket import Ticket

VERSION, FEWEST = 1, 4  # fewest images in a batch for the estimator


@dataclass(frozen=True)
class Alignment(Options):
    """`cka_dense` or `cka_copies`: linear CKA of each layer on the test images; 1 for equal features up to rotation.

    between: "dense" (this round and the dense network) or "copies" (a trained round in two data orders)
    layers:  modules whose outputs are compared; [] = those of all prunable weights
    batch:   images at a time, at least 4; nothing larger is ever held
    rounds:  measured only in these; [] = in all
    """

    between: str = option("dense", such_that(lambda got: got in ("dense", "copies"), "dense or copies"))
    layers: list[str] = field(default_factory=list)
    batch: int = option(250, at_least(FEWEST, f"a number of images ≥ {FEWEST}"))
    rounds: list[int] = field(default_factory=list)

    @property
    def copies(self) -> int:
        return 2 if self.between == "copies" else 1

    def check(self, lab: Bench) -> None:
        """Raise ConfigError for a layer that the network does not have."""
        known = dict(lab.network().named_modules())
        if unknown := [name for name in self.layers if name not in known]:
            raise ConfigError.of("probes.alignment.layers", unknown[0], "a module of the network, such as fc1")

    def trainings(self, round: Round, lab: Bench) -> list[Ticket]:
        """Return the tickets that the probe trains."""
        wanted = self.between == "copies" and has_copies(round, self.rounds)
        return lab.copied(round.ticket, self.copies) if wanted else []

    def __call__(self, round: Round, previous: Round | None, lab: Bench) -> dict[str, Any]:
        if self.rounds and round.index not in self.rounds:
            return {}
        if self.between == "copies":
            if not has_copies(round, self.rounds):
                return {}
            one, other = lab.copies(round.ticket, 2)
        elif round.index:
            one, other = lab.dense.trained, round.trained
        else:
            return {}
        return {f"cka_{self.between}": self.measured(one, other, round, lab)}

    def measured(self, one: Trained, other: Trained, round: Round, lab: Bench) -> dict[str, float | None]:
        """Return the CKA of each layer between the two networks."""
        names = self.layers or list(dict.fromkeys(module_of(name) for name in round.mask))

        def compute() -> dict[str, Any]:
            ours, theirs = lab.trained_network(one), lab.trained_network(other)
            cka, look = CKA([(name, name) for name in names]), partial(seen, layers=names, reduce=gram)
            for images, _ in lab.watched(lab.data.batches("test", self.batch)):
                if len(images) >= FEWEST:
                    cka.add(look(ours, images=images), look(theirs, images=images))
            if not cka.batches:
                raise LotteryError(f"probes.alignment: the test split has fewer than {FEWEST} images")
            return {name: value for (name, _), value in cka.result().items()}

        states = [one.state.digest, other.state.digest]
        inputs = {"version": VERSION, "states": states, "layers": names, "batch": self.batch}
        return lab.evaluated(f"alignment {self.between}", inputs, compute)
