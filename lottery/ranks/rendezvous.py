"""How the processes of a study find each other, exchange messages, and learn of one that failed.

Rank 0 keeps a table of small values that all processes read and write (torch's TCPStore). Its messages are in the table
under their number. Nothing is sent as pickle.
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
from lottery.lease import pauses
from lottery.ranks.children import Child, start
from lottery.ranks.place import Place
from lottery.signals import StopFlag

TIMEOUT = timedelta(minutes=30)  # for one message: longer than any evaluation, or write to disk, between two messages
LATE_SECONDS = 120.0  # how much longer than rank 0 another rank may take to import
FAULT_SECONDS = 10.0  # until the death of a process is known


class RankLost(LotteryError):
    """Error for another process of this study that has gone."""


class Rendezvous:
    """The table that a study's processes share, as seen by this one."""

    def __init__(self, place: Place, config: str, stop: StopFlag) -> None:
        """Store the place. `config` (YAML) is given to the processes that rank 0 starts."""
        self.place, self.config, self.stop = place, config, stop
        self.others = range(1, place.world)
        self.children: list[Child] = []  # started by this process, rank 0
        self.table: Any = None  # a dist.Store, once rank 0 listens
        self.port = place.port
        self._messages = 0

    # -- coming together --------------------------------------------------------------------------------------------

    def connect(self, patience: float) -> None:
        """Listen on rank 0, connect on the others. Where rank 0 starts the others, it listens when they are needed."""
        if not self.place.starts:
            if self.place.rank == 0 and not self.place.hosted:
                self._listen()
            else:
                self._find(patience)

    def _listen(self) -> None:
        try:
            server = dist.TCPStore("0.0.0.0", self.port, None, True, TIMEOUT, wait_for_workers=False)
        except RuntimeError as error:
            raise LotteryError(f"port {self.port} is in use here; set the variable MASTER_PORT") from error
        self.port, self.table = server.port, dist.PrefixStore(self.place.name, server)

    def _find(self, patience: float) -> None:
        until, place = monotonic() + patience, self.place
        while self.table is None:
            if self.stop:
                raise Interrupted(self.stop.signum or 0, "before the study began")
            try:
                seconds = timedelta(seconds=min(patience, 10))
                client = dist.TCPStore(place.address, place.port, None, False, seconds)
                self.table = dist.PrefixStore(place.name, client)
            except RuntimeError as error:
                if monotonic() > until:
                    where = f"{place.address}:{place.port}"
                    raise LotteryError(f"rank {place.rank}: rank 0 does not answer at {where}") from error

    def start_others(self, message: dict[str, Any]) -> None:
        """On rank 0: get the others ready, and start them if need be. RankLost, naming the rank, where one is not."""
        if self.place.starts:
            self._listen()
            self.children = start(self.place.world, self.port, self.config, torch.get_num_threads())
        self.post(message)
        until = monotonic() + TIMEOUT.total_seconds()
        for rank in self.others:
            while not self.has(f"ready/{rank}"):
                if self.stop:
                    raise Interrupted(self.stop.signum or 0, "before the training began")
                if fault := self._fault():
                    raise RankLost(fault)
                if monotonic() > until:
                    raise RankLost(f"rank {rank} did not come within {TIMEOUT}")
                sleep(0.02)

    def end(self, status: int) -> None:
        """On rank 0: send the others the exit status of the study that ended."""
        if self.table is not None and self.place.rank == 0:
            with suppress(RuntimeError):
                self.post({"end": status})

    def close(self, wait: bool) -> None:
        """Disconnect. Rank 0 may `wait` until the others know of the end; then it ends those that it started."""
        if self.table is not None and self.place.rank > 0:
            with suppress(RuntimeError):
                self.set(f"bye/{self.place.rank}")
        elif self.table is not None and wait:
            # Ranks that are still connecting would look for rank 0 for long.
            until, left = monotonic() + LATE_SECONDS, set(self.others)
            while left and monotonic() < until and not self._ended():
                left = {rank for rank in left if not (self.has(f"bye/{rank}") or self.has(f"failed/{rank}"))}
                sleep(0.02)
        for child in self.children:
            child.stop()
        self.children, self.table = [], None  # without a table the connection is closed

    # -- the table --------------------------------------------------------------------------------------------------

    def post(self, message: dict[str, Any]) -> None:
        """On rank 0: send the next message to all others."""
        self.set(f"message/{self._messages}", json.dumps(message))
        self._messages += 1

    def next_message(self) -> dict[str, Any]:
        """On other ranks: wait for the next message and return it. RankLost when rank 0 has gone."""
        key, pause = f"message/{self._messages}", pauses()
        while not self.has(key):
            sleep(next(pause))
        self._messages += 1
        return json.loads(self.table.get(key))

    def has(self, key: str) -> bool:
        with self.translate_errors():
            return self.table.check([key])

    def set(self, key: str, value: str = "1") -> None:
        self.table.set(key, value)

    # -- when something goes wrong ----------------------------------------------------------------------------------

    @contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Turn torch's errors about a lost connection into RankLost, which names the lost rank if it is known."""
        try:
            yield
        except RuntimeError as error:
            connection = any(word in str(error) for word in ("gloo", "NCCL", "onnection"))
            if not isinstance(error, dist.DistError) and not connection:
                raise
            raise RankLost(self._whose_fault() if self.place.rank == 0 else "another rank has gone") from error

    def report(self, line: str) -> bool:
        """On other ranks: send rank 0 the reason why this one ends; return False if that fails."""
        if self.table is not None:
            with suppress(RuntimeError):
                self.set(f"failed/{self.place.rank}", line)
                return True
        return False

    def _fault(self) -> str | None:
        """Return what rank 0 knows of a rank that has failed, or None."""
        for rank in self.others:
            if self.table is not None and self.table.check([f"failed/{rank}"]):
                return f"rank {rank}: {self.table.get(f'failed/{rank}').decode()}"
        return self._ended()

    def _ended(self) -> str | None:
        """Say how the first child that ended early did so, or None."""
        return next((end for child in self.children if (end := child.end())), None)

    def _whose_fault(self) -> str:
        until = monotonic() + FAULT_SECONDS
        while monotonic() < until:
            if fault := self._fault():
                return fault
            sleep(0.05)
        return "another process of this study has gone, or does not answer; the job's log may say why"
