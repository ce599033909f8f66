"""Launch a sweep: check, make its folder, start its jobs, and stay to tell how they end. Torch-free."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from subprocess import Popen
from time import monotonic, sleep

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lottery.config import study_key
from lottery.errors import ConfigError, Interrupted, LotteryError, cause
from lottery.launch import local, slurm
from lottery.launch.record import Job, Sweep, new_folder
from lottery.launch.settings import Local, Settings, Slurm, settings_for
from lottery.launch.snapshot import described, snapshot
from lottery.training.signals import StopFlag

POLL_SECONDS = 0.5
ASK_SECONDS = 10.0  # between questions to SLURM


def launch(
    hydra: DictConfig,
    overrides: Sequence[str],
    jobs: Sequence[Job],
    configs: Sequence[DictConfig],
    config_dir: str | None,
    stop: StopFlag,
) -> int:
    """Run the studies of a sweep by one of our launchers, of which Hydra's configuration `hydra` has the settings.

    Returns the highest exit status, or 0 at once where the launcher is not to wait. Raises ConfigError before anything
    is written, and LotteryError where the jobs cannot be started.
    """
    settings = checked_settings(hydra, configs)
    [runs] = same_runs(configs)
    command = ["python", "-m", "lottery", "-m", *(["--config-dir", config_dir] if config_dir else []), *overrides]
    now = datetime.now().astimezone()
    folder = new_folder(Path(runs), f"{now:%Y-%m-%d_%H-%M-%S}")
    try:
        sweep = Sweep(
            folder, settings[0].executor, command, list(jobs), config_dir and str(Path(config_dir).absolute()),
            described(), asdict(settings[0]), now.isoformat(timespec="seconds"),
        )  # fmt: skip
        if settings[0].snapshot:
            sweep.config_dir = snapshot(folder, config_dir)
        process = start(sweep, settings)
    except LotteryError:
        if not any(job.job for job in jobs):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    print(announcement(sweep, runs), flush=True)
    if not settings[0].wait:
        return 0
    return wait_local(sweep, process, stop) if process is not None else wait_slurm(sweep, runs, stop)


def checked_settings(hydra: DictConfig, configs: Sequence[DictConfig]) -> list[Settings]:
    """The launcher's settings for each study. Raises ConfigError."""
    try:
        settings = [settings_for(cfg, hydra.launcher) for cfg in configs]
    except OmegaConfBaseException as error:
        raise ConfigError(f"hydra.launcher: {cause(error).partition(': ')[2]}") from error
    for one, cfg in zip(settings, configs, strict=True):
        one.check(cfg)
    return settings


def same_runs(configs: Sequence[DictConfig]) -> set[str]:
    """The studies' one paths.runs. Raises ConfigError where it is swept."""
    found = {str(cfg.paths.runs) for cfg in configs}
    if len(found) > 1:
        raise ConfigError.of("paths.runs", ",".join(sorted(found)), "one folder for all studies of a launched sweep")
    return found


def job_of(label: str, overrides: Sequence[str], cfg: DictConfig) -> Job:
    """A study of a sweep, as sweep.json has it."""
    return Job(label, list(overrides), f"{cfg.name}/{study_key(cfg)}")


def start(sweep: Sweep, settings: Sequence[Settings]) -> Popen[bytes] | None:
    """Start the jobs; the process of the local launcher, if it is that."""
    if isinstance(settings[0], Local):
        return local.start(sweep, [one for one in settings if isinstance(one, Local)])
    slurm.start(sweep, [one for one in settings if isinstance(one, Slurm)])
    return None


def announcement(sweep: Sweep, runs: str) -> str:
    """What was started, and how to look at it."""
    count = f"{len(sweep.jobs)} {'study' if len(sweep.jobs) == 1 else 'studies'}"
    by = f"as SLURM job {id_text(sweep)}" if sweep.executor == "slurm" else f"here, by process {sweep.jobs[0].job}"
    commands = [f"  {command_for(word, sweep, runs)}" for word in ("status", "cancel")]
    return "\n".join([f"sweep {sweep.name}: {count} submitted {by}", *commands])


def command_for(word: str, sweep: Sweep, runs: str) -> str:
    """The command line that shows or cancels a sweep."""
    return f"python -m lottery {word} {sweep.name}" + ("" if runs == "runs" else f" --runs {runs}")


def id_text(sweep: Sweep) -> str:
    """The ids of a sweep's jobs, those of an array together: `25_[0-63]`."""
    arrays: dict[str, list[str]] = {}
    for job in sweep.jobs:
        array, _, task = job.job.partition("_")
        arrays.setdefault(array, []).append(task)
    return ", ".join(f"{id}_[0-{len(tasks) - 1}]" if len(tasks) > 1 else id for id, tasks in arrays.items())


# -- waiting ----------------------------------------------------------------------------------------------------------


class Report:
    """Tells once of each study that has ended."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.statuses: dict[int, int] = {}

    def news(self) -> bool:
        """Tell of those that have ended since; whether all have."""
        for number in sorted(self.sweep.ended() - set(self.statuses)):
            outcome, job = self.sweep.outcome(number), self.sweep.jobs[number]
            if outcome is None:  # a job that was started again takes its word back
                continue
            self.statuses[number] = outcome.status
            if outcome.status:
                what = f"{job.label}: " if job.label else ""
                print(f"lottery: {what}{outcome.cause}; see {job.log}", file=sys.stderr, flush=True)
            else:
                print(f"[{len(self.statuses)}/{len(self.sweep.jobs)}] {job.label or 'the study'} is done", flush=True)
        return len(self.statuses) == len(self.sweep.jobs)

    @property
    def sum(self) -> str:
        done = sum(status == 0 for status in self.statuses.values())
        return f"{done} of {len(self.sweep.jobs)} studies done"


def wait_slurm(sweep: Sweep, runs: str, stop: StopFlag) -> int:
    """Stay until every job has ended; a signal ends the staying, not the jobs."""
    report, watch, asked = Report(sweep), slurm.Watch(sweep), monotonic()
    while not report.news():
        if stop:
            error = LotteryError(
                f"interrupted by {signal.Signals(stop.signum or 0).name}; {report.sum}, the other jobs go on: "
                f"`{command_for('status', sweep, runs)}` shows them, `{command_for('cancel', sweep, runs)}` ends them"
            )
            error.exit_status = 128 + (stop.signum or 0)
            raise error
        if monotonic() - asked > ASK_SECONDS:
            watch.look()
            asked = monotonic()
        sleep(POLL_SECONDS)
    print(report.sum)
    return max(report.statuses.values())


def wait_local(sweep: Sweep, process: Popen[bytes], stop: StopFlag) -> int:
    """Stay until the workers have ended; a signal is passed on to them, and they save their state.

    Raises Interrupted, also where somebody else has cancelled the sweep; LotteryError where workers do not start.
    """
    report, told = Report(sweep), False
    while process.poll() is None:
        if stop and not told:
            process.terminate()
            told = True
        report.news()
        sleep(POLL_SECONDS)
    if report.news():
        print(report.sum)
        return max(report.statuses.values())
    if stop or process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM):
        raise Interrupted(stop.signum or signal.SIGTERM, f"with {report.sum}")
    raise LotteryError(f"{report.sum}, and no worker is left for the others; see {sweep.folder / 'launcher.log'}")
