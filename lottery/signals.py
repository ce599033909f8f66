"""Set a flag on a signal. The training then saves its state at the next step boundary, where it is consistent.

Saving inside a handler is not safe: between backward and the optimizer step the state is incomplete.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# SLURM announces a preemption or the time limit by SIGUSR1 or SIGUSR2, as the job script asks. A terminal that closes
# sends SIGHUP.
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class StopFlag:
    """A flag that is true after the first handled signal. A second SIGINT raises KeyboardInterrupt at once."""

    def __init__(self) -> None:
        self.signum: int | None = None  # the latest
        self.received: set[int] = set()

    def __bool__(self) -> bool:
        return self.signum is not None

    def install(self) -> None:
        """Handle the signals of `HANDLED` for the rest of the process, and unblock them.

        A job script may start Python with blocked signals, so that none is lost during the imports. A SIGHUP that is
        ignored, as under `nohup`, stays ignored.
        """
        for signum in HANDLED:
            if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
                signal.signal(signum, self._handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum == signal.SIGINT and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum
        self.received.add(signum)


@contextmanager
def stop_on_signals(stop: StopFlag | None = None) -> Iterator[StopFlag]:
    """Yield a flag that the signals of `HANDLED` set; restore the former handlers at the end of the block."""
    stop = StopFlag() if stop is None else stop
    if threading.current_thread() is not threading.main_thread():  # Python installs no handlers in other threads
        yield stop
        return
    former = {signum: signal.getsignal(signum) for signum in HANDLED}
    stop.install()
    try:
        yield stop
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)
