"""Linear CKA of the features: how alike a round's layers are to the dense network's, or copies' to each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from lottery.errors import ConfigError, LotteryError
from lottery.probes.copies import has_copies
from lottery.pruning.prunable import module_of
from lottery.stability.cka import CKA, gram
from lottery.stability.features import seen

if TYPE_CHECKING:
    from lottery.stages.lab import Lab
    from lottery.stages.round import Round
    from lottery.stages.trained import Trained

VERSION, FEWEST = 1, 4  # images in a batch that the estimator needs


@dataclass(frozen=True)
class Alignment:
    """`cka_dense`: between the dense network's layers and this round's; `cka_copies`: between two copies of the round
    in different data orders (nothing of a round that is not trained). One figure a layer, on the test images; 1 for
    features that are equal up to rotation.

    layers: modules whose outputs are compared; [] = those of all prunable weights
    batch:  images at a time, at least 4; nothing larger is ever held
    rounds: measured only in these; [] = in all
    """

    between: str = "dense"
    layers: list[str] = field(default_factory=list)
    batch: int = 250
    rounds: list[int] = field(default_factory=list)

    @property
    def copies(self) -> int:
        return 2 if self.between == "copies" else 1

    def __post_init__(self) -> None:
        if self.between not in ("dense", "copies"):
            raise ConfigError.of("between", self.between, "dense or copies")
        if self.batch < FEWEST:
            raise ConfigError.of("batch", self.batch, f"a number of images ≥ {FEWEST}")

    def check(self, lab: Lab) -> None:
        """Raise ConfigError for a layer that the network does not have."""
        known = dict(lab.network(lab.config.seeds.init).named_modules())
        if unknown := [name for name in self.layers if name not in known]:
            raise ConfigError.of("probes.alignment.layers", unknown[0], "a module of the network, such as fc1")

    def __call__(self, round: Round, previous: Round | None, lab: Lab) -> dict[str, Any]:
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

    def measured(self, one: Trained, other: Trained, round: Round, lab: Lab) -> dict[str, float | None]:
        """CKA of each layer with the same layer of the other network."""
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
