"""Starts the ranks of a job on this machine.

python -P -m engine.machine.launcher NUMBER MODULE [WORDS ...]

It does not need torch. Its exit code is that of the first rank that fails, as a shell reports it:
137 for a rank that SIGKILL ended. (torchrun exits with 1, and its store listens on all interfaces.)
Ranks still running when it ends also end, because they follow it (`parent.follow_launcher`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from engine.machine import parent, preemption

POLL_S = 0.1


def main(words: Sequence[str]) -> int:
    """Returns the exit code of the first rank that fails, or 0."""
    parent.follow_campaign()
    number, module, *rest = words
    ranks: list[subprocess.Popen] = []

    def pass_on(*_: object) -> None:
        for rank in ranks:
            rank.terminate()  # does nothing if it has ended

    for heard in preemption.SCHEDULERS:
        signal.signal(heard, pass_on)
    signal.signal(signal.SIGINT, lambda *_: None)  # a terminal also sends it to the ranks
    shared = {"WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number, "RIB_LAUNCH": "1"}
    # Each rank would compute, and compile, on all of the job's cores.
    cores = int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0))))
    threads = str(max(1, cores // int(number)))
    shared |= {"OMP_NUM_THREADS": threads, "TORCHINDUCTOR_COMPILE_THREADS": threads}
    settings = {**os.environ, **shared}
    for rank in range(int(number)):
        environment = {**settings, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-P", "-m", module, *rest]
        ranks.append(subprocess.Popen(command, env=environment))
    while True:
        codes = [rank.poll() for rank in ranks]
        if code := next(filter(None, codes), 0):
            return 128 - code if code < 0 else code
        if None not in codes:
            return 0
        time.sleep(POLL_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
