"""What the ranks after the first do: they join the trainings of rank 0, which runs the study, and print nothing.

Rank 0 starts `python -m lottery.ranks.follow` on its own machine, and gives it the configuration on stdin.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from lottery.errors import Interrupted, LotteryError, cause
from lottery.signals import StopFlag

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from lottery.ranks.group import Ranks
    from lottery.ranks.place import Place
    from lottery.stages.lab import Lab

CONNECT_SECONDS = 10.0  # rank 0 listens before it starts others


def run_as_rank(place: Place, cfg: DictConfig, stop: StopFlag, study: Callable[[Ranks], int] | None = None) -> int:
    """Run `study` on rank 0, else `follow`; return the exit status. `study` is None where rank 0 started this."""
    from omegaconf import OmegaConf

    from lottery.ranks.group import TIMEOUT, Ranks

    patience = TIMEOUT.total_seconds() if study else CONNECT_SECONDS
    with Ranks(place, cfg.trainer, OmegaConf.to_yaml(cfg, resolve=True), stop, patience) as ranks:
        return study(ranks) if study and ranks.first else follow(cfg, ranks, stop)


def follow(cfg: DictConfig, ranks: Ranks, stop: StopFlag) -> int:
    """Join rank 0's trainings until its end; return the exit status.

    Errors are reported to rank 0, which names them. They are raised here only if rank 0 cannot be reached.
    """
    from lottery.ranks.children import LEFT
    from lottery.ranks.rendezvous import RankLost

    log = logging.getLogger("lottery")
    log.disabled = True  # rank 0 logs
    try:
        with ranks.translate_errors():
            if ranks.wait_for_start():
                train_along(cfg, ranks, stop)
        return ranks.status
    except RankLost:  # rank 0 says which rank, unless rank 0 is lost
        return LEFT
    except Exception as error:
        if ranks.report(cause(error)):
            return getattr(error, "exit_status", LotteryError.exit_status)
        raise
    finally:
        log.disabled = False


def train_along(cfg: DictConfig, ranks: Ranks, stop: StopFlag) -> None:
    """Build the lab, and join whenever rank 0 trains."""
    from lottery.config import settings
    from lottery.ranks.alone import use_machine
    from lottery.stages.lab import Lab

    config = settings(cfg)
    use_machine(config.trainer.threads)
    lab = Lab(config, stop, lambda *_: None, ranks=ranks)
    ranks.join()
    join_trainings(lab, ranks)


def join_trainings(lab: Lab, ranks: Ranks) -> None:
    """Join each training that rank 0 begins, until it sends no more."""
    from lottery.ranks.alone import Abandoned, RanksDiffer
    from lottery.stages.store import Stage
    from lottery.stages.train import TrainRun
    from lottery.training.progress import NonFiniteLoss

    while (sent := ranks.receive()) is not None:
        stage = Stage("train", sent.key, lab.store.root / "train" / sent.key, {})
        run = TrainRun(lab, stage, sent.ticket, sent.until, sent.keep)
        with suppress(Interrupted, NonFiniteLoss, RanksDiffer, Abandoned):  # rank 0 knows, and sends the next one
            run.train(*sent.start)


def started(text: str, stop: StopFlag) -> int:
    """Follow the rank 0 that started this process, in the study of this configuration (YAML); return the status."""
    from omegaconf import OmegaConf

    from lottery.compose import checked
    from lottery.config import Config
    from lottery.ranks.place import Place

    cfg = checked(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(text)))  # type: ignore[arg-type]
    return run_as_rank(Place.found(cfg.trainer), cfg, stop)


def main() -> int:
    """Follow in the study on stdin, and report an error in one line."""
    from lottery.errors import reported
    from lottery.signals import stop_on_signals

    with stop_on_signals() as stop:
        return reported(lambda: started(sys.stdin.read(), stop))


if __name__ == "__main__":
    sys.exit(main())
