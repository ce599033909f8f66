"""Run one study: count the attempt, and do slow imports only when the configuration is known to be valid."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lottery.errors import ConfigError, Interrupted
from lottery.imports import uncollected
from lottery.record.status import Status
from lottery.signals import StopFlag
from lottery.stages.attempts import Attempts, Standstill

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from lottery.ranks.alone import Alone


def run(cfg: DictConfig, stop: StopFlag) -> int:
    """Run one study; return 0 when it is done.

    Raises ConfigError before anything is written, LotteryError or Interrupted later, with finished rounds kept. Raises
    Standstill where this run's SLURM job makes no progress.
    """
    from lottery.config import study_key  # needs Hydra, which commands like status do without

    runs, key = Path(cfg.paths.runs), study_key(cfg)
    folder, attempts = runs / cfg.name / key, Attempts(runs, key)
    recorded = Status.read(folder)
    try:
        with attempts.counted((recorded and recorded.cause) or ""):
            return run_study(cfg, stop, attempts)
    except Standstill as error:
        if recorded is not None:
            recorded.fail(folder, error)
        raise


def run_study(cfg: DictConfig, stop: StopFlag, attempts: Attempts) -> int:
    """Run the study in this process. Slow imports start here, when the configuration is known to be valid."""
    logging.raiseExceptions = False  # a study.log that cannot be written (a full disk) must not print tracebacks
    logging.getLogger("lottery").propagate = True  # until the study shows its own records, below
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    with uncollected():
        from lottery.models.build import check_fit
        from lottery.ranks.place import Place

        try:
            place = Place.found(cfg.trainer)
        except ConfigError as error:  # of several SLURM tasks only the first reports it
            if os.environ.get("SLURM_PROCID", "0") == "0":
                raise
            return error.exit_status
        if place.rank == 0:
            check_fit(cfg.model, tuple(cfg.data.shape), cfg.data.classes)  # needs only torch, half of the imports
        from lottery.lease import LeaseLost
        from lottery.study import Study

    if stop:
        raise Interrupted(stop.signum or 0, "before the study began")

    def study(ranks: Alone | None) -> int:
        while True:
            try:
                Study(cfg, stop, ranks, attempts).run()
                return 0
            except LeaseLost as error:  # this process was suspended; the other one's results are found
                print(f"{error}; this study begins again with what is there", flush=True)

    try:
        if place.world == 1:
            return study(None)
        from lottery.ranks.follow import run_as_rank

        return run_as_rank(place, cfg, stop, study)
    except SystemExit as error:  # from Lightning after a second Ctrl-C, or from rich when its reader has left
        raise (error.__context__ or error) from None
