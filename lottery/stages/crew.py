"""The worker processes of a study, as its main process sees them, and the stores of both.

The workers run the same program over the same store, and record nothing (`lottery.workers`). The main process waits for
the stages that they compute, and records the rounds in their order. It computes a stage itself once no worker is left.
Messages from a worker are JSON in a pipe.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from time import sleep
from typing import Any, Protocol

from lottery.errors import Interrupted
from lottery.lease import pauses
from lottery.signals import StopFlag
from lottery.stages.store import Stage, Store

LOG = logging.getLogger("lottery")

READ_SECONDS = 0.2  # how long the reader of messages may take to notice the end


class Listener(Protocol):
    """What shows the workers' progress."""

    def working(self, worker: int, at: dict[str, Any]) -> None:
        """Show what a worker computes. at: round, control, copy; in a training also step, steps, loss, accuracy."""

    def worked(self, worker: int, training: bool) -> None:
        """Note that a worker has finished a stage. training: whether it is a training."""


class Crew:
    """Worker processes of one study."""

    def __init__(self, count: int, work: Callable[..., None], *args: Any, fork: bool) -> None:
        """Start `count` processes that wait, and then call `work(connection, number, *args)`.

        fork: start them as copies of this process, which is fast, but safe only while it has no other threads
        """
        context: Any = multiprocessing.get_context("fork" if fork else "spawn")
        self._ends: list[Connection] = []
        self._processes: dict[int, Any] = {}  # that have not ended, by number
        for number in range(1, count + 1):
            here, there = context.Pipe()
            process = context.Process(target=work, args=(there, number, *args), name=f"worker {number}")
            process.start()
            there.close()
            self._ends.append(here)
            self._processes[number] = process
        self.listener: Listener | None = None
        # Called in the main thread with round, control and copy of a training, and new points of its curve.
        self.on_points: Callable[[dict[str, Any], list[list[Any]]], object] = lambda place, curve: None
        self._points: deque[tuple[dict[str, Any], list[list[Any]]]] = deque()
        self.stop = StopFlag()
        self._began: set[str] = set()  # keys of the stages that they computed, or were computing
        self._told: set[str] = set()  # warnings of theirs that were logged
        self._failed = False
        self._lock = threading.Lock()  # messages are read by two threads
        self._reader = threading.Thread(target=self._read, daemon=True, name="lottery-workers")

    def __len__(self) -> int:
        return len(self._processes)

    def store(self, *args: Any) -> RecordingStore:
        """Open the study's store, as `Store` does, for the main process."""
        store = RecordingStore(*args)
        store.crew = self
        return store

    @contextmanager
    def at_work(self, listener: Listener, stop: StopFlag) -> Iterator[None]:
        """Let the workers begin; end them at the end of the block."""
        self.listener, self.stop = listener, stop
        for end in self._ends:
            with suppress(OSError):  # a worker may have been killed already
                end.send_bytes(b"begin")
        self._reader.start()
        try:
            yield
        finally:
            self.close()

    def close(self) -> None:
        """End the workers, which save their trainings first, and wait for them."""
        for process in self._processes.values():
            if process.is_alive():
                process.terminate()
        try:
            for process in self._processes.values():
                process.join()
        except KeyboardInterrupt:  # a second Ctrl-C
            for process in self._processes.values():
                process.kill()
            raise
        finally:
            self._drain()
            for number in list(self._processes):
                self._ended(number)
            if self._reader.is_alive():
                self._reader.join()
            for end in self._ends:
                end.close()

    @property
    def left(self) -> bool:
        """Whether a worker is left. Once one has failed, all are ended: this process then meets the error in turn."""
        if self._failed:
            self.close()
        for number in [number for number, process in self._processes.items() if process.exitcode is not None]:
            process = self._ended(number)
            if process.exitcode == -signal.SIGKILL:
                LOG.warning(
                    "%s was killed (out of memory?); its training continues from the last checkpoint", process.name
                )
            elif process.exitcode:
                LOG.warning("%s ended with status %s; the study continues without it", process.name, process.exitcode)
        return bool(self._processes)

    def _ended(self, number: int) -> Any:
        """Forget a worker that has ended, and return its process. What it did is no longer shown."""
        if self.listener is not None:
            self.listener.worked(number, training=False)
        return self._processes.pop(number)

    def wait(self, stage: Stage) -> None:
        """Wait until the stage is finished, or no worker is left. Raises Interrupted on a stop signal."""
        pause = pauses()
        while not stage.done and self.left:
            if self.stop:
                raise Interrupted(self.stop.signum or 0, "while its workers trained")
            self._tell_points()
            sleep(next(pause))
        self._drain()
        self._tell_points()  # before the stage's round is recorded

    def _tell_points(self) -> None:
        while self._points:
            self.on_points(*self._points.popleft())

    def computed(self, stage: Stage) -> bool:
        """Whether a worker computed this stage, rather than found it."""
        self._drain()
        return stage.key in self._began

    # -- messages -----------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Read messages while a worker is left, so that none of them has to wait."""
        while self._processes:
            wait(self._ends, READ_SECONDS)
            self._drain()
            sleep(0.02)  # an end that was closed counts as ready

    def _drain(self) -> None:
        with self._lock:
            for number, end in enumerate(self._ends, 1):
                try:
                    while end.poll():
                        self._take(number, json.loads(end.recv_bytes()))
                except (EOFError, OSError):  # the worker has ended
                    continue

    def _take(self, worker: int, message: dict[str, Any]) -> None:
        match message:
            case {"began": key}:
                self._began.add(key)
            case {"at": at} if self.listener:
                self.listener.working(worker, at)
            case {"finished": kind} if self.listener:
                self.listener.worked(worker, kind == "train")
            case {"points": place, "curve": curve}:
                self._points.append((place, curve))
            case {"log": [level, text]} if text not in self._told:
                self._told |= {text} if level >= logging.WARNING else set()
                LOG.log(level, "%s", text)
            case {"failed": _}:
                self._failed = True


class RecordingStore(Store):
    """The store of a study that has workers: it leaves trainings, searches and scores to them."""

    crew: Crew

    def finished(self, stage: Stage, compute: Callable[[Stage], object], facts: dict[str, str]) -> bool:
        if stage.kind != "evaluate":  # the figures of probes are this process's work
            self.crew.wait(stage)
        return super().finished(stage, compute, facts) and not self.crew.computed(stage)


class WorkerStore(Store):
    """The store of a worker: it reports what it computes, and has other work where it would wait.

    send:  sends a message to the main process
    spare: does some other work of the study; returns whether there was any
    """

    send: Callable[[dict[str, Any]], None]
    spare: Callable[[], bool]

    def finished(self, stage: Stage, compute: Callable[[Stage], object], facts: dict[str, str]) -> bool:
        def reported(stage: Stage) -> None:
            self.send({"began": stage.key})
            compute(stage)
            self.send({"finished": stage.kind})

        return super().finished(stage, reported, facts)

    def meanwhile(self) -> bool:
        return self.spare()
