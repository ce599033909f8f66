"""This machine: libraries, processors, GPUs, and what W&B would do. The last two are slow: they import."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from lottery.checkup.findings import Finding, note, ok, problem, size
from lottery.config import Config

SHOWN = ("torch", "pytorch-lightning", "hydra-core", "submitit", "wandb")
CROWDED = 0.5  # of a GPU's memory in use by others


def check_libraries() -> list[Finding]:
    """Every library that lottery needs, and whether it is new enough. Nothing is imported."""
    found, versions = [], {}
    for requirement in required():
        name = requirement.name
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            found.append(problem("libraries", f"{name} is not installed", f"pip install '{requirement}'"))
            continue
        if not requirement.specifier.contains(versions[name], prereleases=True):
            text = f"{name} {versions[name]}, needed is {requirement.specifier}"
            found.append(problem("libraries", text, f"pip install '{requirement}'"))
    shown = ", ".join(f"{name} {versions[name]}" for name in SHOWN if name in versions)
    return [*found, ok("libraries", f"Python {platform.python_version()}, {shown}")]


def required() -> list[Requirement]:
    """What the package asks for: as installed, or in a checkout as its pyproject.toml says."""
    checkout = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if checkout.exists():
        wanted = tomllib.loads(checkout.read_text())["project"]["dependencies"]
    else:
        wanted = requires("lottery") or []
    found = [Requirement(text) for text in wanted]
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]


def check_processors(config: Config) -> list[Finding]:
    """CPUs and the threads that a study takes, without torch."""
    granted, asked = os.environ.get("SLURM_CPUS_PER_TASK"), config.trainer.threads
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    text = f"{cpus} for this process, of {os.cpu_count()}"
    found = [ok("processors", text + (f"; SLURM grants {granted} to a task" if granted else ""))]
    if "SLURM_JOB_ID" in os.environ and not granted and not asked:
        advice = "#SBATCH --cpus-per-task=N, or trainer.threads=N"
        found.append(
            note("processors", "the job does not say how many CPUs a task has: torch takes all it sees", advice)
        )
    if asked and asked > cpus:
        text = f"trainer.threads={asked}, but there are {cpus} CPUs for this process"
        found.append(note("processors", text, "more threads than CPUs are slower than as many"))
    return found


def check_devices(config: Config) -> list[Finding]:
    """What torch sees. Imports torch."""
    import torch

    threads = config.trainer.threads or int(os.environ.get("SLURM_CPUS_PER_TASK") or torch.get_num_threads())
    found = [ok("threads", f"torch trains on the CPU with {threads}; resuming is bit-identical at the same number")]
    wanted = config.trainer.accelerator
    if not torch.cuda.is_available():
        if wanted in ("gpu", "cuda"):
            advice = "trainer.accelerator=auto takes what there is"
            found.append(problem("devices", f"trainer.accelerator={wanted}, but torch sees no GPU", advice))
        elif shutil.which("nvidia-smi"):
            text = f"an NVIDIA driver is here, but torch {torch.__version__} sees no GPU"
            advice = (
                "a build of torch for CUDA, a driver that is new enough, or a job that asks for a GPU (--gres=gpu:1)"
            )
            found.append(note("devices", text, advice))
        else:
            mps = torch.backends.mps.is_available()
            found.append(
                ok("devices", "Apple's GPU (trainer.accelerator=mps)" if mps else "no GPU: studies train on the CPU")
            )
        return found
    return found + [gpu(index, config.train.precision) for index in range(torch.cuda.device_count())]


def gpu(index: int, precision: str) -> Finding:
    """One GPU: its memory, how much of it others use, and bf16."""
    import torch

    with torch.cuda.device(index):
        free, total = torch.cuda.mem_get_info()
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        name = torch.cuda.get_device_name()
    text = f"GPU {index}: {name}, {size(total)}, {size(free)} free, {'bf16' if bf16 else 'no bf16'}"
    if precision == "bf16" and not bf16:
        return problem("devices", text, "train.precision=32: this GPU computes bf16 only by emulation")
    if free < CROWDED * total:
        return note("devices", text, "others use it: `nvidia-smi` shows whom")
    return ok("devices", text)


def check_wandb(config: Config) -> list[Finding]:
    """Where a study's W&B run would go. Imports wandb; asks no server."""
    if config.tracker.name != "wandb":
        return [ok("W&B", f"not used (tracker={config.tracker.name})")]
    try:
        import wandb

        from lottery.tracking.wandb import logged_in, run_mode

        settings = wandb.setup().settings
        key, log = logged_in(settings), logging.getLogger("lottery")
        level = log.level
        log.setLevel(logging.ERROR)  # what a study would be warned of is said here
        try:
            mode = run_mode(config.tracker.mode, settings)
        finally:
            log.setLevel(level)
    except Exception as error:  # it may fail in any way, and a study goes on without it
        return [note("W&B", f"cannot be used: {error}", "tracker=none, csv or trackio do without it")]
    login = "logged in" if key else "not logged in"
    if mode == "online":
        return [ok("W&B", f"online, {login} at {settings.base_url} (not asked whether it answers)")]
    text = f"{mode}, {login}"
    if config.tracker.mode == "online":
        return [note("W&B", f"tracker.mode=online, but {login}: runs are recorded offline", "`wandb login`")]
    sync = "; `python -m lottery sync RUN` uploads later" if mode == "offline" else ""
    return [ok("W&B", text + sync)]
