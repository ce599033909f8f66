"""`python -m lottery submit` and `cancel`. Torch-free."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from time import monotonic, sleep

from lottery.arguments import Arguments, CommandParser
from lottery.errors import ConfigError, LotteryError
from lottery.launch import scheduler
from lottery.launch.record import SWEEPS, Sweep
from lottery.launch.studies import find_sweep
from lottery.run import stop_on_signals
from lottery.stages.lease import kernel

SUBMIT = """\
python -m lottery submit [--config-dir DIR] +exp=NAME [key=value ...] [seed=0,1,2 ...]

Submit a study, or a sweep of them, and return: the same as `python -m lottery -m hydra/launcher=slurm ...
hydra.launcher.wait=false`. The jobs come back after preemptions and time limits until their studies are done.

  hydra/launcher=slurm            a SLURM job for each study (the default); slurm_preempt: short, preemptible ones
  hydra/launcher=local            workers in the background on this machine, hydra.launcher.workers=N at a time
  hydra.launcher.KEY=VALUE        partition, account, timeout_min, cpus_per_task, gpus_per_node, mem_gb, setup, ...

conf/hydra/launcher/ explains every key. `python -m lottery status` shows the studies, `cancel` ends them."""

CANCEL = """\
End the jobs of a sweep that still wait or run. Those that run save their state first, and the same command continues
them later. What has ended is left alone, so that it does no harm to cancel twice."""

GONE_SECONDS = 120.0  # for workers to save their state; the imports of one that has just started take ten


def submit(args: list[str]) -> int:
    """The command. Raises ConfigError, before anything is written, and LotteryError where SLURM refuses."""
    asked = Arguments.parse(args)
    if asked.help or not args:
        print(SUBMIT)
        return 0
    if asked.config or asked.show or asked.version:
        raise ConfigError("submit: takes --config-dir and overrides, no other option; --help says more")
    from lottery.launch.settings import LAUNCHERS
    from lottery.sweep import CHOICES, launcher_of, sweep

    overrides, chosen = asked.overrides, launcher_of(asked.overrides, asked.config_dir)
    if chosen.endswith("BasicLauncher"):
        overrides = [*overrides, "hydra/launcher=slurm"]
    elif chosen not in LAUNCHERS:
        raise ConfigError(f"submit: this launcher does not return before its jobs end; there are {CHOICES}")
    with stop_on_signals() as stop:
        return sweep([*overrides, "hydra.launcher.wait=false"], asked.config_dir, stop)


def cancel(args: list[str]) -> int:
    """The command. Raises ConfigError for a sweep that is not there, LotteryError where it cannot be reached."""
    parser = CommandParser("cancel", CANCEL)
    parser.add_argument("sweep", metavar="SWEEP", help="its name, a folder of <runs>/.sweeps, or latest")
    parser.add_argument("--runs", metavar="DIR", default="runs", help="paths.runs of the studies (default: runs)")
    asked = parser.parse_args(args)
    runs = Path(asked.runs)
    sweep = Sweep.read(runs / SWEEPS / find_sweep(runs, asked.sweep).name)
    cancelled = cancel_slurm(sweep) if sweep.executor == "slurm" else cancel_local(sweep)
    print(f"sweep {sweep.name}: {cancelled or 'nothing to cancel, its jobs have ended'}")
    return 0


def cancel_slurm(sweep: Sweep) -> str:
    """What was cancelled; "" if nothing was left."""
    answer = scheduler.ask(job.job for job in sweep.jobs)
    if not answer.complete:
        problem = answer.problem or "no SLURM on this machine; run it where the sweep was submitted"
        raise LotteryError(f"cancel: {problem}")
    left = [job.job for number, job in enumerate(sweep.jobs) if number not in sweep.ended()]
    live = [id for id in left if id in answer.jobs and answer.jobs[id].live]
    if not live:
        return ""
    done = subprocess.run(["scancel", *live], capture_output=True, text=True)
    if done.returncode:
        raise LotteryError(f"cancel: scancel: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return f"cancelled {len(live)} of {len(sweep.jobs)} jobs: {', '.join(live)}"


def cancel_local(sweep: Sweep) -> str:
    """What was cancelled; "" if nothing was left."""
    if sweep.kernel != kernel():
        raise LotteryError(f"cancel: sweep {sweep.name} runs on {sweep.host}; cancel it there")
    told = sweep.processes()
    if not told:
        return ""
    for pid in told:
        os.kill(pid, signal.SIGTERM)
    deadline = monotonic() + GONE_SECONDS
    while left := sweep.processes():
        if monotonic() > deadline:
            raise LotteryError(f"cancel: told to stop, but still running: process {', '.join(map(str, left))}")
        sleep(0.1)
    open_ones = len(sweep.jobs) - len(sweep.ended())
    return f"cancelled {open_ones} of {len(sweep.jobs)} studies"
