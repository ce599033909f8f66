"""The weights behind a row of a run folder: found in a store by their digests, or drawn again. Needs torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from torch import Tensor, nn

from lottery.config.data import Data
from lottery.data.load import load
from lottery.errors import LotteryError, nearest
from lottery.files import Missing, Unreadable, read_json
from lottery.models.build import build, start_network
from lottery.record.manifest import remedy
from lottery.record.names import CONFIG, details_file
from lottery.record.rows import Row, identity
from lottery.seeding import reinit_seed
from lottery.state import StateRef, restore_
from lottery.tensor_files import EARLY_STOP, END, state_files
from lottery.ticket import Mask, Ticket
from lottery.trust import check_data, check_model
from lottery.values import fits

if TYPE_CHECKING:
    from lottery.data.dataset import Dataset

POINTS = ("start", "early_stop", "end")


class Recorded(Protocol):
    """The part of a run folder that is needed here; `lottery.record.run.Run` has it."""

    @property
    def path(self) -> Path: ...
    @property
    def name(self) -> str: ...
    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def stores(self) -> list[Path]: ...
    def details(self, round: int, control: str | None = None, copy: int = 0) -> dict[str, Any]: ...
    def mask(self, round: int, control: str | None = None, copy: int = 0) -> Mask: ...


@dataclass(frozen=True, eq=False)
class Weights:
    """The states of one row. trust: call code that the folder names and that this user never ran.

    Everything may raise LotteryError, which names what is missing and the command that computes it again.
    """

    run: Recorded
    row: Row
    trust: bool = False

    def at(self, point: str) -> StateRef:
        """Return the state at "start", "end" or "early_stop" (where the validation loss was lowest)."""
        match point:
            case "end":
                return self._stored(self.details["digests"]["trained"]) or self._lost("the trained weights")
            case "start":
                return self._start()
            case "early_stop":
                return self._early_stop()
        raise LotteryError(f"at: got {point!r}, expected {', '.join(POINTS)}{nearest(str(point), POINTS)}")

    @cached_property
    def mask(self) -> Mask:
        return self.run.mask(*identity(self.row))

    @property
    def ticket(self) -> Ticket:
        """Mask, start state, and the positions in schedule and data order. Its `recipe` is not kept: None."""
        said = self.details["ticket"]
        optimizer = None
        if said["optimizer"] is not None:
            optimizer = self._stored(said["optimizer"]) or self._lost("the optimizer state at the start")
        options = {name: said[name] for name in ("step", "order_step", "steps", "hold_lr")}
        silent, removed = said.get("silent", False), tuple(self.row.get("removed_units", ()))
        return Ticket(self.mask, self._start(), **options, optimizer=optimizer, silent=silent, removed=removed)

    def network(self, point: str) -> nn.Module:
        """Build the study's network with the state at a point; pruned weights are exactly +0.0."""
        state = self.mask.apply(self.at(point).tensors())
        check_model(self.run.config["model"], self.run.path / CONFIG, self.trust)
        data = self.run.config["data"]
        network = build(self.model, tuple(data["shape"]), data["classes"], seed=0)
        try:
            restore_(network, state)
        except RuntimeError as error:
            flaw = f"its model now builds another network than was trained: {error}"
            raise LotteryError(f"{self.run.path}: {flaw}") from error
        return network

    @property
    def model(self) -> dict[str, Any]:
        """The options of the network, without those of its start weights."""
        given = self.run.config["model"]
        model = {name: value for name, value in given.items() if name not in ("weights", "drop_head")}
        return {**model, "pretrained": False} if "pretrained" in model else model

    @property
    def dataset(self) -> Dataset:
        """The study's data. LotteryError also where its source is code that this user never ran (`trust`)."""
        config, path = self.run.config, self.run.path / CONFIG
        check_data(config["data"], path, self.trust)
        try:
            options = Data(**config["data"])
        except TypeError as error:
            raise LotteryError(f"{path}: data: {error}: of another version of lottery") from error
        return load(options, Path(config["paths"]["data"]), config["seeds"]["split"])

    @cached_property
    def details(self) -> dict[str, Any]:
        """The row's stages and digests, from its file in rounds/."""
        place = identity(self.row)
        try:
            details = self.run.details(*place)
            named = [details["stages"]["train"], details["digests"]["start"], details["digests"]["trained"]]
            counts = [details["ticket"][name] for name in ("step", "order_step", "steps")]
            if not (fits(named, list[str]) and fits(counts, list[int])):
                raise TypeError(named)
        except (Missing, KeyError, TypeError) as error:
            path = self.run.path / details_file(*place)
            raise LotteryError(f"{path}: missing or damaged; {remedy(self.run.path)}") from error
        return details

    # -- where states are ---------------------------------------------------------------------------------------------

    def _stored(self, digest: str) -> StateRef | None:
        """Find a state in the stores; None where no finished stage has it."""
        for folder in self._folders():
            with suppress(Unreadable, Missing):
                for name, found in state_files(read_json(folder / "result.json")).items():
                    if found == digest and (folder / name).is_file():
                        return StateRef.file(folder / name, digest)
        return None

    def _folders(self) -> Iterator[Path]:
        """Yield the stages of the stores, the row's own training first."""
        yield from self._trainings
        for store in self.run.stores:
            yield from store.glob("[!.]*/[!.]*/")

    @property
    def _trainings(self) -> list[Path]:
        """Where the stores have the row's own training, if they have it."""
        return [store / "train" / self.details["stages"]["train"] for store in self.run.stores]

    def _start(self) -> StateRef:
        digest, policy = self.details["digests"]["start"], self.run.config.get("rewind", {})
        if (found := self._stored(digest) or self._drawn(digest)) is not None:
            return found
        if policy.get("weights") != policy.get("batchnorm"):
            mixed = f"weights ({policy.get('weights')}) and batch-norm statistics ({policy.get('batchnorm')})"
            raise LotteryError(f"{self._place}: it starts from {mixed} of two states, which are not stored as one")
        self._lost("the start weights")

    def _drawn(self, digest: str) -> StateRef | None:
        """Draw the initial weights again; None where the state is another one."""
        config, seed, control = self.run.config, self.run.config["seeds"]["init"], self.row["control"]
        check_model(config["model"], self.run.path / CONFIG, self.trust)
        if control == "reinit":
            seed = reinit_seed(seed, self.row["round"], self.row["copy"])
        shape, classes = tuple(config["data"]["shape"]), config["data"]["classes"]
        network = start_network(config["model"], shape, classes, seed, self._images, fresh=control == "reinit")
        state = StateRef.of(network.state_dict())
        return state if state.digest == digest else None

    def _images(self, count: int) -> Tensor:
        return self.dataset.images(count)

    def _early_stop(self) -> StateRef:
        step, ticket = self.row.get("early_stop_step"), self.details["ticket"]
        if step is None:
            raise LotteryError(f"{self._place}: no early stop, as no validation set was held out (data.validation)")
        if step == ticket["step"]:
            return self._start()
        if step == ticket["step"] + ticket["steps"]:
            return self.at("end")
        for folder in self._trainings:
            if (folder / END).is_file():
                if digest := state_files(read_json(folder / "result.json")).get(EARLY_STOP):
                    return StateRef.file(folder / EARLY_STOP, digest)
                flaw = "an earlier version trained it and kept no weights at the early stop"
                raise LotteryError(f"{self._place}: {flaw}; remove {folder}, and {self._again}")
        self._lost("the weights at the early stop")

    def _lost(self, what: str) -> NoReturn:
        """Raise LotteryError: no store has a state, and it is not drawn from the seed."""
        store = self.run.stores[0]
        raise LotteryError(f"{self._place}: the store {store} does not have {what} (any more); {self._again}")

    @property
    def _place(self) -> str:
        round, control, copy = identity(self.row)
        return f"{self.run.path}: round {round}" + (f", {control} {copy}" if control else "")

    @property
    def _again(self) -> str:
        return f"`python -m lottery --config {self.run.path / CONFIG}` trains it again"
