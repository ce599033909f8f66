"""What a training asks of the processes that train together, answered for a single process."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from lottery.config import Trainer
from lottery.data.order import Share
from lottery.errors import LotteryError
from lottery.ranks.place import Place

Loss = Callable[..., Tensor]  # takes (logits, labels) and a `reduction`, as torch's losses do
Network = Callable[[Tensor], Tensor]
Sizes = Callable[[], tuple[int, int]]
OWN_THREADS = torch.get_num_threads()  # torch's own choice
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT_BYTES = 1 << 30
most_threads = 0  # that a study of this process may have used


class RanksDiffer(LotteryError):
    """Error for processes that do not train the same network."""


class Abandoned(Exception):
    """Exception on the other ranks after rank 0 gave up a training; they wait for the next one."""


class Alone:
    """The only process of a study. `lottery.ranks.group.Ranks` overrides these methods for several processes.

    rank, world: this process's number, from 0, and how many train together (the world size)
    first:       whether this is rank 0, which runs the study, reads and writes
    alone:       whether there is no other
    index:       number of this rank's GPU, where there are several ranks
    """

    def __init__(self, trainer: Trainer | None = None, place: Place = Place()) -> None:  # noqa: B008 - it is frozen
        self.place, self.rank, self.world = place, place.rank, place.world
        self.first, self.alone = self.rank == 0, self.world == 1
        self.accelerator = trainer.accelerator if trainer else "auto"
        self.index: int | None = None

    def check(self, trainer: Trainer) -> None:
        """Raise LotteryError unless the configured number of processes train together."""
        if self.world != trainer.devices * trainer.nodes:
            raise LotteryError(
                f"trainer.devices={trainer.devices}, trainer.nodes={trainer.nodes}: "
                f"{self.world} process(es) train here; the command line starts as many as are needed"
            )

    # -- beginning a training ---------------------------------------------------------------------------------------

    def start_others(self) -> None:
        """On rank 0: get the other ranks ready, and start them if need be. They stay until the study ends."""

    def broadcast(self, training: Any) -> None:
        """On rank 0: send a training (a `lottery.ranks.broadcast.Broadcast`), which the other ranks then join."""

    def check_same(self, what: str, digest: Callable[[], str]) -> None:
        """Raise RanksDiffer on every rank unless all have the same digest (hex) of `what`."""

    # -- in each step -----------------------------------------------------------------------------------------------

    def share(self, first: int = 0) -> Share:
        """Return this rank's part of every batch, or of a list of batches from number `first` on."""
        return Share(self.rank + first * self.world, self.world)

    @property
    def noise(self) -> tuple[int, ...]:
        """Extra words for the seeds of this rank's draws. Rank 0 has none: it draws as a single process does."""
        return (self.rank,) if self.rank else ()

    def mean_loss(self, loss: Loss, network: Network, images: Tensor, labels: Tensor, sizes: Sizes) -> Tensor:
        """Return this rank's summand of the mean loss over the whole batch.

        sizes: returns how many images of the batch are this rank's, and how many there are in all
        """
        return loss(network(images), labels)

    def gradient_sum(self, parameters: Iterable[nn.Parameter]) -> Callable[[], None]:
        """Return a function that adds up the gradients of all ranks, in place; to be called after backward."""
        return lambda: None

    def agreement(self, stop: Callable[[], bool], due: Callable[[int], bool]) -> Callable[[int], bool]:
        """Return a function of the step that says whether to leave the loop, by `stop` or `due`, alike on all ranks."""
        return lambda step: stop() or due(step)

    # -- now and then -----------------------------------------------------------------------------------------------

    def sum(self, values: Tensor) -> Tensor:
        """Return the sums of these numbers over all ranks."""
        return values

    def maximum(self, *values: int) -> list[int]:
        """Return the largest value over all ranks of each of these whole numbers."""
        return list(values)

    def resumable(self, tallies: dict[str, Any]) -> dict[str, Any]:
        """Return the sums from which an interrupted measurement continues; rank 0's checkpoint has them."""
        return tallies

    def on_first(self, work: Callable[[], None]) -> None:
        """Run `work` on rank 0 only. If it fails, rank 0 raises its error, and the other ranks raise Abandoned."""
        work()

    def translate_errors(self) -> AbstractContextManager[None]:
        """Return a context that turns torch's errors about a lost process into RankLost, naming the rank if known."""
        return nullcontext()


def use_machine(threads: int | None, processes: int = 1) -> None:
    """Set torch's CPU threads: as asked, else what SLURM granted, else torch's own choice. Freed memory is kept.

    Unless `threads` is given, they are divided among `processes` on this machine, this one included.
    """
    global most_threads
    keep_freed_memory()
    granted = os.environ.get("SLURM_CPUS_PER_TASK")
    if threads or granted or processes > 1:
        torch.set_num_threads(threads or max(1, int(granted or OWN_THREADS) // processes))
    most_threads = max(most_threads, torch.get_num_threads())


def keep_freed_memory() -> None:
    """Have glibc keep freed blocks of up to 1 GiB for the next allocation. Elsewhere nothing changes.

    By default it returns large blocks at once. Then the system clears each page of activations and gradients again in
    every step.
    """
    with suppress(AttributeError, OSError, TypeError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
