"""A child that does not outlive its parent, whatever ends the parent."""

from __future__ import annotations

import ctypes
import signal
import sys

_LIBC = ctypes.CDLL(None)  # opened before a fork
PR_SET_PDEATHSIG = 1  # sys/prctl.h


def follow() -> None:
    """Let the kernel interrupt this process (SIGINT) when its parent ends; Linux only.

    Called between fork and exec. A signal that the child ignores, as a background job of a shell
    does with SIGINT, would be no end, so it is heeded again.
    """
    if sys.platform == "linux":
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
