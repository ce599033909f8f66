"""End a SLURM job that is restarted again and again without progress. Torch-free.

A run is counted in `<paths.runs>/.jobs/` when it begins, since a killed run cannot count itself. Progress (a step or
measured batch in a checkpoint, a finished stage, a row) resets the count. Waiting for others does not count.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lottery.errors import Interrupted, LotteryError
from lottery.files import Unreadable, read_json, write_json

JOBS = ".jobs"
RUNS = 3  # consecutive runs of a job that may leave nothing


class Standstill(LotteryError):
    """Error for a job that was started too often without making progress."""


class Attempts:
    """Counter of this SLURM job's runs without progress on one study. Outside of SLURM nothing is counted."""

    def __init__(self, runs: Path | None = None, key: str = "") -> None:
        """Read the job's number. Without `runs` (the study's paths.runs) and `key` (study key) nothing is counted."""
        self.job = os.environ.get("SLURM_JOB_ID", "") if os.environ.get("SLURM_PROCID", "0") == "0" else ""
        self.key = key
        self.path = runs / JOBS / f"{self.job}-{key}.json" if self.job and runs else None
        self.count = 0  # runs without progress, this one included; 0 once it has made progress
        self._written = 0
        self._new = runs is not None and not runs.exists()

    @contextmanager
    def counted(self, last: str) -> Iterator[None]:
        """Count this run while it lasts. The count stays if a signal ends the run, and is dropped if it ends by itself.

        `last` says how the previous run ended. Raises Standstill after RUNS runs that left nothing.
        """
        if self.path is None:
            yield
            return
        self._written = self._read()
        again = int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0  # SLURM reuses job numbers
        self.count = 1 + (self._written if again else 0)
        if self.count > RUNS:
            self.left()
            raise Standstill(
                f"job {self.job} ran {RUNS} times without a new step, row or stage ({last or 'it was killed'}); "
                "what helps is a longer time limit (hydra.launcher.timeout_min or sbatch --time), a lower "
                "train.checkpoint_minutes, or less to measure (train.eval_every, train.eval_batch_size, probes)"
            )
        self.works()
        try:
            yield
        except Interrupted:
            raise
        except BaseException:
            self.left()
            raise
        self.left()

    def left(self) -> None:
        """Record progress of this run (a step, a row, a stage, or the study's end): set the count to zero."""
        self.count = 0
        self._write(0)

    def waits(self) -> None:
        """Record that this run waits for another process, so that it does not count."""
        self._write(max(0, self.count - 1))

    def works(self) -> None:
        """Record that this process computes from now on, so that the run counts."""
        self._write(self.count)

    def _read(self) -> int:
        with suppress(Unreadable, ValueError, TypeError, KeyError):
            return int(read_json(self.path)["runs"]) if self.path else 0
        return 0

    def _write(self, count: int) -> None:
        """Write the count, or remove the file at zero. A full or missing disk is ignored."""
        if self.path is None or count == self._written:
            return
        self._written = count
        with suppress(OSError, LotteryError):
            if count:
                write_json(self.path, {"runs": count})
                return
            for path in self.path.parent.glob(f"*-{self.key}.json"):  # those of cancelled jobs too
                path.unlink(missing_ok=True)
            self.path.parent.rmdir()  # fails while other studies are counted
            if self._new:
                self.path.parent.parent.rmdir()
