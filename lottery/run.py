"""Run one study from the command line: signals, the slow imports, and one line for whatever goes wrong."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lottery.errors import ConfigError, Interrupted, LotteryError, cause
from lottery.training.signals import HANDLED, StopFlag

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(cfg: DictConfig, stop: StopFlag) -> int:
    """One study; 0 when it is done. The slow imports start here, when the configuration is known to be valid.

    Raises ConfigError before anything is written, LotteryError or Interrupted later, with finished rounds kept.
    """
    logging.raiseExceptions = False  # a study.log that cannot be written (a full disk) must not print tracebacks
    logging.getLogger("lottery").propagate = True  # until the study shows its own records, below
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    from lottery.models.build import check_fit
    from lottery.training.place import Place

    try:
        place = Place.found(cfg.trainer)
    except ConfigError as error:  # of several tasks that SLURM has started the first one says it
        if os.environ.get("SLURM_PROCID", "0") == "0":
            raise
        return error.exit_status
    if place.rank == 0:
        check_fit(cfg.model, tuple(cfg.data.shape), cfg.data.classes)  # needs torch alone, which is half of the imports
    from omegaconf import OmegaConf

    from lottery.follow import follow
    from lottery.study import Study
    from lottery.training.parallel import Ranks

    if stop:
        raise Interrupted(stop.signum or 0, "before the study began")
    try:
        with Ranks(place, cfg.trainer, OmegaConf.to_yaml(cfg, resolve=True), stop) as ranks:
            if not ranks.first:
                return follow(cfg, ranks, stop)
            Study(cfg, stop, ranks).run()
    except SystemExit as error:  # Lightning exits so after a second Ctrl-C, rich when its reader has left
        raise (error.__context__ or error) from None
    return 0


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """A flag that SIGINT and SIGTERM set, from the first moment on; in the end the former handlers are back."""
    stop = StopFlag()
    if threading.current_thread() is not threading.main_thread():  # where Python installs no handlers
        yield stop
        return
    former = {signum: signal.getsignal(signum) for signum in HANDLED}
    stop.install()
    try:
        yield stop
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)


def reported(work: Callable[[], int], what: str = "") -> int:
    """The exit status of `work`; whatever it raises becomes one line on stderr, which begins with `what` it was.

    The traceback of a failed run is in its study.log; HYDRA_FULL_ERROR=1 shows it here.
    """
    try:
        status = work()
        sys.stdout.flush()
        return status
    except LotteryError as error:
        return failed(error, what, error.exit_status)
    except KeyboardInterrupt as error:
        line = "interrupted at once; the same command continues from the last saved state"
        return failed(error, what, 128 + signal.SIGINT, line)
    except BrokenPipeError:  # whoever read our output has left: no one to tell, and nothing to flush at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        return failed(error, what, 1)


def failed(error: BaseException, what: str, status: int, line: str = "") -> int:
    """Print the one line."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exception(error)
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", []))
    print(f"lottery: {what and what + ': '}{line or cause(error)}{notes}", file=sys.stderr)
    return status
