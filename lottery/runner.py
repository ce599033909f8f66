"""Run one study: count the attempt, and do slow imports only when the configuration is valid and the study not done.

`run` is the function `lottery.run` of the Python API.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lottery.errors import ConfigError, Interrupted
from lottery.imports import uncollected
from lottery.record.run import Run
from lottery.record.status import Status
from lottery.signals import StopFlag, stop_on_signals
from lottery.stages.attempts import Attempts, Standstill

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from lottery.ranks.alone import Alone


def run_composed(cfg: DictConfig, stop: StopFlag, begins: Callable[[], object] = lambda: None) -> int:
    """Run one study; return 0 when it is done. begins: called unless a finished study is answered from its record.

    Raises ConfigError before anything is written, LotteryError or Interrupted later, with finished rounds kept. Raises
    Standstill where this run's SLURM job makes no progress.
    """
    from lottery.answer import answered
    from lottery.config import study_key  # needs Hydra, which commands like status do without
    from lottery.inputs import inputs_of

    logging.raiseExceptions = False  # a study.log that cannot be written (a full disk) must not print tracebacks
    runs, key = Path(cfg.paths.runs), study_key(cfg)
    folder, attempts = runs / cfg.name / key, Attempts(runs, key)
    recorded, inputs = Status.read(folder), inputs_of(cfg)
    try:
        with attempts.counted((recorded and recorded.cause) or ""):
            if recorded is not None and recorded.done and answered(cfg, folder, inputs):
                return 0
            begins()
            return run_study(cfg, stop, attempts, inputs)
    except Standstill as error:
        if recorded is not None:
            recorded.fail(folder, error)
        raise
    except SystemExit as error:  # from Lightning after a second Ctrl-C, or from rich when its reader has left
        raise (error.__context__ or error) from None


def check_device(trainer: DictConfig) -> None:
    """Raise ConfigError where the device that a study asks for is not there; say where processes share a CPU."""
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    there = {"cuda": cuda, "mps": mps, "gpu": cuda or mps}
    if not there.get(trainer.accelerator, True):
        expected = "a device that torch sees here; auto takes what there is, and `python -m lottery doctor` says more"
        raise ConfigError.of("trainer.accelerator", trainer.accelerator, expected)
    if trainer.devices > 1 and trainer.accelerator == "auto" and not cuda:
        print(
            f"trainer.devices={trainer.devices}: torch sees no GPU, so that so many processes train on this CPU; "
            "a network for images may take days; trainer=default trains in one process", flush=True,
        )  # fmt: skip


def run_study(cfg: DictConfig, stop: StopFlag, attempts: Attempts, inputs: str = "") -> int:
    """Run the study in this process. Slow imports start here, when the configuration is known to be valid."""
    logging.getLogger("lottery").propagate = True  # until the study shows its own records, below
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    gc.collect()  # an earlier study of this process: else it would be excluded from collection, data and all
    with uncollected():
        import torch

        import lottery.ranks.alone  # noqa: F401 - it notes torch's own choice of threads
        from lottery.models.build import check_fit
        from lottery.ranks.place import Place

        try:
            place = Place.found(cfg.trainer)
        except ConfigError as error:  # of several SLURM tasks only the first reports it
            if os.environ.get("SLURM_PROCID", "0") == "0":
                raise
            return error.exit_status
        own_threads = torch.get_num_threads()
        torch.set_num_threads(1)  # workers are copies of this process, which must have no threads of torch until then
        if place.rank == 0:
            check_device(cfg.trainer)
            check_fit(cfg.model, tuple(cfg.data.shape), cfg.data.classes)  # needs only torch, half of the imports
        from lottery.inputs import still
        from lottery.lease import LeaseLost
        from lottery.study import Study
        from lottery.workers import hired

    if stop:
        raise Interrupted(stop.signum or 0, "before the study began")

    def study(ranks: Alone | None) -> int:
        while True:
            crew = hired(cfg, place, attempts)
            torch.set_num_threads(own_threads)
            try:
                Study(cfg, stop, ranks, attempts, crew, partial(still, cfg, inputs)).run()
                return 0
            except LeaseLost as error:  # this process was suspended; the other one's results are found
                print(f"{error}; this study begins again with what is there", flush=True)
            finally:
                if crew is not None:
                    crew.close()

    if place.world == 1:
        return study(None)
    from lottery.ranks.follow import run_as_rank

    return run_as_rank(place, cfg, stop, study)


def run(*overrides: str, config_dir: str | Path | None = None) -> Run:
    """Run a study as `python -m lottery OVERRIDES` does, or find it finished; return its run folder.

    overrides:  as on the command line: "+exp=imp_rewind", "method.rounds=3", "seed=1"
    config_dir: folder of your own configs, as `--config-dir`

    Prints the study's table. Raises ConfigError for a wrong configuration, before anything is written; LotteryError
    where the study fails; Interrupted on Ctrl-C, with the state saved: the same call continues.

    >>> run = lottery.run("+exp=imp_rewind", *small)  # doctest: +ELLIPSIS
    imp_rewind: runs/imp_rewind/...
    >>> run.finished
    True
    """
    from lottery.compose import composed
    from lottery.config import study_key

    if wrong := [each for each in overrides if not isinstance(each, str)]:
        raise ConfigError.of("lottery.run", wrong[0], "texts such as '+exp=imp_rewind' and 'seed=1'")
    cfg = composed(overrides, str(config_dir) if config_dir is not None else None)
    with stop_on_signals() as stop:
        run_composed(cfg, stop)
    return Run(Path(cfg.paths.runs) / cfg.name / study_key(cfg))
