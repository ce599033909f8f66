"""The progress of a study, and an estimate of the time left. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lottery.ticket import Ticket


@dataclass(frozen=True)
class AtWork:
    """A training that runs now.

    round:       None: not known before the round is there, as for a method of several parts
    step, steps: see `lottery.record.status.Status`
    share:       the finished part, in [0, 1]
    """

    round: int | None
    control: str | None
    copy: int
    step: int = 0
    steps: int = 0
    share: float = 0.0

    @property
    def where(self) -> str:
        """The round and control as text, such as `round 2 reinit 0`."""
        if self.round is None:
            return "on the way"
        return f"round {self.round}" + (f" {self.control} {self.copy}" if self.control else "")


class StudyProgress:
    """The progress of a study: of the training of this process, and of those of its workers."""

    def __init__(self, trainings: int = 0) -> None:
        self.trainings = trainings  # planned; 0 = unknown
        self.done = 0
        self.round = self.copy = 0
        self.control: str | None = None
        self.step = self.steps = 0  # of the present training: see Status
        self.share = 0.0  # finished part of the present training, in [0, 1]
        self.latest: tuple[int, str | None, int] = (0, None, 0)  # round, control and copy finished last
        self.waiting: str | None = None
        self.workers: dict[int, AtWork] = {}  # number of a worker -> its training
        self.ahead = 0  # trainings that workers have finished, and whose rounds are not on record yet
        self._fresh: list[float] = []  # wall seconds of the trainings that were not cached
        self._began = monotonic()
        self._first: tuple[float, float] | None = None  # time and share at the present training's first tick
        self._by_workers = 0  # trainings that workers have finished
        self._workers_began: float | None = None

    def at(self, round: int, control: str | None = None, copy: int = 0) -> None:
        """Set the round, control and copy of the next training."""
        self.round, self.control, self.copy = round, control, copy
        self._nothing_trains()

    @property
    def where(self) -> str:
        """The round and control as text, such as `round 2 reinit 0`."""
        return self._own.where

    @property
    def _own(self) -> AtWork:
        return AtWork(self.round, self.control, self.copy, self.step, self.steps, self.share)

    def next(self, place: Mapping[str, Any]) -> bool:
        """Whether a training of another process is one of this round, or the next ticket, of which no more is missing.

        Then it is known where its curve begins on the axis of all curves.
        """
        if str(self.control or "").endswith("copy"):  # its round is not on record yet
            return False
        if place["control"]:
            return self.control is not None and place["round"] == self.round
        return bool(place["round"] == self.round + (self.control is not None))

    @property
    def shown(self) -> AtWork:
        """The training to show where there is room for one: the foremost of the workers', or this process's own."""
        return min(list(self.workers.values()), key=lambda each: each.where, default=self._own)

    @property
    def finished_trainings(self) -> int:
        """The number of finished trainings: those on record, and those of workers that are ahead."""
        return self.done + self.ahead

    def tick(self, ticket: Ticket, step: int) -> None:
        """Note that the present training has reached `step`. This process trains only while it has no workers."""
        self._workers_began = None
        if self.waiting:  # do not count the time spent waiting
            self.waiting, self._began = None, monotonic()
        self.step, self.steps = step, ticket.step + ticket.steps
        self.share = (step - ticket.step) / max(1, ticket.steps)
        self._first = self._first or (monotonic(), self.share)

    def finished(self, cached: bool) -> None:
        """Note that a training is done; cached: it was found in the store."""
        self.done += 1
        self.latest = self.round, self.control, self.copy
        if self.ahead and not cached:
            self.ahead -= 1
        elif not cached:
            self._fresh.append(monotonic() - self._began)
        self.waiting, self._began = None, monotonic()
        self._nothing_trains()

    def works(self, worker: int, at: AtWork) -> None:
        """Note what a worker trains."""
        self._workers_began = self._workers_began or monotonic()
        self.workers[worker] = at

    def worked(self, worker: int, training: bool) -> None:
        """Note that a worker has finished a stage. training: whether it was a training."""
        self.workers.pop(worker, None)
        self.ahead += training
        self._by_workers += training

    def _nothing_trains(self) -> None:
        self.step, self.steps, self.share, self._first = 0, 0, 0.0, None

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds for the rest of the present trainings and the planned ones after them; None if unknown.

        Based on the mean duration of the trainings so far. During the first training, based on its speed since its
        first tick, which need not be its first step: an interrupted training continues in the middle. With workers,
        based on how many trainings they have done together, in parts and in whole, since they began.
        """
        if self._workers_began is not None:
            return self._seconds_left_of_workers(self._workers_began)
        mean = sum(self._fresh) / len(self._fresh) if self._fresh else self._pace()
        if mean is None or self.done >= self.trainings:  # also where it is not known how many there are
            return None
        return mean * (max(1 - self.share, 0) + max(self.trainings - self.done - 1, 0))

    def _seconds_left_of_workers(self, began: float) -> float | None:
        under_way = sum(each.share for each in list(self.workers.values()))
        if self.finished_trainings >= self.trainings or not self._by_workers + under_way:
            return None
        left = max(self.trainings - self.finished_trainings - under_way, 0)
        return left * (monotonic() - began) / (self._by_workers + under_way)

    def _pace(self) -> float | None:
        """Estimate the seconds of a whole training from the share done since the first tick; None if unknown."""
        if self._first is None or self.share <= self._first[1]:
            return None
        return (monotonic() - self._first[0]) / (self.share - self._first[1])
