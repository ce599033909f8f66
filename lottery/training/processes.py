"""The other ranks of a study on this machine, started by rank 0: silent, watched, and ended with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from lottery.training.place import LOOPBACK

LEFT = 75  # exit status of a rank that left because another one had gone


@dataclass
class Child:
    """One of them; what it says on stderr is kept, for the case that it fails."""

    rank: int
    process: subprocess.Popen[bytes]
    errors: IO[bytes]

    def end(self) -> str | None:
        """How it ended, in words; None while it runs, or where it is not the first to have ended."""
        status = self.process.poll()
        if status in (None, LEFT):
            return None
        if status < 0:
            return f"rank {self.rank} was ended by {signal.Signals(-status).name}"
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines() or [f"exit status {status}"]
        return f"rank {self.rank} ended: {lines[-1].removeprefix('lottery: ')}"


class Children:
    """Ranks 1 … world-1."""

    def __init__(self) -> None:
        self.all: list[Child] = []

    def start(self, world: int, port: int, config: str, threads: int) -> None:
        """Start them on the study `config` (YAML), which they read from stdin: no command line could say as much."""
        for rank in range(1, world):
            env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
            env |= {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(port), "OMP_NUM_THREADS": str(threads)}
            env["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)  # where `_target_`s are found
            for name in ("SLURM_CPUS_PER_TASK", "TORCHELASTIC_USE_AGENT_STORE"):
                env.pop(name, None)
            errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `stop`
            process = subprocess.Popen(
                [sys.executable, "-m", "lottery.follow"], env=env,
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors,
            )  # fmt: skip
            self.all.append(Child(rank, process, errors))
            assert process.stdin is not None
            with suppress(BrokenPipeError), process.stdin as file:
                file.write(config.encode())

    def ended(self) -> str | None:
        """Of one that has ended before its time: how."""
        return next((end for child in self.all if (end := child.end())), None)

    def stop(self) -> None:
        """End them: what is worth keeping is with rank 0."""
        for child in self.all:
            child.process.kill()
            child.process.wait()
            child.errors.close()
        self.all = []
