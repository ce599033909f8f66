"""How the processes of a study meet, what rank 0 tells the others, and what is known of one that has failed.

Rank 0 keeps a table of small values which all of them read and write (torch's TCPStore). Orders lie there under their
number. Nothing is sent as pickle.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from time import monotonic, sleep
from typing import Any

import torch
import torch.distributed as dist

from lottery.errors import Interrupted, LotteryError
from lottery.training.place import Place
from lottery.training.processes import Children
from lottery.training.signals import StopFlag

TIMEOUT = timedelta(minutes=30)  # for one message: longer than any evaluation, or write to disk, between two
LATE_SECONDS = 120.0  # how much longer than rank 0 another rank may take to import
FAULT_SECONDS = 10.0  # for the death of a process to become known


class RankLost(LotteryError):
    """Another process of this study has gone."""


class Meeting:
    """The table, seen from one of the processes that sit at it."""

    def __init__(self, place: Place, config: str, stop: StopFlag) -> None:
        """`config` (YAML) is what processes are given that rank 0 starts."""
        self.place, self.config, self.stop = place, config, stop
        self.children = Children()
        self.table: dist.Store | None = None
        self._server: dist.TCPStore | None = None  # goes when nobody holds it
        self._orders = 0

    # -- coming together --------------------------------------------------------------------------------------------

    def open(self, patience: float) -> None:
        """Listen (rank 0), or find who does. Where rank 0 starts the others that is left until they are needed."""
        if not self.place.starts:
            if self.place.rank == 0 and not self.place.hosted:
                self._listen()
            else:
                self._find(patience)

    def _listen(self) -> None:
        try:
            self._server = dist.TCPStore("0.0.0.0", self.place.port, None, True, TIMEOUT, wait_for_workers=False)
        except RuntimeError as error:
            raise LotteryError(f"port {self.place.port} is in use here; set the variable MASTER_PORT") from error
        self.table = dist.PrefixStore(self.place.name, self._server)

    def _find(self, patience: float) -> None:
        until, address, port = monotonic() + patience, self.place.address, self.place.port
        while self._server is None:
            if self.stop:
                raise Interrupted(self.stop.signum or 0, "before the study began")
            try:
                self._server = dist.TCPStore(address, port, None, False, timedelta(seconds=min(patience, 10)))
            except RuntimeError as error:
                if monotonic() > until:
                    rank = self.place.rank
                    raise LotteryError(f"rank {rank}: rank 0 does not answer at {address}:{port}") from error
        self.table = dist.PrefixStore(self.place.name, self._server)

    def summon(self, order: dict[str, Any]) -> None:
        """Rank 0: have the others ready, started if need be. RankLost, naming the rank, where one is not."""
        world = self.place.world
        if self.place.starts:
            self._listen()
            assert self._server is not None
            self.children.start(world, self._server.port, self.config, torch.get_num_threads())
        self.tell(order)
        until = monotonic() + TIMEOUT.total_seconds()
        for rank in range(1, world):
            while not self.has(f"ready/{rank}"):
                if self.stop:
                    raise Interrupted(self.stop.signum or 0, "before the training began")
                if fault := self.fault():
                    raise RankLost(fault)
                if monotonic() > until:
                    raise RankLost(f"rank {rank} did not come within {TIMEOUT}")
                sleep(0.02)

    def ready(self) -> None:
        """Other ranks: to be trained with."""
        self.set(f"ready/{self.place.rank}")

    def end(self, status: int) -> None:
        """Rank 0 tells the others that it is over."""
        if self.table is not None and self.place.rank == 0:
            with suppress(RuntimeError):
                self.tell({"end": status})

    def close(self, wait: bool) -> None:
        """Part. Rank 0 may `wait` until the others know that it is over; then those that it started are ended."""
        if self.table is not None and self.place.rank > 0:
            with suppress(RuntimeError):
                self.set(f"bye/{self.place.rank}")
        elif self.table is not None and wait:
            self._wait_for_the_late()
        self.children.stop()
        self.table = self._server = None

    def _wait_for_the_late(self) -> None:
        """Until all have gone, or failed: some may still be on their way here, and would look for us for long."""
        until, left = monotonic() + LATE_SECONDS, set(range(1, self.place.world))
        while left and monotonic() < until and not self.children.ended():
            left = {rank for rank in left if not (self.has(f"bye/{rank}") or self.has(f"failed/{rank}"))}
            sleep(0.02)

    # -- the table --------------------------------------------------------------------------------------------------

    def tell(self, order: dict[str, Any]) -> None:
        """Rank 0: the next order."""
        self.set(f"order/{self._orders}", json.dumps(order))
        self._orders += 1

    def told(self) -> dict[str, Any]:
        """Other ranks: the next order, which is waited for; RankLost when rank 0 has gone."""
        key, pause = f"order/{self._orders}", 0.01
        while not self.has(key):
            sleep(pause)
            pause = min(0.5, pause * 1.2)
        assert self.table is not None
        self._orders += 1
        return json.loads(self.table.get(key))

    def has(self, key: str) -> bool:
        assert self.table is not None
        with self.explained():
            return self.table.check([key])

    def set(self, key: str, value: str = "1") -> None:
        assert self.table is not None
        self.table.set(key, value)

    # -- when something goes wrong ----------------------------------------------------------------------------------

    @contextmanager
    def explained(self) -> Iterator[None]:
        """What torch raises because another process has gone comes out as RankLost, which names the rank if it can."""
        try:
            yield
        except RuntimeError as error:
            if not is_message_lost(error):
                raise
            raise RankLost(self._whose_fault() if self.place.rank == 0 else "another rank has gone") from error

    def report(self, line: str) -> bool:
        """Other ranks: tell rank 0 why this one ends; False if it cannot be told."""
        try:
            self.set(f"failed/{self.place.rank}", line)
            return True
        except (RuntimeError, AssertionError):
            return False

    def fault(self) -> str | None:
        """What rank 0 knows of a rank that has failed."""
        for rank in range(1, self.place.world):
            if self.table is not None and self.table.check([f"failed/{rank}"]):
                return f"rank {rank}: {self.table.get(f'failed/{rank}').decode()}"
        return self.children.ended()

    def _whose_fault(self) -> str:
        until = monotonic() + FAULT_SECONDS
        while monotonic() < until:
            if fault := self.fault():
                return fault
            sleep(0.05)
        return "another process of this study has gone, or does not answer; the job's log may say why"


def is_message_lost(error: RuntimeError) -> bool:
    """Whether it is about a connection to another process."""
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL", "onnection"))
