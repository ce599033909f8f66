"""Workers: processes that run one study side by side on one machine (`trainer.workers`).

A worker runs the study's program over the study's store, and records nothing. It computes the method's next stage.
While another worker computes that one, it trains a control, or a copy for a probe, of the rounds so far. Each stage is
computed once, under its lease. A worker that is killed costs the steps since a checkpoint, and no number depends on
which worker does what.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Any

import torch

from lottery.config import Trainer
from lottery.errors import Interrupted, cause
from lottery.lease import NAME as LEASE
from lottery.parts import typed_method
from lottery.ranks import alone
from lottery.ranks.place import Place
from lottery.signals import StopFlag, stop_on_signals
from lottery.stages import controls
from lottery.stages.attempts import Attempts
from lottery.stages.bench import Bench
from lottery.stages.crew import Crew, WorkerStore
from lottery.stages.lab import Lab
from lottery.stages.round import Round
from lottery.stages.store import Stage
from lottery.study import Study
from lottery.ticket import Ticket
from lottery.tracking.trackers import with_rates

if TYPE_CHECKING:
    from omegaconf import DictConfig

LOG = logging.getLogger("lottery")

TICK_SECONDS = 0.2  # between two messages on the progress of a training
GO_SECONDS = 0.5  # how often a worker that has not begun looks whether the main process is still there


def hired(cfg: DictConfig, place: Place, attempts: Attempts) -> Crew | None:
    """Start the workers of a study, as many as `trainer.workers` says; None for one, which is this process itself."""
    count = number_of(cfg, place)
    if count == 1:
        return None
    return Crew(count, work, cfg, attempts, count, os.getpid(), fork=fresh())


def number_of(cfg: DictConfig, place: Place) -> int:
    """Return how many workers a study gets. auto: as `Trainer.workers` says."""
    trainer: Trainer = cfg.trainer
    if trainer.workers != "auto":
        return int(trainer.workers)
    gpu = trainer.accelerator != "cpu" and torch.cuda.is_available()
    if trainer.threads is None or place.world > 1 or gpu:
        return 1
    processors = int(os.environ.get("SLURM_CPUS_PER_TASK") or alone.OWN_THREADS)
    copies = [probe.get("copies", 1) if probe else 1 for probe in (cfg.probes or {}).values()]
    side_by_side = sum(cfg.controls.values()) + max([1, *copies])
    parts = getattr(typed_method(cfg.method), "parts", 1)
    return max(1, min(processors // trainer.threads, side_by_side * parts))


def fresh() -> bool:
    """Whether this process has no threads of torch yet: it was started to run studies, and none has used several."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    own = spec is not None and spec.name.startswith(("lottery.", "submitit."))
    return own and sys.platform == "linux" and alone.most_threads <= 1 and not torch.cuda.is_available()


# -- what a worker does -----------------------------------------------------------------------------------------------


class OrphanStop(StopFlag):
    """A stop flag that is also true once the process that started this one is gone."""

    def __init__(self, parent: int) -> None:
        super().__init__()
        self.parent = parent

    def __bool__(self) -> bool:
        if self.signum is None and os.getppid() != self.parent:
            self.signum = signal.SIGTERM
        return self.signum is not None


class Forward(logging.Handler):
    """A handler that sends log records to the main process, which logs each warning once."""

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(logging.INFO)
        self.send = send

    def emit(self, record: logging.LogRecord) -> None:
        self.send({"log": [record.levelno, record.getMessage()]})


def work(connection: Connection, number: int, cfg: DictConfig, attempts: Attempts, count: int, parent: int) -> None:
    """Work on a study once the main process says so, to its end or until a signal. Errors are left to that process."""
    lock = Lock()

    def send(message: dict[str, Any]) -> None:
        with lock, suppress(OSError):  # the main process may be gone
            connection.send_bytes(json.dumps(message).encode())

    LOG.handlers, LOG.propagate = [Forward(send)], False
    LOG.setLevel(logging.INFO)
    with stop_on_signals(OrphanStop(parent)) as stop:
        try:
            alone.use_machine(cfg.trainer.threads, count)
            worker = Worker(cfg, attempts, stop, send)
            worker.lab.first_part = (number - 1) / count
            while not stop and not connection.poll(GO_SECONDS):
                continue
            if not stop:
                worker.work()
        except (Interrupted, EOFError, KeyboardInterrupt, SystemExit):  # Lightning makes the third of a second Ctrl-C
            pass
        except Exception as error:
            send({"failed": cause(error)})


