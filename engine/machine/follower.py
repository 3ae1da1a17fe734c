"""Starts a program that ends with the process that started it, for any reason; Linux only.

python -P -m engine.machine.follower PARENT PROGRAM [WORDS ...]

PARENT is the starting process's number. The program replaces this one, which first asks the kernel
for SIGINT at the death of its parent (PR_SET_PDEATHSIG outlasts exec). Popen's `preexec_fn` would
ask between fork and exec, where a process with threads may hang.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1  # sys/prctl.h


def following(command: Sequence[str]) -> list[str]:
    """Returns the command of a child of this process that ends with it."""
    return [sys.executable, "-P", "-m", __name__, str(os.getpid()), *command]


def main(words: Sequence[str]) -> None:
    """Becomes the program, or ends at once if PARENT has already ended."""
    number, *command = words
    if sys.platform == "linux":
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # shells' background jobs ignore it
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
        if os.getppid() != int(number):
            os.kill(os.getpid(), signal.SIGINT)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
