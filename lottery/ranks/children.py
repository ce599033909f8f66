"""The other ranks of a study on this machine: rank 0 starts, watches and ends them. They print nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from lottery.ranks.place import LOOPBACK

LEFT = 75  # exit status of a rank that left because another one had gone


@dataclass
class Child:
    """One of these processes. Its stderr is kept for the case that it fails."""

    rank: int
    process: subprocess.Popen[bytes]
    errors: IO[bytes]

    def end(self) -> str | None:
        """Say how the process ended; None while it runs, or if it left because another rank had gone."""
        status = self.process.poll()
        if status in (None, LEFT):
            return None
        if status < 0:
            return f"rank {self.rank} was ended by {signal.Signals(-status).name}"
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines() or [f"exit status {status}"]
        return f"rank {self.rank} ended: {lines[-1].removeprefix('lottery: ')}"

    def stop(self) -> None:
        """Kill the process: rank 0 has everything worth keeping."""
        self.process.kill()
        self.process.wait()
        self.errors.close()


def start(world: int, port: int, config: str, threads: int) -> list[Child]:
    """Start ranks 1 … world-1. They read the study `config` (YAML) from stdin: a command line is too short."""
    dropped = ("SLURM_CPUS_PER_TASK", "TORCHELASTIC_USE_AGENT_STORE")
    env = {name: value for name, value in os.environ.items() if name not in dropped}
    env |= {"WORLD_SIZE": str(world), "MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(port)}
    env["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)  # where `_target_`s are found
    env["OMP_NUM_THREADS"] = str(threads)
    children = []
    for rank in range(1, world):
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `stop`
        process = subprocess.Popen(
            [sys.executable, "-m", "lottery.ranks.follow"],
            env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        children.append(Child(rank, process, errors))
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin as file:
            file.write(config.encode())
    return children
