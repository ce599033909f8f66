"""Which of a study's processes this one is, and where they meet: from torchrun's variables, or SLURM's. Torch-free."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count

from lottery.config import Trainer
from lottery.errors import ConfigError

LOOPBACK = "127.0.0.1"
PORTS = range(20_000, 32_000)  # below those that systems hand out by themselves
STUDIES = count()


@dataclass(frozen=True)
class Place:
    """This process among the `world` that train one network together."""

    rank: int = 0
    world: int = 1
    local: int = 0  # its number on its machine, and so its GPU
    address: str = LOOPBACK  # where rank 0 listens
    port: int = 0  # 0: a free one, which rank 0 tells those that it starts
    starts: bool = False  # whether rank 0 starts the others, all on this machine
    hosted: bool = False  # whether torchrun listens there, for rank 0
    name: str = ""  # of the study, where torchrun lets several meet at one place

    @property
    def here(self) -> int:
        """How many processes share what this one was granted of its machine."""
        return self.world if self.starts else 1

    @classmethod
    def found(cls, trainer: Trainer, env: Mapping[str, str] = os.environ) -> Place:
        """From the environment, for one more study of this process: no two of them meet at the same place.

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
            check(world, int(env["WORLD_SIZE"]), trainer, "WORLD_SIZE says {} processes")
            hosted = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
            address, port = env.get("MASTER_ADDR", LOOPBACK), int(env.get("MASTER_PORT", "29500"))
            name = f"{env.get('TORCHELASTIC_RESTART_COUNT', '')}/{study}" if hosted else ""
            return cls(int(env["RANK"]), world, int(env.get("LOCAL_RANK", "0")), address, port, False, hosted, name)
        tasks = int(env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS") or 1)
        if tasks > 1:
            check(world, tasks, trainer, "SLURM started {} tasks")
        if tasks > 1 and "SLURM_STEP_NUM_TASKS" in env:  # else this is a batch script, which is one process itself
            rank, local = int(env["SLURM_PROCID"]), int(env.get("SLURM_LOCALID", "0"))
            return cls(rank, world, local, slurm_address(env), slurm_port(env, study))
        if trainer.nodes > 1:
            expected = "1, or one process for each device: `srun --ntasks-per-node=… python -m lottery …`, or torchrun"
            raise ConfigError.of("trainer.nodes", trainer.nodes, expected)
        return cls(0, world, 0, starts=True)


def check(world: int, got: int, trainer: Trainer, who: str) -> None:
    """Raise ConfigError where another number of processes was started than the study is configured for."""
    if got != world:
        raise ConfigError(
            f"{who.format(got)}, but trainer.devices={trainer.devices} and trainer.nodes={trainer.nodes} need {world}: "
            f"set tasks_per_node={trainer.devices} (--ntasks-per-node) and nodes={trainer.nodes}"
        )


def slurm_address(env: Mapping[str, str]) -> str:
    """The first node of the job step, where rank 0 is; MASTER_ADDR wins. ConfigError where it has no address."""
    if given := env.get("MASTER_ADDR"):
        return given
    if env.get("SLURM_STEP_NUM_NODES", "1") == "1":
        return LOOPBACK
    nodes = env.get("SLURM_STEP_NODELIST") or env["SLURM_JOB_NODELIST"]
    first = nodes.partition(",")[0]
    if "[" in first:  # such as node[01-04]
        shown = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, timeout=60)
        first = shown.stdout.partition("\n")[0].strip()
    try:
        socket.getaddrinfo(first, None)
    except OSError as error:
        raise ConfigError(
            f"the job's first node, {first or nodes!r}, has no address here: set the variable MASTER_ADDR"
        ) from error
    return first


def slurm_port(env: Mapping[str, str], study: int) -> int:
    """A port that is another one for every job, array task, restart and study; MASTER_PORT wins."""
    if given := env.get("MASTER_PORT"):
        return int(given)
    names = ("SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    text = "/".join([*(env.get(name, "") for name in names), str(study)])
    return PORTS[int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % len(PORTS)]
