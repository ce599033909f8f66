"""What the tests of several processes share: functions run on a number of ranks, each a process of its own."""

from __future__ import annotations

import multiprocessing
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from lottery.config import Trainer
from lottery.errors import LotteryError, cause
from lottery.ranks.group import Ranks
from lottery.ranks.place import LOOPBACK, Place
from lottery.signals import StopFlag

PATIENCE = 120  # seconds, for a machine with many other things to do

Work = Callable[[Ranks, StopFlag], Any]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind((LOOPBACK, 0))
        return listening.getsockname()[1]


def on_ranks(world: int, work: Work) -> list[Any]:
    """What `work(ranks, stop)` returns on each rank; what it raises is returned as text. (Forks: importing is slow.)"""
    fork, port, found = multiprocessing.get_context("fork"), free_port(), []
    for rank in range(world):
        here, there = fork.Pipe(duplex=False)
        process = fork.Process(target=_rank, args=(Place(rank, world, rank, LOOPBACK, port), work, there))
        process.start()
        there.close()
        found.append((process, here))
    try:
        return [here.recv() if here.poll(PATIENCE) else "no answer" for _, here in found]
    finally:
        for process, _ in found:
            process.kill()
            process.join()


def _rank(place: Place, work: Work, answer: Connection) -> None:
    stop = StopFlag()
    stop.install()
    try:
        with Ranks(place, Trainer(accelerator="cpu", devices=place.world), stop=stop) as ranks:
            result = work(ranks, stop)
    except LotteryError as error:
        result = f"{type(error).__name__}: {cause(error)}"
    except Exception:
        result = traceback.format_exc()
    answer.send(result)


def met(work: Work) -> Work:
    """`work` on ranks that have met."""

    def together(ranks: Ranks, stop: StopFlag) -> Any:
        if ranks.first:
            ranks.start_others()
        else:
            assert ranks.wait_for_start()
            ranks.join()
        return work(ranks, stop)

    return together
