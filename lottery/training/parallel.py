"""Several processes that train one network: rank 0 runs the study, the others train along when it says so.

Every rank has the whole network and a part of each batch. What all of them have to do together (add up gradients, leave
at the same step, compare masks) is a method of `Ranks`, which is nothing at all where there is one process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import monotonic
from types import TracebackType
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lottery.config import Trainer, digest
from lottery.data.order import Share
from lottery.errors import ConfigError, LotteryError
from lottery.state import State
from lottery.training.meeting import TIMEOUT, Meeting, RankLost
from lottery.training.place import LOOPBACK, Place
from lottery.training.signals import StopFlag

AGREE_SECONDS, AGREE_STEPS = 0.25, 32  # how often the ranks agree on whether to go on: whichever comes first


class RanksDiffer(LotteryError):
    """The processes do not train the same network."""


class Abandoned(Exception):
    """Rank 0 gave a training up; the other ranks leave it, and wait for what comes next."""


class Ranks:
    """The processes of one study, seen from this one. As a context manager it meets the others, and parts."""

    def __init__(
        self,
        place: Place | None = None,
        trainer: Trainer | None = None,
        config: str = "",
        stop: StopFlag | None = None,
        patience: float = TIMEOUT.total_seconds(),
    ) -> None:
        """One process alone, unless told otherwise; `config` (YAML) is what processes are given that rank 0 starts.

        `patience` is how many seconds to look for rank 0. Raises ConfigError where the GPUs asked for are not there.
        """
        self.place = place or Place()
        self.rank, self.world = self.place.rank, self.place.world
        self.alone, self.first = self.world == 1, self.rank == 0
        self.share = Share(self.rank, self.world)
        self.accelerator = trainer.accelerator if trainer else "auto"
        self.index: int | None = None  # of this rank's GPU, where there are several ranks
        self.status = 0  # rank 0's exit status, as it told the others
        self.patience = patience
        self._meeting = Meeting(self.place, config, StopFlag() if stop is None else stop)
        self._together = False
        if self.first and not self.alone:
            self._choose_device("cpu" if self.accelerator == "auto" and not torch.cuda.is_available() else "cuda")

    def _choose_device(self, accelerator: str) -> None:
        """This rank's CPU or GPU. ConfigError where there is none for it."""
        self.accelerator = "cpu" if self.accelerator == "cpu" else accelerator
        if self.accelerator == "cpu":
            return
        count, local = torch.cuda.device_count(), self.place.local
        needed = self.world if self.place.starts else local + 1
        if count < needed and (count != 1 or self.place.starts):  # where a process sees one GPU, it is its own
            raise ConfigError(f"trainer.devices: {needed} GPUs are needed on this machine, {count} are there")
        self.index = min(local, count - 1)

    def check(self, trainer: Trainer) -> None:
        """Raise LotteryError unless we are as many as are asked for: one process must not pass for two."""
        if self.world != trainer.devices * trainer.nodes:
            raise LotteryError(
                f"trainer.devices={trainer.devices}, trainer.nodes={trainer.nodes}: "
                f"{self.world} process(es) train here; the command line starts as many as are needed"
            )

    # -- meeting and parting ----------------------------------------------------------------------------------------

    def __enter__(self) -> Ranks:
        if not self.alone:
            self._meeting.open(self.patience)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.alone:
            return
        status = 0 if error is None else getattr(error, "exit_status", 1)
        self._meeting.end(status)
        if self._together:
            dist.destroy_process_group()  # which wakes whoever waits for a message of ours
            self._together = False
        self._meeting.close(wait=not isinstance(error, RankLost | KeyboardInterrupt))

    def gather(self) -> None:
        """Rank 0: have the others ready, started if need be; they stay to the end of the study."""
        if not self.alone and not self._together:
            self._meeting.summon({"join": self.accelerator})
            self._connect()

    def called(self) -> bool:
        """Other ranks: wait until rank 0 needs them; False if it ends without."""
        order = self._meeting.told()
        if "end" in order:
            self.status = order["end"]
            return False
        self._choose_device(order["join"])
        return True

    def join(self) -> None:
        """Other ranks: be ready for orders."""
        self._meeting.ready()
        self._connect()

    def _connect(self) -> None:
        backend = "gloo" if self.accelerator == "cpu" else "cpu:gloo,cuda:nccl"
        if self.place.address == LOOPBACK and sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else it asks what the machine's name stands for
        assert self._meeting.table is not None
        table = dist.PrefixStore("group", self._meeting.table)
        dist.init_process_group(backend, store=table, rank=self.rank, world_size=self.world, timeout=TIMEOUT)
        self._together = True

    # -- orders of rank 0 -------------------------------------------------------------------------------------------

    def send(self, facts: dict[str, Any], tensors: State) -> None:
        """Rank 0: a training for all, in JSON values and tensors."""
        data = torch.frombuffer(bytearray(safetensors.torch.save(tensors)), dtype=torch.uint8)
        self._meeting.tell({"train": facts, "bytes": len(data)})
        dist.broadcast(data, 0)

    def receive(self) -> tuple[dict[str, Any], State] | None:
        """Other ranks: the next training; None when there is none any more."""
        order = self._meeting.told()
        if "end" in order:
            self.status = order["end"]
            return None
        data = torch.empty(order["bytes"], dtype=torch.uint8)
        dist.broadcast(data, 0)
        return order["train"], safetensors.torch.load(data.numpy().tobytes())

    @contextmanager
    def explained(self) -> Iterator[None]:
        """What torch raises because another process has gone comes out as RankLost, which names the rank if it can."""
        if self.alone:
            yield
        else:
            with self._meeting.explained():
                yield

    def report(self, line: str) -> bool:
        """Other ranks: tell rank 0 why this one ends; False if it cannot be told."""
        return self._meeting.report(line)

    # -- together ---------------------------------------------------------------------------------------------------

    def added(self, values: Tensor) -> Tensor:
        """The sums of these numbers over all ranks, added in float64; the same bits everywhere."""
        if self.alone:
            return values
        sums = values.double().cpu()
        dist.all_reduce(sums)
        return sums.to(values)

    def most(self, *values: int) -> list[int]:
        """Of each of these whole numbers the largest that a rank has."""
        if self.alone:
            return list(values)
        largest = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.tolist()

    def same(self, what: str, digest: str) -> None:
        """Raise RanksDiffer, on every rank, unless all have the same digest."""
        if self.alone:
            return
        own = torch.frombuffer(bytearray.fromhex(digest), dtype=torch.uint8)
        found = [torch.empty_like(own) for _ in range(self.world)]
        dist.all_gather(found, own)
        odd = [rank for rank, other in enumerate(found) if not torch.equal(other, found[0])]
        if odd:
            raise RanksDiffer(f"rank {odd[0]} has another {what} than rank 0: another kind of processor, or a fault")

    def first_does(self, work: Callable[[], None]) -> None:
        """Rank 0 does something by itself. Where it fails, it raises what went wrong, and the others Abandoned."""
        error = None
        if self.first:
            try:
                work()
            except Exception as raised:
                error = raised
        (failed,) = self.most(error is not None)
        if error is not None:
            raise error
        if failed:
            raise Abandoned

    def agreement(self, stop: Callable[[], bool], due: Callable[[int], bool]) -> Callable[[int], bool]:
        """Whether to leave the loop after a step: for several ranks the same answer, on which they agree now and then.

        Rank 0 measures how often that should be: a message at every step would cost more than the steps of small nets.
        """
        if self.alone:
            return lambda step: stop() or due(step)
        following, last = 0, (0, monotonic())

        def agreed(step: int) -> bool:
            nonlocal following, last
            if step < following:
                return False
            steps, seconds = step - last[0], monotonic() - last[1]
            rhythm = min(max(round(AGREE_SECONDS * steps / seconds), 1), AGREE_STEPS) if self.first else 0
            leave, wait = self.most(stop() or due(step), rhythm)
            following, last = step + wait, (step, monotonic())
            return bool(leave)

        return agreed