@dataclass
class Spare:
    """A training beside the method's own: a control, or a copy for a probe."""

    where: Round
    ticket: Ticket
    stage: Stage
    number: int = 0  # of the copy; 0: the round's own training

    @property
    def free(self) -> bool:
        """Whether it is left to do, and no process does it."""
        return not self.stage.done and not (self.stage.folder / LEASE).exists()


class Worker:
    """One worker: the program of a study, and the trainings beside it that are left to do."""

    def __init__(
        self, cfg: DictConfig, attempts: Attempts, stop: StopFlag, send: Callable[[dict[str, Any]], None]
    ) -> None:
        study = Study(cfg, stop, attempts=attempts)
        self.method, self.probes, self.config, self.send = study.method, study.probes.values(), study.config, send
        store = WorkerStore(Path(study.config.paths.store), f"{study.config.name}/{study.key}", stop, attempts=attempts)
        store.send, store.spare, store.on_wait = send, self.spare, lambda _: None
        self.lab = Lab(study.config, stop, self.tick, store)
        self.lab.on_points = self.points
        self.left: list[Spare] = []
        self.at: dict[str, Any] = {}  # the round, control and copy at work
        self._ticked = 0.0
        self._sparing = False

    def work(self) -> None:
        """Run the method to its end, then what is left beside it."""
        self.now(0)
        for round in self.method(self.lab):
            self.left += self.beside(round)
            self.now(round.index + 1 if getattr(self.method, "parts", 1) == 1 else None)
        for training in self.left:
            self.train(training)

    def beside(self, round: Round) -> Iterator[Spare]:
        """Yield the trainings beside a round: the copies that probes ask for, its controls, and their copies."""
        rounds = [round]
        for kind, copy in controls.wanted(self.config, round):
            ticket = controls.control_of(self.lab, round, kind, copy)
            rounds.append(replace(round, ticket=ticket, control=kind, copy=copy))
        for each in rounds:
            if each.control:
                yield self.planned(each, each.ticket)
            asking = [probe for probe in self.probes if hasattr(probe, "trainings")]
            for number, ticket in enumerate((t for p in asking for t in p.trainings(each, Bench(self.lab))), 1):
                if ticket != each.ticket:
                    yield self.planned(each, ticket, number)

    def planned(self, where: Round, ticket: Ticket, number: int = 0) -> Spare:
        return Spare(where, ticket, self.lab.train_stage(ticket), number)

    def spare(self) -> bool:
        """Do one training that no process does. Returns whether there was any."""
        self.left = [training for training in self.left if not training.stage.done]
        training = None if self._sparing else next((each for each in self.left if each.free), None)
        if training is None:
            return False
        before, self._sparing = self.at, True
        try:
            self.train(training)
        finally:
            self._sparing, self.at = False, before
        return True

    def train(self, training: Spare) -> None:
        self.now(training.where.index, training.where.control, training.where.copy, training.number)
        self.lab.train(training.ticket)

    def now(self, round: int | None, control: str | None = None, copy: int = 0, number: int = 0) -> None:
        """Note what this worker computes from now on."""
        if number:
            control, copy = f"{control} {copy} copy" if control else "copy", number
        self.at, self._ticked = {"round": round, "control": control, "copy": copy}, 0.0

    def points(self, ticket: Ticket, curve: list[list[Any]]) -> None:
        """Report new points of the curve of a round's training, or a control's."""
        if self.at["round"] is not None and not str(self.at["control"] or "").endswith("copy"):
            self.send({"points": self.at, "curve": with_rates(curve, ticket, ticket.recipe or self.lab.recipe)})

    def tick(self, ticket: Ticket, step: int, loss: float, accuracy: float | None) -> None:
        """Report the progress of a training."""
        if monotonic() - self._ticked >= TICK_SECONDS:
            self._ticked = monotonic()
            first, steps = ticket.step, ticket.step + ticket.steps
            self.send(
                {"at": self.at | {"first": first, "step": step, "steps": steps, "loss": loss, "accuracy": accuracy}}
            )
