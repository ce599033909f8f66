"""Launch a sweep: check it, create its folder, start its jobs, wait for them and report outcomes. Torch-free."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from subprocess import Popen
from time import monotonic, sleep

from omegaconf import DictConfig

from lottery.config import study_key
from lottery.errors import ConfigError, Interrupted, LotteryError
from lottery.launch import local, slurm
from lottery.launch.record import Sweep, SweepStudy, new_folder
from lottery.launch.settings import settings_for
from lottery.launch.snapshot import described, snapshot
from lottery.printing import count_text, say
from lottery.signals import StopFlag

POLL_SECONDS = 0.5
ASK_SECONDS = 10.0  # between queries of SLURM


def launch(
    hydra: DictConfig,
    overrides: Sequence[str],
    jobs: Sequence[SweepStudy],
    configs: Sequence[DictConfig],
    config_dir: str | None,
    stop: StopFlag,
) -> int:
    """Run the studies of a sweep by one of lottery's launchers. hydra: Hydra's own configuration, with its settings.

    Returns the highest exit status, or 0 at once with `wait=false`. Raises ConfigError before anything is written,
    and LotteryError where the jobs cannot be started.
    """
    settings = [settings_for(cfg, hydra.launcher) for cfg in configs]
    runs, *others = sorted({str(cfg.paths.runs) for cfg in configs})
    if others:
        raise ConfigError.of("paths.runs", ",".join([runs, *others]), "one folder for all studies of a launched sweep")
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
        process = None
        if sweep.executor == "local":
            process = local.start(sweep, settings)
        else:
            slurm.start(sweep, settings)
    except LotteryError:
        if not any(job.job for job in jobs):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    by = f"as SLURM job {id_text(sweep)}" if process is None else f"here, by process {jobs[0].job}"
    print(f"sweep {sweep.name}: {count_text(len(jobs), 'study', 'studies')} submitted {by}")
    print(f"  {command_for('status', sweep, runs)}\n  {command_for('cancel', sweep, runs)}", flush=True)
    if not settings[0].wait:
        return 0
    return wait_local(sweep, process, stop) if process is not None else wait_slurm(sweep, runs, stop)


def job_of(label: str, overrides: Sequence[str], cfg: DictConfig) -> SweepStudy:
    """Return the entry of a study in sweep.json, before it has a job."""
    return SweepStudy(label, list(overrides), f"{cfg.name}/{study_key(cfg)}")


def command_for(word: str, sweep: Sweep, runs: str) -> str:
    """Return the command line that shows or cancels a sweep."""
    return f"python -m lottery {word} {sweep.name}" + ("" if runs == "runs" else f" --runs {runs}")


def id_text(sweep: Sweep) -> str:
    """Return the job ids of a sweep as text; an array as `25_[0-63]`."""
    arrays: dict[str, list[str]] = {}
    for job in sweep.jobs:
        array, _, task = job.job.partition("_")
        arrays.setdefault(array, []).append(task)
    return ", ".join(f"{id}_[0-{len(tasks) - 1}]" if len(tasks) > 1 else id for id, tasks in arrays.items())


# -- waiting ----------------------------------------------------------------------------------------------------------


class Report:
    """The outcomes of a sweep's studies; each is printed once."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.statuses: dict[int, int] = {}

    def news(self) -> bool:
        """Print the outcomes of studies that have ended since the last call. Returns True when all have ended."""
        for number in sorted(self.sweep.ended() - set(self.statuses)):
            outcome, job = self.sweep.outcome(number), self.sweep.jobs[number]
            if outcome is None:  # the job was restarted, which removes the outcome
                continue
            self.statuses[number] = outcome.status
            if outcome.status:
                what = f"{job.label}: " if job.label else ""
                say(f"lottery: {what}{outcome.cause}; see {job.log}", error=True)
            else:
                say(f"[{len(self.statuses)}/{len(self.sweep.jobs)}] {job.label or 'the study'} is done")
        return len(self.statuses) == len(self.sweep.jobs)

    @property
    def sum(self) -> str:
        return f"{list(self.statuses.values()).count(0)} of {len(self.sweep.jobs)} studies done"


def wait_slurm(sweep: Sweep, runs: str, stop: StopFlag) -> int:
    """Wait until every job has ended, and return the highest exit status. A signal ends the wait, not the jobs."""
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
    """Wait until the workers have ended, and return the highest exit status.

    On a signal, ends the workers, which save their state, and raises Interrupted, as it does where another process
    cancelled the sweep. Raises LotteryError where the workers have gone and studies are left.
    """
    report, told = Report(sweep), False
    while process.poll() is None or sweep.processes():  # workers may outlive a killed process
        if stop and not told:
            sweep.terminate()
            told = True
        report.news()
        sleep(POLL_SECONDS)
    if report.news():
        print(report.sum)
        return max(report.statuses.values())
    if stop or process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM):
        raise Interrupted(stop.signum or signal.SIGTERM, f"with {report.sum}")
    raise LotteryError(f"{report.sum}, and no worker is left for the others; see {sweep.folder / 'launcher.log'}")
