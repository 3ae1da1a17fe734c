"""Detects that this process is about to end: a scheduler's SIGTERM or SIGUSR1, or Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

SCHEDULERS = (signal.SIGTERM, signal.SIGUSR1)
SIGNALS = (*SCHEDULERS, signal.SIGINT)


@contextmanager
def handled(signals: Iterable[signal.Signals], act: Callable[[int, Any], object]) -> Iterator[None]:
    """Handles these signals by `act` during the block. Ignored signals (nohup) stay ignored.

    Does nothing outside the main thread, the only one in which Python handles signals.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {
            number: signal.signal(number, act)
            for number in signals
            if signal.getsignal(number) not in (signal.SIG_IGN, None)
        }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def noticed() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether one of these signals has come. A second Ctrl-C
    interrupts.
    """
    came = threading.Event()

    def hear(number: int, _: object) -> None:
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
        came.set()

    with handled(SIGNALS, hear):
        yield came.is_set
