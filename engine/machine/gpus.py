"""Which GPU a job takes, where jobs of one campaign share a machine."""

from __future__ import annotations

import fcntl
import itertools
import socket
from pathlib import Path
from typing import TextIO

_held: list[TextIO] = []


def claim(folder: Path, count: int) -> int:
    """Number of the GPU (of `count`) with the fewest claims in `folder`, claimed by this process.

    A claim is a locked file; the operating system unlocks it however the process ends.
    """
    claims = folder / "gpus"
    claims.mkdir(parents=True, exist_ok=True)
    for turn in itertools.count():
        for number in range(count):
            file = (claims / f"{socket.gethostname()}-{number}-{turn}").open("a")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
            else:
                _held.append(file)
                return number
    raise AssertionError("there is always a next turn")
