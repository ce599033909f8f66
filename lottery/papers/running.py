"""Run a paper's missing studies, here or by a launcher; interrupted ones go on. Torch-free until a study begins."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lottery.errors import ConfigError, LotteryError
from lottery.papers.reading import load
from lottery.papers.studies import PlannedStudy, studies
from lottery.signals import StopFlag

LAUNCHERS = ("here", "local", "slurm")


def ensure(name: str | Path, scale: str, *, runs: str | Path = "runs", data: str | Path | None = None) -> list[Path]:
    """Run the missing studies of a paper's scale here, one after the other; return the run folders of all.

    Prints each study. Raises LotteryError where a study fails, Interrupted on a signal; another call continues.
    """
    from lottery.combine import labels
    from lottery.runner import run_composed
    from lottery.signals import stop_on_signals

    extra = [f"paths.runs={runs}", *([f"paths.data={data}"] if data is not None else [])]
    asked = studies(load(name), scale, extra)
    missing = [study for study in asked if not study.done]
    names = labels([study.overrides for study in missing]) if missing else []
    with stop_on_signals() as stop:
        for number, (label, study) in enumerate(zip(names, missing, strict=True), 1):
            print(f"[{number}/{len(missing)}] {label}".rstrip(), flush=True)
            run_composed(study.config, stop)
    return [study.folder for study in asked]


def run_missing(missing: Sequence[PlannedStudy], launcher: str | None, settings: Sequence[str], stop: StopFlag) -> int:
    """Run these studies; return the highest exit status, or 0 at once where the launcher does not wait.

    launcher: here (one after the other, in this process), local (several workers), slurm (a job each); None: local
    where several can run at once on this machine, or with settings, else here. `settings`: overrides of hydra.launcher.
    """
    from lottery.combine import labels
    from lottery.launch.launcher import job_of, launch
    from lottery.sweep import in_turn, planned

    launcher, settings = chosen(launcher, settings, missing)
    configs, jobs = [study.config for study in missing], [study.overrides for study in missing]
    names = labels(jobs)
    if launcher == "here":
        if settings:
            raise ConfigError(f"{settings[0]}: has no effect without a launcher: --launcher local or slurm")
        return in_turn(names, configs, stop)
    hydra = planned([*jobs[0], f"hydra/launcher={launcher}", *settings], None)[1]
    command = [f"hydra/launcher={launcher}", *settings]
    return launch(hydra, command, list(map(job_of, names, jobs, configs)), configs, None, stop)


def chosen(launcher: str | None, settings: Sequence[str], missing: Sequence[PlannedStudy]) -> tuple[str, Sequence[str]]:
    """Return the launcher and its settings; for None, those that suit this machine."""
    if launcher is not None:
        return launcher, settings
    workers = at_once(missing)
    if workers < 2 and not settings:
        return "here", ()
    return "local", settings or [f"hydra.launcher.workers={workers}"]


def workers_of(settings: Sequence[str]) -> int:
    """Return the number of workers of the local launcher with these settings."""
    from lottery.launch.settings import Local

    given = [override.partition("=")[2] for override in settings if override.startswith("hydra.launcher.workers=")]
    return int(given[-1]) if given and given[-1].isdigit() else Local.workers


def at_once(missing: Sequence[PlannedStudy]) -> int:
    """Return how many of these studies run side by side on this machine: as many as have a core for each thread.

    The number is 1 on a machine with a GPU, and where a study does not set its threads, since it uses all cores.
    """
    from lottery.launch.local import gpu_count

    threads = [study.config.trainer.threads for study in missing]
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    if len(missing) < 2 or None in threads or gpu_count():
        return 1
    return max(1, min(len(missing), cores // max(threads)))


def check_done(given: Sequence[PlannedStudy]) -> None:
    """Raise LotteryError unless all of these studies are done."""
    left = [study for study in given if not study.done]
    if left:
        raise LotteryError(f"{len(left)} of {len(given)} studies are not done; the same command continues")