class GradientSum:
    """Adds up the gradients of all ranks, in place, in one message a step.

    Not torch's DistributedDataParallel, which divides them into other messages at its first step than later: with three
    ranks or more that is another order of additions, and a resumed training would not have the same bits.
    """

    def __init__(self, ranks: Ranks, parameters: Iterable[nn.Parameter]) -> None:
        self.ranks, self.parameters = ranks, list(parameters)
        self.layout: list[int] | None = None
        self.message = torch.empty(0)

    def __call__(self) -> None:
        """After backward: every rank has the sum. Parameters that the network does not use have no gradient."""
        if not self.ranks.alone:
            self._add()

    @torch.no_grad()
    def _add(self) -> None:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        layout = [gradient.numel() for gradient in gradients]
        if self.layout is None:
            self.ranks.same("set of trained parameters", digest(layout))
            self.layout, self.message = layout, gradients[0].new_empty(sum(layout))
        elif layout != self.layout:
            raise LotteryError("the network uses other parameters at each step: only one process can train it")
        torch.cat([gradient.reshape(-1) for gradient in gradients], out=self.message)
        dist.all_reduce(self.message)
        parts = zip(self.message.split(layout), gradients, strict=True)
        torch._foreach_copy_(gradients, [part.view_as(gradient) for part, gradient in parts])
