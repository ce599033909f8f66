"""`python -IS held.py ARGUMENTS`: Python with these arguments, and the signals that stop a study held back.

A signal that comes while Python and its libraries are being imported, before anybody handles it, would end the process
at once. Held back, it waits until `StopFlag.install` lets it in. Run by its path, not imported.
"""

import os
import signal
import sys

HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
