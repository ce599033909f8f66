"""What the tests on a real SLURM share: the cluster in hand, and a study on it that is slow until told to be quick."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from command_line_tools import QUICK, ROOT, call, command

from lottery.launch import scheduler
from lottery.ticket import Mask

TEST_CLUSTER = ROOT / "slurm" / "test_cluster"
PATIENCE = 240.0  # seconds, for a machine with many other things to do

# Five trainings of 100 steps, each 20 s long while it is slow, with a checkpoint every 2 s.
STUDY = (
    *QUICK, "name=faults", "method.rounds=2", "controls.random=1", "train.steps=100it", "train.eval_every=25it",
    "train.checkpoint_steps=10", "optim=momentum", "optim.lr=0.05", "rewind=weights", "rewind.to=30it",
    "model._target_=slow_network.mlp", "trainer.workers=1",
)  # fmt: skip
TRAININGS = 5
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")

LEFT_OVER = ("checkpoint.safetensors", ".lease*", "*.tmp")  # by work that has not ended as it should

T = TypeVar("T")


def wait_until(happened: Callable[[], T], what: str, patience: float = PATIENCE) -> T:
    """The first true value of `happened`; AssertionError, saying what was waited for, when patience is at its end."""
    deadline = time.monotonic() + patience
    while not (found := happened()):
        assert time.monotonic() < deadline, f"waited {patience:.0f} s in vain: {what}"
        time.sleep(0.2)
    return found


@dataclass(frozen=True)
class Slurm:
    """A running test cluster: nodes node1 and node2 with 8 CPUs each, partitions main (the default), low and high."""

    conf: Path

    def environment(self, **changes: str) -> dict[str, str]:
        """For processes: this cluster, this Python and checkout, the tests' modules, one thread."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        paths = [str(ROOT), str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        programs = [str(TEST_CLUSTER / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
        return {
            **inherited,
            "SLURM_CONF": str(self.conf),
            "SLURM_HOME": str(self.conf.parent),
            "PATH": os.pathsep.join(programs),
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
            **changes,
        }

    def run(self, *words: str, cwd: Path | None = None, **env: str) -> str:
        """What a command prints on stdout. AssertionError with its stderr if it fails, Silent if SLURM does not answer.

        What may be said twice to SLURM is said again where its connection broke, which it does on a machine under load.
        """
        if words[0] in ("scontrol", "squeue", "sinfo", "scancel"):
            return scheduler.output_of(*words, deadline=time.monotonic() + 60, env=self.environment(**env))
        done = subprocess.run(
            words, cwd=cwd, env=self.environment(**env), capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, f"{' '.join(words)}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def lottery(self, *args: str, cwd: Path, **env: str) -> str:
        """`python -m lottery`, on the submitting machine; what it prints."""
        return self.run(*command(args), cwd=cwd, **env)

    def sbatch(self, *args: str, cwd: Path, **env: str) -> str:
        """Submit; the job's id."""
        return self.run("sbatch", "--parsable", *args, cwd=cwd, **env).strip()

    def scontrol(self, *args: str) -> str:
        return self.run("scontrol", *args)

    def job(self, job: str) -> dict[str, str]:
        """All that SLURM knows of a job or of one array task (`25_0`): the fields of `scontrol show job`."""
        first = self.scontrol("show", "job", "--oneliner", job).splitlines()[0]
        return dict(word.partition("=")[::2] for word in first.split() if "=" in word)

    def job_state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, ..."""
        return self.job(job)["JobState"]

    def restarts(self, job: str) -> int:
        """How often SLURM has queued a job again."""
        return int(self.job(job)["Restarts"])

    def wait_for_state(self, job: str, *states: str) -> str:
        """Wait until a job is in one of these states, and say in which. AssertionError if it ends in another."""
        self.wait_for(job, lambda: self.job_state(job) in states, " or ".join(states))
        return self.job_state(job)

    def wait_for(self, job: str, happened: Callable[[], T], what: str) -> T:
        """Wait until something happens with a job. AssertionError if the job ends before that."""

        def look() -> T:
            ended = self.job_state(job) in OVER
            found = happened()
            assert found or not ended, f"waited for {what}, but job {job} is {self.job_state(job)}: {self.log(job)}"
            return found

        return wait_until(look, f"job {job}: {what}")

    def log(self, job: str) -> str:
        """What a job has printed."""
        path = Path(self.job(job)["StdOut"])
        return path.read_text() if path.exists() else f"{path} is not there"

    def set_down(self, node: str) -> None:
        """As an administrator does with a node that is broken. Its jobs are queued again at once."""
        self.scontrol("update", f"NodeName={node}", "State=DOWN", "Reason=test")

    def set_up(self, node: str) -> None:
        self.scontrol("update", f"NodeName={node}", "State=RESUME")

    def announce_time_limit(self, job: str, before: int = 300) -> None:
        """Move a job's time limit so near that its --signal, due `before` seconds earlier, comes within 30 s."""
        days, _, clock = self.job(job)["RunTime"].rpartition("-")
        hours, minutes, seconds = map(int, clock.split(":"))
        ran = int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds
        self.scontrol("update", f"JobId={job}", f"TimeLimit={(ran + before) // 60}")

    def preempt(self, node: str, cpus: int, cwd: Path) -> None:
        """A short job of higher priority, for which others have to leave a node."""
        options = ("--partition=high", f"--nodelist={node}", f"--cpus-per-task={cpus}", "--output=/dev/null")
        self.sbatch(*options, "--wrap", "sleep 1", cwd=cwd)

    def signals_before_preemption(self, wanted: bool) -> None:
        """Set the cluster up so that preemption announces itself by the signal of --signal, or by SIGTERM alone."""
        self.run(str(TEST_CLUSTER / "up"), "--no-install", SLURM_USER_SIGNAL=str(int(wanted)))


class SlowStudy:
    """A study in a folder of its own, whose training steps are slow until `hurry`, so that faults meet it at work."""

    def __init__(self, slurm: Slurm, folder: Path, *overrides: str, seconds: float = 0.2) -> None:
        """`seconds`: how long a slow training step takes."""
        self.slurm = slurm
        self.folder = folder
        self.runs = folder / "runs"
        self.overrides = (*STUDY, *overrides, f"paths.runs={self.runs}")
        self._slow = folder / "slow"
        self._seen: dict[Path, int] = {}
        self._finished = b""
        folder.mkdir()
        self._slow.write_text(str(seconds))

    @property
    def env(self) -> dict[str, str]:
        """For the processes that run it."""
        return {"SLOW": str(self._slow)}

    def hurry(self) -> None:
        """From the next step on."""
        self._slow.unlink(missing_ok=True)

    def at_work(self) -> bool:
        """Whether a checkpoint has been written since this was last asked: a training is under way, now."""
        now = {}
        for path in self.runs.rglob("checkpoint.safetensors"):
            with suppress(FileNotFoundError):  # just removed, as its training is done
                now[path] = path.stat().st_mtime_ns
        written = any(self._seen.get(path) != when for path, when in now.items())
        self._seen |= now
        return written

    def struck(self, job: str, fault: Callable[[], object]) -> None:
        """Let a fault strike the job at work, and wait until SLURM has started it again."""
        self.slurm.wait_for(job, self.at_work, "a training at work")
        before = self.slurm.restarts(job)
        self._check_rows()
        fault()
        self.slurm.wait_for(job, lambda: self.slurm.restarts(job) > before, "being queued again")
        self.slurm.wait_for_state(job, "RUNNING")
        self.at_work()  # the checkpoints from before do not count
        self._check_rows()

    def end(self, job: str) -> dict[str, Any]:
        """Let the job come to its end in peace; what it found."""
        self.hurry()
        self.slurm.wait_for_state(job, "COMPLETED")
        self._check_rows()
        return record(self.runs)

    def _check_rows(self) -> None:
        """The rows that were on record are so still, unchanged."""
        rows = b"".join(path.read_bytes() for path in sorted(self.runs.glob("faults/*/rounds.jsonl")))
        assert rows.startswith(self._finished), "a finished round was lost"
        self._finished = rows


def record(runs: Path) -> dict[str, Any]:
    """What the studies in these runs found, but for how long it took; and what they left behind but should not."""
    store = runs / ".store"
    return {
        "studies": {folder.name: table(folder) for folder in (runs / "faults").iterdir()},
        "states": {str(path.relative_to(store)): path.read_bytes() for path in store.glob("train/*/*.safetensors")},
        "trainings": len(list(store.glob("train/*/DONE"))),
        "left over": [str(path) for name in LEFT_OVER for path in runs.rglob(name)],
    }


def table(folder: Path) -> dict[str, Any]:
    """What a run folder says."""
    rows = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return {
        "rows": [{key: value for key, value in row.items() if key not in ("seconds", "cached")} for row in rows],
        "masks": {path.name: Mask.load(path).digest for path in (folder / "masks").iterdir()},
        "curves": (folder / "curves.csv").read_text(),
    }


def undisturbed(runs: Path, *overrides: str) -> dict[str, Any]:
    """What the study finds here, in this process, when nothing happens to it."""
    sys.path.insert(0, str(Path(__file__).parent))
    done = call(*STUDY, *overrides, f"paths.runs={runs}")
    assert done.status == 0, done.err
    found = record(runs)
    assert found["trainings"] == TRAININGS
    assert found["left over"] == []
    return found
