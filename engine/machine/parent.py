"""Processes that do not outlive those that started them, whatever ends these; Linux only.

A job's campaign and a rank's `deepspeed` are not their parents, of whose death alone the kernel
tells (PR_SET_PDEATHSIG), so a thread waits for them. Nothing here needs torch, so that following
begins at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable

import psutil

_LIBC = ctypes.CDLL(None)  # opened before a fork
PR_SET_PDEATHSIG = 1  # sys/prctl.h
GRACE_S = 2  # for a last checkpoint
CAMPAIGN = "RIB_CAMPAIGN"  # the variable that names a job's campaign: host and process
LAUNCHED = {"CROSS_RANK", "TORCHELASTIC_RUN_ID", "RIB_LAUNCH"}  # of deepspeed, torchrun and us
# Of torchrun, deepspeed and our own launcher. Those of Slurm and of torchrun's agent have prefixes.
OF_RANKS = {
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME", "ROLE_RANK", "ROLE_WORLD_SIZE"),
    *("CROSS_RANK", "CROSS_SIZE", "LOCAL_SIZE", "RIB_LAUNCH"),
}
PREFIXES = ("TORCHELASTIC_", "SLURM_")
DEEPSPEED = "deepspeed.launcher.launch"  # starts the ranks of a machine, below `deepspeed`


def follow() -> None:
    """Let the kernel interrupt this process (SIGINT) when its parent ends.

    Called between fork and exec. A signal that the child ignores, as a background job of a shell
    does with SIGINT, would be no end, so it is heeded again.
    """
    if sys.platform == "linux":
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)


def environment_of_jobs() -> dict[str, str]:
    """This process's, as the campaign that jobs follow, without what makes it one of several.

    A job would take itself for a rank of the launch, or a task of the Slurm job, that `rib
    campaign` was started in, and wait for the others.
    """
    others = {name: value for name, value in os.environ.items() if not _of_ranks(name)}
    return {**others, CAMPAIGN: f"{here()} {os.getpid()}"}


def here() -> str:
    """This machine, and what its process numbers count: containers may share a host's name."""
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()}/{os.stat('/proc/self/ns/pid').st_ino}"
    return socket.gethostname()


def _of_ranks(name: str) -> bool:
    return name in OF_RANKS or (name.startswith(PREFIXES) and name != "SLURM_CONF")


def follow_campaign() -> None:
    """Kill this job's process group as soon as its campaign's process ends, for whatever reason.

    A job that was started by hand has no campaign to follow, and one on another machine cannot.
    """
    host, _, number = os.environ.get(CAMPAIGN, "").partition(" ")
    if sys.platform == "linux" and host == here():
        _when_ended(int(number), lambda: os.killpg(os.getpgrp(), signal.SIGKILL))


def follow_launcher() -> None:
    """End this rank, with notice of `GRACE_S` by SIGTERM, when a process that launched it ends.

    srun ends its tasks itself, and a process without a launcher follows nobody. Exits where the
    launcher has ended before.
    """
    if sys.platform != "linux" or not os.environ.keys() & LAUNCHED:
        return
    launchers = _launchers()
    if not launchers:
        sys.exit("error: the launcher of this rank has ended; run the same command again")

    def leave(ended: int) -> None:
        for place, launcher in enumerate(launchers):
            with contextlib.suppress(psutil.NoSuchProcess):
                if place < ended:  # it would wait for each rank in turn, and nobody asks it
                    launcher.kill()
                else:  # `deepspeed` would take a killed launcher for success
                    launcher.terminate()
        # No thread runs while Python ends, so the kernel must see to it.
        signal.setitimer(signal.ITIMER_REAL, GRACE_S)
        os.kill(os.getpid(), signal.SIGTERM)

    for place, launcher in enumerate(launchers):
        _when_ended(launcher.pid, functools.partial(leave, place))


def _launchers() -> list[psutil.Process]:
    """The processes above this rank up to its launcher, the nearest first; none where deepspeed's
    has ended."""
    above = psutil.Process().parents()
    if "CROSS_RANK" not in os.environ:
        return above[:1]
    words = [_words(process) for process in above]
    place = next((k for k, of_process in enumerate(words) if DEEPSPEED in of_process), None)
    if place is None:
        return []
    if any("deepspeed" in word for word in words[place + 1]):
        return above[: place + 2]
    # ssh starts a launcher that has no command above it. Otherwise that has ended.
    is_remote = any(word.startswith("--node_rank") for word in words[place])
    return above[: place + 1] if is_remote else []


def _words(process: psutil.Process) -> list[str]:
    """The command line of a process; nothing where it may not be read."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _when_ended(number: int, act: Callable[[], object]) -> None:
    """Call `act` once a process has ended, in a thread; at once where it has ended before."""
    try:
        process = psutil.Process(number)
    except psutil.NoSuchProcess:
        act()
        return

    def wait() -> None:
        try:
            select.select([os.pidfd_open(number)], [], [])  # readable from its end on
        except OSError:  # it has just ended, or the kernel is older than 5.3
            process.wait()
        act()

    threading.Thread(target=wait, daemon=True).start()
