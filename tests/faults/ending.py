"""Kinds `kill` and `stop`: a forked command, or a rank of two, gets a signal at some moment."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable

from faults.campaign import RANKS, Campaign
from faults.children import Child, die
from faults.outcome import patience, require

ENDS_WITHIN_S = 5.0
ENDING = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MOST_KILLS = 3  # in a row, before the command may work


def kill(campaign: Campaign, rng: random.Random) -> str:
    """End the same command up to three times; then it must give the numbers of an undisturbed run.

    Half of the moments are counted in changes to the folder, half in seconds.
    """
    campaign.clear()
    command = rng.choice(["campaign", "campaign", "launch"])
    deeds = []
    for _ in range(rng.randint(1, MOST_KILLS)):
        number, rank = rng.choice(ENDING), rng.randrange(RANKS)
        moment = rng.random()
        at = max(1, int(moment * campaign.changes[command]))
        if rng.random() < 0.5:
            deeds.append(f"{number.name} at change {at}")
            children = started(
                campaign, command, at, lambda n=number: os.kill(os.getpid(), n), rank
            )
        else:
            seconds = moment * campaign.seconds[command]
            deeds.append(f"{number.name} after {seconds:.1f} s")
            children = started(campaign, command, 0, die, rank)
            time.sleep(seconds)
            children[min(rank, len(children) - 1)].send(number)
        if command == "launch":
            deeds[-1] += f" to rank {rank}"
        end(children, rank)
    done = f"{command}: {', '.join(deeds)}"
    finish(campaign, command, done)
    return done


def stop(campaign: Campaign, rng: random.Random) -> str:
    """Let a process, or a rank of two, stand still for some seconds; it must go on as if nothing
    had happened."""
    campaign.clear()
    command = rng.choice(["campaign", "launch"])
    rank, stopped_s = rng.randrange(RANKS), rng.uniform(1, 6)
    at = max(1, int(rng.random() * campaign.changes[command]))
    done = f"{command}: SIGSTOP at change {at} for {stopped_s:.1f} s"
    if command == "launch":
        done += f" to rank {rank}"

    def stand_still() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    children = started(campaign, command, at, stand_still, rank)
    child = children[min(rank, len(children) - 1)]
    wait_until_stopped(child)
    time.sleep(stopped_s)
    child.send(signal.SIGCONT)
    check(campaign, command, children, done)
    return done


def started(
    campaign: Campaign, command: str, at: int, act: Callable[[], object], rank: int
) -> list[Child]:
    if command == "launch":
        return campaign.launch(at, act, rank)
    return [campaign.run(at=at, act=act)]


def end(children: list[Child], rank: int) -> None:
    """Wait for the disturbed process, then for the others, which must not outlive it for long.

    A rank learns of another's end when it hears from it next. Before the two have met it waits for
    the other, for minutes; then the trial does what a launcher does, and ends it.
    """
    disturbed = children.pop(min(rank, len(children) - 1))
    ended = disturbed.wait()
    require("Traceback" not in ended.text, f"a traceback: {ended.text[-1500:]}")
    for child in children:
        if child.ended(ENDS_WITHIN_S) is None:
            child.send(signal.SIGTERM)
            child.wait(ENDS_WITHIN_S)


def finish(campaign: Campaign, command: str, done: str) -> None:
    children = started(campaign, command, 0, die, 0)
    check(campaign, command, children, done)


def check(campaign: Campaign, command: str, children: list[Child], done: str) -> None:
    """Raise FellShort unless a command ends well and with the results of an undisturbed run."""
    ended = [child.wait() for child in children]
    if command == "campaign":
        campaign.compare(ended[0], done)
        return
    for rank in ended:
        require(rank.code == 0, f"after {done}, exit code {rank.code}: {rank.text[-1500:]}")
    require(campaign.trained() == campaign.weights, f"after {done}, other weights")


def wait_until_stopped(child: Child) -> None:
    """Wait until a process stands still, or has ended."""
    limit = time.monotonic() + patience(300)
    while time.monotonic() < limit:
        with open(f"/proc/{child.pid}/stat") as file:
            if file.read().rpartition(") ")[2][0] in "TZ":
                return
        time.sleep(0.02)
    require(False, "the process neither stopped nor ended")
