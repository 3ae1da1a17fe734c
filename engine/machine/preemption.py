"""Notice that this process is about to end: a scheduler's SIGTERM or SIGUSR1, or Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SCHEDULERS = (signal.SIGTERM, signal.SIGUSR1)
SIGNALS = (*SCHEDULERS, signal.SIGINT)


@contextmanager
def noticed() -> Iterator[Callable[[], bool]]:
    """Take these signals as notice, in place of their effect; yields whether one has come.

    Python handles signals in its main thread only, so in another thread none is taken. One that is
    ignored (nohup) stays ignored. A second Ctrl-C interrupts at once.
    """
    came = threading.Event()

    def hear(number: int, _: object) -> None:
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
        came.set()

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {
            number: signal.signal(number, hear)
            for number in SIGNALS
            if signal.getsignal(number) not in (signal.SIG_IGN, None)
        }
    try:
        yield came.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
