"""Signals set a flag, and nothing else; only a second Ctrl-C leaves at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from lottery.signals import StopFlag


def test_a_signal_sets_the_flag_and_says_which(signals: Callable[[], StopFlag]) -> None:
    for signum in (signal.SIGTERM, signal.SIGINT):
        stop = signals()
        assert not stop
        os.kill(os.getpid(), signum)
        assert stop
        assert stop.signum == signum


def test_sigterm_may_come_often_and_ctrl_c_once(signals: Callable[[], StopFlag]) -> None:
    stop = signals()
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.signum == signal.SIGTERM
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.signum == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
