"""`python -IS blocked.py ARGUMENTS`: start Python with these arguments and with the stop signals blocked.

A signal during the imports, before a handler is installed, would end the process at once. A blocked signal waits until
`StopFlag.install` unblocks it. Run by its path, not imported.
"""

import os
import signal
import sys

BLOCKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
