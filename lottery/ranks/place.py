"""The rank and address of this process, from the variables of torchrun or SLURM. No torch."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count

from lottery.config import Trainer
from lottery.errors import ConfigError

LOOPBACK = "127.0.0.1"
PORTS = range(20_000, 32_000)  # below the ephemeral ports of systems
STUDIES = count()


@dataclass(frozen=True)
class Place:
    """This process among the `world` that train one network together. The defaults are those of a single process."""

    rank: int = 0
    world: int = 1
    local: int = 0  # number on its machine, and so of its GPU
    address: str = LOOPBACK  # where rank 0 listens
    port: int = 0  # 0: a free one, which rank 0 gives to the processes that it starts
    starts: bool = False  # whether rank 0 starts the others, all on this machine
    hosted: bool = False  # whether torchrun listens there, for rank 0
    name: str = ""  # prefix of the study's keys, where torchrun has one store for several studies

    @property
    def here(self) -> int:
        """The number of processes that share what this one was granted of its machine."""
        return self.world if self.starts else 1

    @classmethod
    def found(cls, trainer: Trainer, env: Mapping[str, str] = os.environ) -> Place:
        """Read the place from the environment, for one more study of this process. Studies share no port and no name.

        Raises ConfigError where not exactly trainer.devices × trainer.nodes processes were started.
        """
        world = trainer.devices * trainer.nodes
        if world == 1:
            return cls()
        study = next(STUDIES)
        if trainer.accelerator == "mps":
            expected = "auto, cpu or gpu with more than one process"
            raise ConfigError.of("trainer.accelerator", trainer.accelerator, expected)
        if "RANK" in env and "WORLD_SIZE" in env:
            check(world, number(env, "WORLD_SIZE"), trainer, "WORLD_SIZE says {} processes")
            hosted = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
            address, port = env.get("MASTER_ADDR", LOOPBACK), number(env, "MASTER_PORT", default=29500)
            name = f"{env.get('TORCHELASTIC_RESTART_COUNT', '')}/{study}" if hosted else ""
            rank, local = number(env, "RANK"), number(env, "LOCAL_RANK")
            return cls(rank, world, local, address, port, False, hosted, name)
        tasks = number(env, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", default=1)
        started = "SLURM_STEP_NUM_TASKS" in env  # else this is a batch script, which is one process itself
        if tasks > 1 and started:
            check(world, tasks, trainer, "SLURM started {} tasks")
            rank, local = number(env, "SLURM_PROCID"), number(env, "SLURM_LOCALID")
            return cls(rank, world, local, slurm_address(env), slurm_port(env, study))
        if tasks > 1 and world != tasks:
            raise ConfigError(
                f"SLURM_NTASKS={tasks} in the environment speaks of {tasks} tasks, but trainer.devices="
                f"{trainer.devices} and trainer.nodes={trainer.nodes} need {world}, and this process is none that srun "
                f"started: `unset SLURM_NTASKS` to start them from here, or srun --ntasks-per-node={trainer.devices}"
            )
        if trainer.nodes > 1:
            expected = "1, or one process for each device: `srun --ntasks-per-node=… python -m lottery …`, or torchrun"
            raise ConfigError.of("trainer.nodes", trainer.nodes, expected)
        return cls(0, world, 0, starts=True)


def number(env: Mapping[str, str], *names: str, default: int = 0) -> int:
    """Return the value of the first of these variables that is set. ConfigError where it is no whole number."""
    name = next((name for name in names if env.get(name)), None)
    if name is None:
        return default
    if not re.fullmatch(r"\d{1,9}", env[name]):
        raise ConfigError(f"{name}={env[name]} in the environment: expected a whole number, or `unset {name}`")
    return int(env[name])


def check(world: int, got: int, trainer: Trainer, who: str) -> None:
    """Raise ConfigError where the number of processes is not the configured one."""
    if got != world:
        raise ConfigError(
            f"{who.format(got)}, but trainer.devices={trainer.devices} and trainer.nodes={trainer.nodes} need {world}: "
            f"set tasks_per_node={trainer.devices} (--ntasks-per-node) and nodes={trainer.nodes}"
        )


def slurm_address(env: Mapping[str, str]) -> str:
    """Return MASTER_ADDR, or the job step's first node, where rank 0 is. ConfigError where it has no address."""
    if given := env.get("MASTER_ADDR"):
        return given
    if env.get("SLURM_STEP_NUM_NODES", "1") == "1":
        return LOOPBACK
    nodes = env.get("SLURM_STEP_NODELIST") or env["SLURM_JOB_NODELIST"]
    first = nodes.partition(",")[0]
    if "[" in first:  # such as node[01-04]
        command = ["scontrol", "show", "hostnames", nodes]
        shown = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=60)
        first = shown.stdout.partition("\n")[0].strip()
    try:
        socket.getaddrinfo(first, None)
    except OSError as error:
        raise ConfigError(
            f"the job's first node, {first or nodes!r}, has no address here: set the variable MASTER_ADDR"
        ) from error
    return first


def slurm_port(env: Mapping[str, str], study: int) -> int:
    """Return MASTER_PORT, or a port that differs between jobs, array tasks, restarts and studies."""
    if given := number(env, "MASTER_PORT"):
        return given
    names = ("SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    text = "/".join([*(env.get(name, "") for name in names), str(study)])
    return PORTS[int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % len(PORTS)]
