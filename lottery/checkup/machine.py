"""Check this machine: libraries, processors, GPUs and W&B. The last two import torch and wandb, which is slow."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from lottery.checkup.findings import Finding, note, ok, problem, size
from lottery.config import Config

SHOWN = ("torch", "pytorch-lightning", "hydra-core", "submitit", "wandb")
CROWDED = 0.5  # a GPU is crowded where less than this share of its memory is free


def check_libraries() -> Iterator[Finding]:
    """Check that every library that lottery needs is installed and new enough. Nothing is imported."""
    versions = {}
    for requirement in required():
        name, install = requirement.name, f"pip install '{requirement}'"
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            yield problem("libraries", f"{name} is not installed", install)
            continue
        if not requirement.specifier.contains(versions[name], prereleases=True):
            yield problem("libraries", f"{name} {versions[name]}, needed is {requirement.specifier}", install)
    shown = ", ".join(f"{name} {versions[name]}" for name in SHOWN if name in versions)
    yield ok("libraries", f"Python {platform.python_version()}, {shown}")


def required() -> list[Requirement]:
    """Return the package's requirements, from pyproject.toml in a checkout, else from the installed metadata."""
    checkout = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if checkout.exists():
        wanted = tomllib.loads(checkout.read_text(encoding="utf-8"))["project"]["dependencies"]
    else:
        wanted = requires("lottery") or []
    found = [Requirement(text) for text in wanted]
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]


def check_processors(config: Config) -> Iterator[Finding]:
    """Check the CPUs against the threads that a study takes, without torch."""
    granted, asked = os.environ.get("SLURM_CPUS_PER_TASK"), config.trainer.threads
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    task = f"; SLURM grants {granted} to a task" if granted else ""
    yield ok("processors", f"{cpus} for this process, of {os.cpu_count()}{task}")
    if "SLURM_JOB_ID" in os.environ and not granted and not asked:
        text = "the job does not say how many CPUs a task has: torch takes all it sees"
        yield note("processors", text, "#SBATCH --cpus-per-task=N, or trainer.threads=N")
    if asked and asked > cpus:
        text = f"trainer.threads={asked}, but there are {cpus} CPUs for this process"
        yield note("processors", text, "more threads than CPUs are slower than as many")


def check_devices(config: Config) -> Iterator[Finding]:
    """Check the threads and GPUs that torch sees. Imports torch."""
    import torch

    threads = config.trainer.threads or int(os.environ.get("SLURM_CPUS_PER_TASK") or torch.get_num_threads())
    yield ok("threads", f"torch trains on the CPU with {threads}; resuming is bit-identical at the same number")
    wanted = config.trainer.accelerator
    if torch.cuda.is_available():
        yield from (gpu(index, config.train.precision) for index in range(torch.cuda.device_count()))
    elif wanted in ("gpu", "cuda"):
        text = f"trainer.accelerator={wanted}, but torch sees no GPU"
        yield problem("devices", text, "trainer.accelerator=auto takes what there is")
    elif shutil.which("nvidia-smi"):
        text = f"an NVIDIA driver is here, but torch {torch.__version__} sees no GPU"
        advice = "a build of torch for CUDA, a driver that is new enough, or a job that asks for a GPU (--gres=gpu:1)"
        yield note("devices", text, advice)
    else:
        mps = torch.backends.mps.is_available()
        yield ok("devices", "Apple's GPU (trainer.accelerator=mps)" if mps else "no GPU: studies train on the CPU")


def gpu(index: int, precision: str) -> Finding:
    """Check one GPU: its memory, the part that others use, and its support of bf16."""
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


def check_wandb(config: Config) -> Finding:
    """Report where a study's W&B run would go. Imports wandb, but contacts no server."""
    if config.tracker.name != "wandb":
        return ok("W&B", f"not used (tracker={config.tracker.name})")
    try:
        import wandb

        from lottery.tracking.wandb import logged_in, run_mode

        settings = wandb.setup().settings
        key, log = logged_in(settings), logging.getLogger("lottery")
        level = log.level
        log.setLevel(logging.ERROR)  # the finding itself says what a study would log as a warning
        try:
            mode = run_mode(config.tracker.mode, settings)
        finally:
            log.setLevel(level)
    except Exception as error:  # wandb may fail in any way; a study then runs without it
        return note("W&B", f"cannot be used: {error}", "tracker=none or csv do without it")
    login = "logged in" if key else "not logged in"
    if mode == "online":
        return ok("W&B", f"online, {login} at {settings.base_url} (not asked whether it answers)")
    if config.tracker.mode == "online":
        return note("W&B", f"tracker.mode=online, but {login}: runs are recorded offline", "`wandb login`")
    sync = "; `python -m lottery sync RUN` uploads later" if mode == "offline" else ""
    return ok("W&B", f"{mode}, {login}{sync}")
