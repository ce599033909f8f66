"""The commands `python -m lottery submit` and `cancel`. Torch-free."""

from __future__ import annotations

from pathlib import Path
from time import monotonic, sleep

from lottery.arguments import Arguments, CommandParser
from lottery.errors import ConfigError, LotteryError
from lottery.launch import scheduler
from lottery.launch.record import Sweep, find_sweep
from lottery.lease import kernel
from lottery.signals import stop_on_signals

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

GONE_SECONDS = 120.0  # time for workers to save their state; the imports of a new worker take ten


def submit(args: list[str]) -> int:
    """Run `submit ARGS`. Raises ConfigError before anything is written, and LotteryError where SLURM refuses."""
    asked = Arguments.parse(args)
    if asked.help or not args:
        print(SUBMIT)
        return 0
    if asked.config or asked.show or asked.info or asked.version:
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
    """Run `cancel ARGS`. Raises ConfigError for an unknown sweep, LotteryError where the sweep cannot be reached."""
    parser = CommandParser("cancel", CANCEL)
    parser.add_argument("sweep", metavar="SWEEP", help="its name, a folder of <runs>/.sweeps, or latest")
    parser.add_argument("--runs", metavar="DIR", default="runs", help="paths.runs of the studies (default: runs)")
    asked = parser.parse_args(args)
    sweep = find_sweep(Path(asked.runs), asked.sweep)
    cancelled = cancel_slurm(sweep) if sweep.executor == "slurm" else cancel_local(sweep)
    print(f"sweep {sweep.name}: {cancelled or 'nothing to cancel, its jobs have ended'}")
    return 0


def cancel_slurm(sweep: Sweep) -> str:
    """Cancel the live SLURM jobs of a sweep, and say which; "" where none was left. LotteryError if SLURM is silent."""
    try:
        sweep.adopt()
        answer = scheduler.ask(job.job for job in sweep.jobs)
        if not answer.complete:
            raise scheduler.Silent(answer.problem or "no SLURM on this machine; run it where the sweep was submitted")
        ended, running = sweep.ended(), {id for id, job in answer.jobs.items() if job.live}
        live = [job.job for number, job in enumerate(sweep.jobs) if number not in ended and job.job in running]
        if live:
            scheduler.cancel(live)
    except scheduler.Silent as error:
        raise LotteryError(f"cancel: {error}") from error
    return f"cancelled {len(live)} of {len(sweep.jobs)} jobs: {', '.join(live)}" if live else ""


def cancel_local(sweep: Sweep) -> str:
    """End the workers of a sweep, and say how many studies that cancelled; "" if none ran. LotteryError on failure."""
    if sweep.kernel != kernel():
        raise LotteryError(f"cancel: sweep {sweep.name} runs on {sweep.host}; cancel it there")
    if not sweep.processes():
        return ""
    sweep.terminate()
    deadline = monotonic() + GONE_SECONDS
    while left := sweep.processes():
        if monotonic() > deadline:
            raise LotteryError(f"cancel: told to stop, but still running: process {', '.join(map(str, left))}")
        sleep(0.1)
    open_ones = len(sweep.jobs) - len(sweep.ended())
    return f"cancelled {open_ones} of {len(sweep.jobs)} studies"
