"""Kinds `kill` and `tree`: a command, or a process below it, gets a signal at some moment."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil

from faults.campaign import Campaign
from faults.disk import FILLER, NO_ROOM, TMPFS, fill, mounted
from faults.forked import HANGS_S, FellShort, patience, require
from helpers import grids
from helpers.processes import ROOT

ENDS_WITHIN_S = 5.0
ENDING = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MOST_KILLS = 3  # in a row, before the command may work
TRIAL = "RIB_FAULTS_TRIAL"  # a variable that all processes of a tree inherit
COMMANDS = ("campaign", "campaign", "python", "torchrun", "deepspeed")


def kill(campaign: Campaign, rng: random.Random) -> str:
    """End a campaign up to three times; then it must give the numbers of an undisturbed run."""
    campaign.clear()
    deeds = []
    for _ in range(rng.randint(1, MOST_KILLS)):
        number, at = rng.choice(ENDING), rng.randint(1, campaign.changes)
        deeds.append(f"{number.name} at change {at}")
        ended = campaign.run(at=at, act=lambda n=number: os.kill(os.getpid(), n))
        require("Traceback" not in ended.text, f"a traceback: {ended.text[-1500:]}")
    campaign.check(campaign.run(), ", ".join(deeds))
    return ", ".join(deeds)


class Tree:
    """A command and all processes that it starts, which are told by a variable."""

    def __init__(self, command: list[str], campaign: Campaign) -> None:
        self.name = uuid.uuid4().hex
        self.log = campaign.folder / "log.tree"
        with self.log.open("wb") as log:
            self.root = subprocess.Popen(
                command,
                cwd=campaign.folder,
                env=grids.environment() | {TRIAL: self.name, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def processes(self) -> dict[int, str]:
        """Its living processes, and the words of each."""
        return {
            each.pid: " ".join(each.info["cmdline"] or [])
            for each in psutil.process_iter(["cmdline", "environ"])
            if (each.info["environ"] or {}).get(TRIAL) == self.name
        }

    def wait(self, done: str) -> int:
        """The exit code of its root. Raises FellShort where it does not end."""
        try:
            return self.root.wait(patience(HANGS_S))
        except subprocess.TimeoutExpired as error:
            raise FellShort(f"after {done}, no end within {error.timeout:.0f} s") from error

    def succeed(self, done: str) -> None:
        code = self.wait(done)
        text = self.log.read_text(errors="replace")[-1500:]
        require(code == 0, f"after {done}, exit code {code}: {text}")

    def leave_nothing(self, done: str) -> None:
        """Raise FellShort where a process outlives the root by more than `ENDS_WITHIN_S`."""
        end = time.monotonic() + patience(ENDS_WITHIN_S)
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.1)
        require(not left, f"after {done}, processes are left: {left}")

    def __enter__(self) -> "Tree":
        return self

    def __exit__(self, *_: object) -> None:
        """Kill what is left."""
        while left := self.processes():
            for process in left:
                send(process, signal.SIGKILL)
            time.sleep(0.1)
        self.root.wait()


def tree(campaign: Campaign, rng: random.Random) -> str:
    """A process of a whole tree ends or stands still: rib, Snakemake, a job, a rank, a shell.

    No process outlives the disturbed command by 5 s, and the same command finishes its work.
    """
    kind, number, moment = rng.choice(COMMANDS), rng.choice((*ENDING, signal.SIGSTOP)), rng.random()
    if kind not in campaign.seconds:
        campaign.clear()
        finish(campaign, kind, "nothing")
    campaign.clear()
    seconds = moment * campaign.seconds[kind]
    with Tree(command_of(campaign, kind), campaign) as running:
        time.sleep(seconds)
        processes = running.processes()
        process = rng.choice(sorted(processes) or [running.root.pid])
        words = processes.get(process, "a process that has ended")[-60:]
        done = f"{kind}: {number.name} after {seconds:.0f} s to ...{words}"
        send(process, number)
        if number is signal.SIGSTOP:
            time.sleep(rng.uniform(1, 6))
            send(process, signal.SIGCONT)
            running.succeed(done)
        elif running.wait(done) == 0:
            check(campaign, kind, f"{done}, and exit code 0")
        running.leave_nothing(done)
    finish(campaign, kind, done)
    return done


def ranks(campaign: Campaign, rng: random.Random) -> str:
    """The disk of two ranks fills up at some moment: both end soon, and with room the same command
    finishes."""
    kind, moment, left = rng.choice(COMMANDS[-2:]), rng.random(), rng.randrange(1 << 16)
    disk = campaign.runs.parent
    with mounted([*TMPFS, str(disk)], disk):
        if kind not in campaign.seconds:
            finish(campaign, kind, "nothing")
            campaign.clear()
        seconds = moment * campaign.seconds[kind]
        done = f"{kind}: the disk full but for {left} bytes after {seconds:.0f} s"
        with Tree(command_of(campaign, kind), campaign) as running:
            time.sleep(seconds)
            fill(disk, left)
            code, text = running.wait(done), running.log.read_text(errors="replace")
            require(
                code == 0 or any(words in text for words in NO_ROOM),
                f"after {done}, exit code {code} and no disk in: {text[-1500:]}",
            )
            running.leave_nothing(done)
        (disk / FILLER).unlink()
        finish(campaign, kind, done)
    return done


def finish(campaign: Campaign, kind: str, done: str) -> None:
    """Run a command that nobody disturbs; its results are those of the first such run."""
    started = time.monotonic()
    with Tree(command_of(campaign, kind), campaign) as undisturbed:
        undisturbed.succeed(done)
    campaign.seconds.setdefault(kind, time.monotonic() - started)
    check(campaign, kind, done)


def check(campaign: Campaign, kind: str, done: str) -> None:
    if kind == "campaign":
        campaign.check_numbers(done)
        return
    files = [*campaign.runs.glob("store/cells/ewc-outline-*/weights.safetensors")]
    require(files, f"after {done}, there is no cell")
    weights = files[0].read_bytes()
    require(campaign.weights.setdefault(kind, weights) == weights, f"after {done}, other weights")


def command_of(campaign: Campaign, kind: str) -> list[str]:
    if kind == "campaign":
        words = ["campaign", str(campaign.file), *campaign.words, "--cores", "2"]
        return [sys.executable, "-m", "engine.cli", *words]
    launch = [str(ROOT / "engine" / "launch.py"), f"recipe={campaign.recipe}", *campaign.words]
    deepspeed = str(Path(sys.executable).with_name("deepspeed"))
    return {
        "python": [sys.executable, *launch],
        "torchrun": grids.torchrun(2, *launch),
        "deepspeed": [deepspeed, "--num_gpus", "2", *launch],
    }[kind]


def send(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)
