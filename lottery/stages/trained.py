"""A finished training, as methods see it. States are read from disk when asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lottery.errors import LotteryError
from lottery.stages.store import Stage, recorded_environment
from lottery.state import StateRef
from lottery.ticket import Ticket


@dataclass(frozen=True)
class Kept:
    """The full state of a training at one step: network and optimizer."""

    state: StateRef
    optimizer: StateRef

    @classmethod
    def paths(cls, folder: Path, step: int) -> tuple[Path, Path]:
        return folder / f"state_{step:08d}.safetensors", folder / f"optimizer_{step:08d}.safetensors"

    @classmethod
    def read(cls, folder: Path, step: int, digests: dict[str, str]) -> Kept:
        state, optimizer = cls.paths(folder, step)
        return cls(StateRef.file(state, digests["state"]), StateRef.file(optimizer, digests["optimizer"]))


@dataclass(frozen=True)
class Trained:
    """A finished training."""

    ticket: Ticket
    key: str
    folder: Path
    result: dict[str, Any]
    kept: dict[int, Kept]
    cached: bool

    @classmethod
    def read(cls, ticket: Ticket, stage: Stage, cached: bool) -> Trained:
        result = stage.result()
        kept = {int(step): Kept.read(stage.folder, int(step), digests) for step, digests in result["kept"].items()}
        return cls(ticket, stage.key, stage.folder, result, kept, cached)

    @property
    def state(self) -> StateRef:
        """The trained network; pruned weights are exactly zero."""
        return StateRef.file(self.folder / "state.safetensors", self.result["state_digest"])

    def at(self, step: int) -> StateRef:
        """The network at the start, or at a kept step."""
        return self.ticket.state if step == self.ticket.step else self._kept(step).state

    def optimizer_at(self, step: int) -> StateRef | None:
        """The optimizer's state at a kept step; at the start, what the ticket said (None: fresh)."""
        return self.ticket.optimizer if step == self.ticket.step else self._kept(step).optimizer

    def environment(self) -> dict[str, str]:
        """Library versions, machine and device that it was computed with."""
        return recorded_environment(self.folder)

    def _kept(self, step: int) -> Kept:
        if step not in self.kept:
            raise LotteryError(
                f"step {step} of training {self.key[:12]} was not kept; kept: {sorted(self.kept)}; "
                f"lab.train(ticket, keep=[{step}]) fills it in"
            )
        return self.kept[step]
