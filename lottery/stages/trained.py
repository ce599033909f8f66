"""Finished trainings and searches, as methods see them. States are read from disk when asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lottery.errors import LotteryError
from lottery.stages.store import Stage, recorded_environment
from lottery.state import StateRef
from lottery.tensor_files import END, kept_path
from lottery.ticket import Mask, Ticket


@dataclass(frozen=True)
class Finished:
    """A finished stage of a ticket. `result`: its result.json; `cached`: whether it was found, not computed now."""

    ticket: Ticket
    key: str
    folder: Path
    result: dict[str, Any]
    cached: bool

    @property
    def state(self) -> StateRef:
        """The network's state at the end."""
        return StateRef.file(self.folder / END, self.result["state_digest"])

    def environment(self) -> dict[str, str]:
        """Return library versions, machine and device with which the stage was computed."""
        return recorded_environment(self.folder)


@dataclass(frozen=True)
class Trained(Finished):
    """A finished training; pruned weights are exactly zero. `kept`: step -> the "state" and "optimizer" there."""

    kept: dict[int, dict[str, StateRef]]

    @property
    def facts(self) -> dict[str, Any]:
        """What a row says of the training besides its scores."""
        return {}

    @property
    def notes(self) -> dict[str, Any]:
        """What a row's details say of the training."""
        return {"environment": self.environment(), "seconds": self.result["seconds"]}

    @classmethod
    def read(cls, ticket: Ticket, stage: Stage, cached: bool) -> Self:
        result = stage.result()
        kept = {int(step): kept_states(stage.folder, step, digests) for step, digests in result["kept"].items()}
        return cls(ticket, stage.key, stage.folder, result, cached, kept)

    def at(self, step: int) -> StateRef:
        """Return the network's state at the start, or at a kept step."""
        return self.ticket.state if step == self.ticket.step else self._kept(step)["state"]

    def optimizer_at(self, step: int) -> StateRef | None:
        """Return the optimizer's state at a kept step, or the ticket's at the start (None: fresh)."""
        return self.ticket.optimizer if step == self.ticket.step else self._kept(step)["optimizer"]

    def _kept(self, step: int) -> dict[str, StateRef]:
        if step not in self.kept:
            raise LotteryError(
                f"step {step} of training {self.key[:12]} was not kept; kept: {sorted(self.kept)}; "
                f"lab.train(ticket, keep=[{step}]) fills it in"
            )
        return self.kept[step]


class Masked(Finished):
    """A finished stage that ends with another mask than its ticket's."""

    @property
    def mask(self) -> Mask:
        """The mask at the end. LotteryError where the file holds another one."""
        return stored_mask(self.folder / "mask.safetensors", self.result["mask_digest"])

    @property
    def snapshots(self) -> dict[int, Mask]:
        """The masks kept on the way: step -> mask."""
        found = sorted((int(step), digest) for step, digest in self.result["snapshots"].items())
        return {step: stored_mask(kept_path(self.folder, "mask", step), digest) for step, digest in found}


@dataclass(frozen=True)
class Searched(Masked):
    """A finished search. `state` holds θ, pruned weights included; the ticket's mask then removes these."""

    @classmethod
    def read(cls, ticket: Ticket, stage: Stage, cached: bool) -> Searched:
        return cls(ticket, stage.key, stage.folder, stage.result(), cached)

    @property
    def facts(self) -> dict[str, Any]:
        """What a row says of the search."""
        took = self.result
        return {
            "search_steps": took["steps"],
            "search_batches": took["batches"],
            "search_seconds": float(f"{took['seconds']:.3f}"),
        }


@dataclass(frozen=True)
class Moved(Trained, Masked):
    """A finished training whose mask moved. The ticket's mask is that at the start."""

    @property
    def facts(self) -> dict[str, Any]:
        found = {f"probe/{name}": self.result[name] for name in ("moves", "explored", "train_cost")}
        return {"start_mask_digest": self.ticket.mask.digest, **found}

    @property
    def notes(self) -> dict[str, Any]:
        return {"moving": self.result["points"], **super().notes}


def kept_states(folder: Path, step: int | str, digests: dict[str, str]) -> dict[str, StateRef]:
    """Return references to the states of these digests that a training kept at a step."""
    return {what: StateRef.file(kept_path(folder, what, step), digest) for what, digest in digests.items()}


def stored_mask(path: Path, digest: str) -> Mask:
    """Load a stage's mask. LotteryError where its digest is not this one."""
    mask = Mask.load(path)
    if mask.digest != digest:
        raise LotteryError(f"{path}: not the mask that result.json names")
    return mask
