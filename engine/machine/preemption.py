"""Notice of a scheduler that it is about to end this process: SIGTERM or SIGUSR1."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def noticed() -> Iterator[Callable[[], bool]]:
    """Take these signals as notice, in place of their effect; yields whether one has come.

    Python handles signals in its main thread only, so in another thread none is taken. One that is
    ignored (nohup) stays ignored.
    """
    came = threading.Event()
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {
            number: signal.signal(number, lambda *_: came.set())
            for number in SIGNALS
            if signal.getsignal(number) not in (signal.SIG_IGN, None)
        }
    try:
        yield came.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
