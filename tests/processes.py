"""Processes that tests start and wait for."""

import signal
import subprocess
import time
from collections.abc import Callable
from typing import TypeVar

import psutil

T = TypeVar("T")


def heed_signals() -> None:
    """As a terminal starts a command: background jobs ignore SIGINT, and those of nohup SIGHUP."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def lives(number: int) -> bool:
    """Whether a process has not ended; a zombie has."""
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(
    condition: Callable[[], T],
    what: str,
    seconds: float = 120,
    at_work: subprocess.Popen | None = None,
) -> T:
    """The first true value of a condition; fails after so long, or where what is at work ends."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert at_work is None or at_work.poll() is None, f"it ended before: {what}"
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return value
