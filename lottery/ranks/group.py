"""Several processes that train one network: each has the whole network and a part of every batch.

Rank 0 runs the study; the others join in whenever it trains.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from time import monotonic, sleep
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lottery.config import Trainer, digest
from lottery.errors import ConfigError, LotteryError
from lottery.ranks.alone import Abandoned, Alone, Loss, Network, RanksDiffer, Sizes
from lottery.ranks.batch_norm import GlobalNorms
from lottery.ranks.broadcast import Broadcast
from lottery.ranks.place import LOOPBACK, Place
from lottery.ranks.rendezvous import TIMEOUT, RankLost, Rendezvous
from lottery.signals import StopFlag

# For Gloo's threads to release the last tensors, which takes Python's lock. Before torch 2.8 the process group is
# destroyed with that lock held, and waits for these threads: for ever, if one of them waits for the lock.
THREADS_SECONDS = 0.1

AGREE_SECONDS, AGREE_STEPS = 0.25, 32  # how often the ranks agree on whether to go on: whichever comes first


class Ranks(Alone):
    """The processes of one study, seen from this one. The context manager connects to the others, and disconnects."""

    def __init__(
        self,
        place: Place,
        trainer: Trainer,
        config: str = "",
        stop: StopFlag | None = None,
        patience: float = TIMEOUT.total_seconds(),
    ) -> None:
        """Prepare the connection. `config` (YAML) is the study, for the processes that rank 0 starts.

        `patience`: seconds to look for rank 0. Raises ConfigError where the GPUs asked for are not there.
        """
        super().__init__(trainer, place)
        self.status = 0  # rank 0's exit status, as sent to the others
        self._patience = patience
        self._rendezvous = Rendezvous(place, config, StopFlag() if stop is None else stop)
        self._together = False
        if self.first:
            self._choose_device("cpu" if self.accelerator == "auto" and not torch.cuda.is_available() else "cuda")

    def _choose_device(self, accelerator: str) -> None:
        """Choose this rank's CPU or GPU. ConfigError where there is none for it."""
        self.accelerator = "cpu" if self.accelerator == "cpu" else accelerator
        if self.accelerator == "cpu":
            return
        count, local = torch.cuda.device_count(), self.place.local
        needed = self.world if self.place.starts else local + 1
        if count < needed and (count != 1 or self.place.starts):  # a process that sees one GPU uses that one
            raise ConfigError(f"trainer.devices: {needed} GPUs are needed on this machine, {count} are there")
        self.index = min(local, count - 1)

    # -- meeting and parting ----------------------------------------------------------------------------------------

    def __enter__(self) -> Ranks:
        self._rendezvous.connect(self._patience)
        return self

    def __exit__(self, *raised: Any) -> None:
        error = raised[1]
        self._rendezvous.end(0 if error is None else getattr(error, "exit_status", 1))
        if self._together:
            sleep(THREADS_SECONDS)
            dist.destroy_process_group()  # this wakes ranks that wait for a message of this one
            self._together = False
        self._rendezvous.close(wait=not isinstance(error, RankLost | KeyboardInterrupt))

    def start_others(self) -> None:
        if not self._together:
            self._rendezvous.start_others({"join": self.accelerator})
            self._connect()

    def wait_for_start(self) -> bool:
        """On other ranks: wait until rank 0 needs them; return False if it ends without."""
        message = self._next_message()
        if message is not None:
            self._choose_device(message["join"])
        return message is not None

    def join(self) -> None:
        """On other ranks: connect, ready for trainings."""
        self._rendezvous.set(f"ready/{self.rank}")
        self._connect()

    def _connect(self) -> None:
        backend = "gloo" if self.accelerator == "cpu" else "cpu:gloo,cuda:nccl"
        if self.place.address == LOOPBACK and sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else Gloo resolves the machine's name
        table = dist.PrefixStore("group", self._rendezvous.table)
        dist.init_process_group(backend, store=table, rank=self.rank, world_size=self.world, timeout=TIMEOUT)
        self._together = True

    def broadcast(self, training: Broadcast) -> None:
        facts, tensors = training.written()
        data = torch.frombuffer(bytearray(safetensors.torch.save(tensors)), dtype=torch.uint8)
        self._rendezvous.post({"train": facts, "bytes": len(data)})
        dist.broadcast(data, 0)

    def receive(self) -> Broadcast | None:
        """On other ranks: return the next training that rank 0 sends; None when there are no more."""
        message = self._next_message()
        if message is None:
            return None
        data = torch.empty(message["bytes"], dtype=torch.uint8)
        dist.broadcast(data, 0)
        return Broadcast.read(message["train"], safetensors.torch.load(data.numpy().tobytes()))

    def _next_message(self) -> dict[str, Any] | None:
        message = self._rendezvous.next_message()
        if "end" not in message:
            return message
        self.status = message["end"]
        return None

    def translate_errors(self) -> AbstractContextManager[None]:
        return self._rendezvous.translate_errors()

    def report(self, line: str) -> bool:
        """On other ranks: send rank 0 the reason why this one ends; return False if that fails."""
        return self._rendezvous.report(line)

    # -- together ---------------------------------------------------------------------------------------------------

    def sum(self, values: Tensor) -> Tensor:
        """Return the sums over all ranks, added in float64; the same bits everywhere."""
        sums = values.double().cpu()
        dist.all_reduce(sums)
        return sums.to(values)

    def maximum(self, *values: int) -> list[int]:
        largest = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.tolist()

    def check_same(self, what: str, digest: Callable[[], str]) -> None:
        own = torch.frombuffer(bytearray.fromhex(digest()), dtype=torch.uint8)
        found = [torch.empty_like(own) for _ in range(self.world)]
        dist.all_gather(found, own)
        odd = [rank for rank, other in enumerate(found) if not torch.equal(other, found[0])]
        if odd:
            raise RanksDiffer(f"rank {odd[0]} has another {what} than rank 0: another kind of processor, or a fault")

    def resumable(self, tallies: dict[str, Any]) -> dict[str, Any]:
        return {}  # a checkpoint has rank 0's sums only, so all batches are measured again

    def on_first(self, work: Callable[[], None]) -> None:
        error = None
        if self.first:
            try:
                work()
            except Exception as raised:
                error = raised
        (failed,) = self.maximum(error is not None)
        if error is not None:
            raise error
        if failed:
            raise Abandoned

    def mean_loss(self, loss: Loss, network: Network, images: Tensor, labels: Tensor, sizes: Sizes) -> Tensor:
        own, total = sizes()
        with GlobalNorms(own, total):
            logits = network(images)
        return loss(logits, labels, reduction="sum") * (bool(own) / total)

    def agreement(self, stop: Callable[[], bool], due: Callable[[int], bool]) -> Callable[[int], bool]:
        """Agree every few steps, at intervals that rank 0 sets: a message costs more than a step of a small network."""
        following, last = 0, (0, monotonic())

        def agreed(step: int) -> bool:
            nonlocal following, last
            if step < following:
                return False
            steps, seconds = step - last[0], monotonic() - last[1]
            rhythm = min(max(round(AGREE_SECONDS * steps / seconds), 1), AGREE_STEPS) if self.first else 0
            leave, wait = self.maximum(stop() or due(step), rhythm)
            following, last = step + wait, (step, monotonic())
            return bool(leave)

        return agreed

    def gradient_sum(self, parameters: Iterable[nn.Parameter]) -> Callable[[], None]:
        """Add up in one message a step. Parameters that the network does not use have no gradient.

        Not torch's DistributedDataParallel, which divides the messages of the first step differently: with three ranks
        or more that is another order of additions, and a resumed training would not have the same bits.
        """
        trained, layout, message = list(parameters), None, torch.empty(0)

        @torch.no_grad()
        def add() -> None:
            nonlocal layout, message
            gradients = [p.grad for p in trained if p.grad is not None]
            sizes = [gradient.numel() for gradient in gradients]
            if layout is None:
                self.check_same("set of trained parameters", lambda: digest(sizes))
                layout, message = sizes, gradients[0].new_empty(sum(sizes))
            elif layout != sizes:
                raise LotteryError("the network uses other parameters at each step: only one process can train it")
            torch.cat([gradient.reshape(-1) for gradient in gradients], out=message)
            dist.all_reduce(message)
            parts = zip(message.split(sizes), gradients, strict=True)
            torch._foreach_copy_(gradients, [part.view_as(gradient) for part, gradient in parts])

        return add
