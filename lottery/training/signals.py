"""Signals only set a flag; the state is saved at the next step boundary, where it is consistent.

Saving inside a handler is not safe: between backward and the optimizer step the state is half of two steps.
"""

from __future__ import annotations

import signal
from types import FrameType

# SLURM announces a preemption or the end of the time by the last two, as the job script asks; a terminal that closes
# sends SIGHUP.
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class StopFlag:
    """Set by the first handled signal. A second SIGINT raises KeyboardInterrupt at once."""

    def __init__(self) -> None:
        self.signum: int | None = None  # the latest
        self.received: set[int] = set()

    def __bool__(self) -> bool:
        return self.signum is not None

    def install(self) -> None:
        """Take over the handled signals for the rest of the process, and let in those that were held back so far.

        (A job script may start Python with them blocked, so that none is lost while it imports.) A SIGHUP that the
        process was told to ignore, as `nohup` does, stays ignored.
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
