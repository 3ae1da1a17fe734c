"""Processes that do not outlive those that started them, whatever ends these; Linux only.

A rank follows its launcher: torchrun, or of deepspeed both the launcher and the command above it,
which the launcher does not follow. Nothing here needs torch, so that following begins at once.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

_LIBC = ctypes.CDLL(None)  # opened before a fork
PR_SET_PDEATHSIG = 1  # sys/prctl.h
POLL_S = 0.5
GRACE_S = 2  # for a last checkpoint
CAMPAIGN = "RIB_CAMPAIGN"  # the variable that names a job's campaign: host, process and its birth
LAUNCH = "RIB_LAUNCH"  # the variable by which `engine.machine.launcher` names itself to its ranks
LAUNCHED = {"CROSS_RANK", "TORCHELASTIC_RUN_ID", LAUNCH}  # variables of deepspeed, torchrun and us
DEEPSPEED = "deepspeed.launcher.launch"  # starts the ranks of a machine, below `deepspeed`


class _Process(NamedTuple):
    pid: int
    session: str
    words: list[str]  # of its command line


def follow() -> None:
    """Let the kernel interrupt this process (SIGINT) when its parent ends.

    Called between fork and exec. A signal that the child ignores, as a background job of a shell
    does with SIGINT, would be no end, so it is heeded again.
    """
    if sys.platform == "linux":
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)


def follow_launcher() -> None:
    """End this rank, with notice of `GRACE_S` by SIGTERM, when a process that launched it ends.

    srun ends its tasks itself, and a process without a launcher follows nobody. Exits where the
    launcher has ended before.
    """
    if sys.platform != "linux" or not os.environ.keys() & LAUNCHED:
        return
    launchers = _launchers()
    births = [birth(pid) for pid in launchers]
    if not launchers or not all(births) or os.getppid() != launchers[0]:
        sys.exit("error: the launcher of this rank has ended; run the same command again")

    def leave() -> None:
        for pid, born in zip(launchers, births, strict=True):
            if birth(pid) == born:  # `deepspeed` would take a killed launcher for success
                os.kill(pid, signal.SIGTERM)
        # No thread runs while Python ends, so the kernel must see to it.
        signal.setitimer(signal.ITIMER_REAL, GRACE_S)
        os.kill(os.getpid(), signal.SIGTERM)

    for pid, born in zip(launchers, births, strict=True):
        when_ended(pid, born, leave)


def campaign() -> str:
    """This process as the campaign that jobs follow, for their environment."""
    return f"{socket.gethostname()} {identity(os.getpid())}"


def follow_campaign() -> None:
    """Kill this job's process group as soon as its campaign's process ends, for whatever reason.

    A job that was started by hand has no campaign to follow, and one on another machine cannot.
    """
    host, _, process = os.environ.get(CAMPAIGN, "").partition(" ")
    if sys.platform != "linux" or host != socket.gethostname():
        return
    pid, _, born = process.partition(" ")

    def end() -> None:
        os.killpg(os.getpgrp(), signal.SIGKILL)

    if birth(int(pid)) != born:
        end()
    when_ended(int(pid), born, end)


def launch() -> str:
    """The name of the launch that this rank is of, unlike that of any other launch on this machine.

    Empty for launchers whose ranks meet at MASTER_PORT.
    """
    if LAUNCH in os.environ:
        return os.environ[LAUNCH]
    above = _ancestors() if "CROSS_RANK" in os.environ else ()
    return next((identity(process.pid) for process in above if DEEPSPEED in process.words), "")


def identity(pid: int) -> str:
    """A process, told from a later one that has its number."""
    return f"{pid} {birth(pid)}"


def when_ended(pid: int, born: str, act: Callable[[], object]) -> None:
    """Call `act` in a thread once the process `pid` with this `birth` has ended."""

    def wait() -> None:
        try:
            ending = os.pidfd_open(pid)  # readable from its end on
        except OSError:  # the process has ended, or the kernel is older than 5.3
            ending = None
        while birth(pid) == born:
            if ending is None:
                time.sleep(POLL_S)
            else:
                select.select([ending], [], [])
        act()

    threading.Thread(target=wait, daemon=True).start()


def birth(pid: int) -> str:
    """When a process started, in ticks since the machine did; "" if it has ended."""
    try:
        state, *_, born = _state(pid)[:20]
    except OSError:
        return ""
    return "" if state in "ZX" else born


def _launchers() -> list[int]:
    """The processes above this rank up to its launcher; none where deepspeed's has ended."""
    if "CROSS_RANK" not in os.environ:
        return [os.getppid()]
    above = list(_ancestors())
    place = next((k for k, process in enumerate(above) if DEEPSPEED in process.words), None)
    if place is None:
        return []
    launcher = above[place]
    # An orphan's new parent is of another session; so is ssh's, but then --node_rank is given.
    if len(above) > place + 1 and above[place + 1].session == launcher.session:
        place += 1
    elif not any(word.startswith("--node_rank") for word in launcher.words):
        return []
    return [process.pid for process in above[: place + 1]]


def _ancestors() -> Iterator[_Process]:
    """The processes above this one that may be read, the nearest first."""
    pid = os.getppid()
    while pid:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
            _, above, _, session, *_ = _state(pid)
        except OSError:
            return
        yield _Process(pid, session, words)
        pid = int(above)


def _state(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on: state, parent, group, session, ... (proc(5))."""
    text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    return text.rpartition(")")[2].split()
