"""What the other ranks of a study do: they train along with rank 0, which runs it, and keep silent.

`python -m lottery.follow` is one that rank 0 has started on its own machine; the configuration comes on stdin.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from lottery.errors import LotteryError, cause
from lottery.training.signals import StopFlag

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from lottery.training.parallel import Ranks

CONNECT_SECONDS = 10.0  # rank 0 listens before it starts us


def follow(cfg: DictConfig, ranks: Ranks, stop: StopFlag) -> int:
    """Do as rank 0 says, to the end; its exit status.

    What goes wrong here is told to rank 0, which names it; only where rank 0 cannot be told it is raised.
    """
    from lottery.training.meeting import RankLost
    from lottery.training.processes import LEFT

    log = logging.getLogger("lottery")
    log.disabled = True  # rank 0 says it
    try:
        with ranks.explained():
            train_along(cfg, ranks, stop)
        return ranks.status
    except RankLost:  # rank 0 says which, unless it is rank 0
        return LEFT
    except Exception as error:
        if ranks.report(cause(error)):
            return getattr(error, "exit_status", LotteryError.exit_status)
        raise
    finally:
        log.disabled = False


def train_along(cfg: DictConfig, ranks: Ranks, stop: StopFlag) -> None:
    """Build what trainings need, and train whenever rank 0 does."""
    if not ranks.called():
        return
    from lottery.config import settings
    from lottery.stages.lab import Lab
    from lottery.study import set_threads

    config = settings(cfg)
    set_threads(config.trainer.threads)
    lab = Lab(config, stop, lambda *_: None, ranks=ranks)
    ranks.join()
    lab.follow()


def main() -> int:
    """The study on stdin, as one of the ranks that the environment names."""
    from lottery.run import reported, stop_on_signals

    with stop_on_signals() as stop:
        return reported(lambda: started(sys.stdin.read(), stop))


def started(text: str, stop: StopFlag) -> int:
    """Follow rank 0 in the study of this configuration (YAML)."""
    from omegaconf import OmegaConf

    from lottery.compose import checked
    from lottery.config import Config
    from lottery.training.parallel import Ranks
    from lottery.training.place import Place

    cfg = checked(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(text)))  # type: ignore[arg-type]
    with Ranks(Place.found(cfg.trainer), stop=stop, patience=CONNECT_SECONDS) as ranks:
        return follow(cfg, ranks, stop)


if __name__ == "__main__":
    sys.exit(main())
