"""Ends processes when those that started them end, for any reason; Linux only.

The kernel signals only the death of a parent (`engine.machine.follower`). A job's campaign and a
rank's `deepspeed` are not their parents, so a thread waits for them. This module does not need
torch, so following starts at once.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable

import psutil

GRACE_S = 2  # time for a last checkpoint
CAMPAIGN = "RIB_CAMPAIGN"  # environment variable: host and process of a job's campaign
LAUNCHED = {"CROSS_RANK", "TORCHELASTIC_RUN_ID", "RIB_LAUNCH"}  # set by deepspeed, torchrun, us
# Set by torchrun, deepspeed and our launcher; those of Slurm and torchrun's agent have prefixes.
OF_RANKS = {
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME", "ROLE_RANK", "ROLE_WORLD_SIZE"),
    *("CROSS_RANK", "CROSS_SIZE", "LOCAL_SIZE", "RIB_LAUNCH"),
}
DEEPSPEED = "deepspeed.launcher.launch"  # child of `deepspeed` that starts a machine's ranks


def environment_of_jobs() -> dict[str, str]:
    """Returns this process's environment for jobs that follow it as their campaign.

    Excludes the variables of ranks: a job would take itself for a rank of the launch, or a task of
    the Slurm job, that started `rib campaign`, and wait for the others.
    """
    others = {
        name: value
        for name, value in os.environ.items()
        if name == "SLURM_CONF"
        or not (name in OF_RANKS or name.startswith(("TORCHELASTIC_", "SLURM_")))
    }
    return {**others, CAMPAIGN: f"{here()} {os.getpid()}"}


def here() -> str:
    """Returns this machine's host name and PID namespace: containers may share a host's name."""
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()}/{os.stat('/proc/self/ns/pid').st_ino}"
    return socket.gethostname()


def follow_campaign() -> None:
    """Kills this job's process group as soon as its campaign's process ends, for any reason.

    Does nothing for a job started by hand, or if the campaign runs on another machine.
    """
    host, _, number = os.environ.get(CAMPAIGN, "").partition(" ")
    if sys.platform == "linux" and host == here():
        _when_ended(int(number), lambda: os.killpg(os.getpgrp(), signal.SIGKILL))


def follow_launcher() -> None:
    """Ends this rank when a process that launched it ends, `GRACE_S` after a SIGTERM.

    Does nothing without a launcher, and under srun, which ends its tasks itself. Exits if the
    launcher has already ended.
    """
    if sys.platform != "linux" or not os.environ.keys() & LAUNCHED:
        return
    launchers = _launchers()
    if not launchers:
        sys.exit("error: the launcher of this rank has ended; run the same command again")

    def leave(ended: int) -> None:
        for place, launcher in enumerate(launchers):
            with contextlib.suppress(psutil.NoSuchProcess):
                if place < ended:  # it would wait for each rank in turn
                    launcher.kill()
                else:  # `deepspeed` reports success for a killed launcher
                    launcher.terminate()
        # No thread runs during Python's shutdown, so use a kernel timer.
        signal.setitimer(signal.ITIMER_REAL, GRACE_S)
        os.kill(os.getpid(), signal.SIGTERM)

    for place, launcher in enumerate(launchers):
        _when_ended(launcher.pid, functools.partial(leave, place))


def _launchers() -> list[psutil.Process]:
    """The processes above this rank up to its launcher, nearest first; none if deepspeed's has
    ended.
    """
    above = psutil.Process().parents()
    if "CROSS_RANK" not in os.environ:
        return above[:1]
    words = [_words(process) for process in above]
    place = next((k for k, of_process in enumerate(words) if DEEPSPEED in of_process), None)
    if place is None:
        return []
    if any("deepspeed" in word for word in words[place + 1]):
        return above[: place + 2]
    # Under ssh there is no `deepspeed` above the launcher. Otherwise it has ended.
    is_remote = any(word.startswith("--node_rank") for word in words[place])
    return above[: place + 1] if is_remote else []


def _words(process: psutil.Process) -> list[str]:
    """The command line of a process, or nothing if it cannot be read."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _when_ended(number: int, act: Callable[[], object]) -> None:
    """Calls `act` once a process has ended, in a thread, or at once if it has already ended."""
    try:
        process = psutil.Process(number)
    except psutil.NoSuchProcess:
        act()
        return

    def wait() -> None:
        try:
            select.select([os.pidfd_open(number)], [], [])  # readable once it has ended
        except OSError:  # it has just ended, or the kernel is older than 5.3
            process.wait()
        act()

    threading.Thread(target=wait, daemon=True).start()
